"""Texture transfer without a network: the shape of one image in the texture of another."""

from __future__ import annotations

import numpy as np

from kdrun.evaluation.testsets.base import Draw

TOLERANCE = 0.1  # Efros and Freeman choose at random among patches within 0.1 of the best error
LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2


def transfer(
    target: np.ndarray, source: np.ndarray, draw: Draw, *, patch: float, shape_weight: float, candidates: int
) -> np.ndarray:
    """Return `target`'s luminance composed of patches of `source`: uint8 [H, W, 3], [h, w, 3] -> [H, W, 3].

    Texture transfer after Efros & Freeman 2001 ("Image quilting for texture synthesis and transfer"): block by block
    the patch with the least error is chosen, with a linear blend over the overlap instead of the paper's cut along the
    path of least error, in one pass, and with at most `candidates` patches from random places.

    Equation:
        error = w ||luma(patch) - luma(block)||^2 + (1 - w) ||patch - done||^2 over the overlap, w = shape_weight
    patch: its side as a share of the image's; the overlap is a third of it. The luminances of `target` are first mapped
    by rank to those of `source`, as in the paper.
    """
    generator = draw.generator()
    height, width, _ = target.shape
    side = min(max(round(patch * min(height, width)), 3), height, width, *source.shape[:2])
    overlap = max(side // 3, 1)
    pool = _patches(source, side, candidates, generator)
    wanted = matched_luma(target, source)
    luma = (pool @ LUMA).reshape(len(pool), -1)
    squares = (luma**2).sum(axis=1)
    tops, lefts = (
        np.ascontiguousarray(part).reshape(len(pool), -1) for part in (pool[:, :overlap], pool[:, :, :overlap])
    )
    made = np.zeros((height, width, 3), dtype=np.float32)
    ramp = (np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1))[:, None]
    for row in _starts(height, side, side - overlap):
        for column in _starts(width, side, side - overlap):
            block = wanted[row : row + side, column : column + side].ravel()
            error = shape_weight * (squares - 2 * (luma @ block) + block @ block)
            done = made[row : row + side, column : column + side]
            weight = np.ones((side, side, 1), dtype=np.float32)
            if row:
                error += (1 - shape_weight) * _squared_distances(tops, done[:overlap])
                weight[:overlap] *= ramp[:, None]
            if column:
                error += (1 - shape_weight) * _squared_distances(lefts, done[:, :overlap])
                weight[:, :overlap] *= ramp
            near = np.flatnonzero(error <= max(error.min(), 0) * (1 + TOLERANCE) + 1e-6)
            done[...] += weight * (pool[generator.choice(near)] - done)
    return np.clip(np.round(made * 255), 0, 255).astype(np.uint8)


def _squared_distances(rows: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Return the squared distance of each of rows [K, n] from `block` with n values, float32 [K]."""
    away = rows - block.ravel()
    away *= away
    return away.sum(axis=1)


def matched_luma(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return the luminance of `target` in [0, 1], mapped so that its distribution is `source`'s, float32 [H, W]."""
    own, theirs = (image.astype(np.float32) @ LUMA / 255 for image in (target, source))
    _, inverse, counts = np.unique(own.ravel(), return_inverse=True, return_counts=True)
    quantile = (np.cumsum(counts) - counts / 2) / own.size
    return np.quantile(theirs, quantile)[inverse].reshape(own.shape).astype(np.float32)


def _patches(source: np.ndarray, side: int, candidates: int, generator: np.random.Generator) -> np.ndarray:
    """Return float32 [K, side, side, 3] in [0, 1]: all patches of `source`, or `candidates` from random places."""
    rows, columns = source.shape[0] - side + 1, source.shape[1] - side + 1
    places = np.arange(rows * columns)
    if len(places) > candidates:
        places = np.sort(generator.choice(len(places), candidates, replace=False))
    windows = np.lib.stride_tricks.sliding_window_view(source, (side, side), axis=(0, 1))  # type: ignore[call-overload]
    chosen = windows[places // columns, places % columns].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(chosen).astype(np.float32) / 255


def _starts(length: int, side: int, step: int) -> list[int]:
    """Return where blocks begin; the last one ends at the border."""
    return [*range(0, length - side, step), length - side]
