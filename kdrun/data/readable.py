"""Check of every image of a tree by decoding it once: which cannot be read, and statistics of the others."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdrun.data.decode import NUMBERS, grey_range, rgb_pixels, why_unreadable
from kdrun.data.image_tree import Tree, refuse_empty_classes
from kdrun.display import Track, untracked
from kdrun.errors import CheckpointError
from kdrun.files import read_json, write_json
from kdrun.hardware import available_cores

CHUNK = 16
DARK = 32  # of 256 levels: what 12-bit values in a 16-bit file reach is 16


@dataclass
class Checked:
    """Results of decoding all images of a tree. unreadable: (position, reason); sizes: (width, height) -> number of
    images; moments: for each image the means over its pixels of x and of x * x [N, 2, 3], x in [0, 1]; NaN for an
    unreadable one; dark: number of images without a value of `DARK` or above; ranges: `grey_range` -> number of
    images of 32-bit numbers; cut: number of those with values outside of it; digests: of each image's pixels, uint64
    [N], equal for copies; 0 for an unreadable one."""

    moments: np.ndarray
    digests: np.ndarray
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    dark: int = 0
    ranges: Counter[tuple[float, float]] = field(default_factory=Counter)
    cut: int = 0


class Seen(NamedTuple):
    """Result of decoding one image, as in `Checked`."""

    size: tuple[int, int]
    moments: np.ndarray
    digest: int
    dark: bool
    range: tuple[float, float] | None
    cut: bool


def check(tree: Tree, track: Track = untracked) -> Checked:
    """Decode every image, on all cores."""
    count = len(tree.paths)
    found = Checked(np.full((count, 2, 3), np.nan), np.zeros(count, np.uint64))

    def look(start: int) -> list[str | Seen]:
        return [_look_at(tree.root / path) for path in tree.paths[start : start + CHUNK]]

    def steps() -> Iterator[int]:
        with ThreadPoolExecutor(available_cores()) as pool:
            for number, seen in enumerate(pool.map(look, range(0, count, CHUNK))):
                for position, one in enumerate(seen, number * CHUNK):
                    if isinstance(one, str):
                        found.unreadable.append((position, one))
                    else:
                        found.sizes[one.size] += 1
                        found.moments[position] = one.moments
                        found.digests[position] = one.digest
                        found.dark += one.dark
                        found.cut += one.cut
                        if one.range is not None:
                            found.ranges[one.range] += 1
                    yield position

    for _ in track(steps(), count, f"checking {count:,} images"):
        pass
    return found


def _look_at(path: Path) -> str | Seen:
    """Return why a file cannot be read, or what was seen of it."""
    from PIL import Image

    limits, cut = None, False
    try:
        with Image.open(path) as image:
            pixels = rgb_pixels(image, None)
            if image.mode in NUMBERS:
                limits, values = grey_range(image), np.asarray(image)
                cut = bool(values.min() < limits[0] or values.max() > limits[1])
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and own types for damaged files
        return why_unreadable(error, path)
    values = pixels.reshape(-1, 3).astype(np.float32) / 255
    moments = np.stack([values.mean(0, np.float64), (values**2).mean(0, np.float64)])
    digest = int.from_bytes(hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).digest())
    return Seen((pixels.shape[1], pixels.shape[0]), moments, digest, int(pixels.max()) < DARK, limits, cut)


def readable_part(tree: Tree, cache: Path, track: Track = untracked) -> tuple[Tree, list[tuple[str, str]]]:
    """Return the tree without unreadable images, and (image, reason) for those; determined once per content of a tree.

    Raises DataError for a class without a readable image.
    """
    place = cache / f"unreadable-{tree.fingerprint()[:16]}.json"
    try:
        bad = [(int(position), str(reason)) for position, reason in read_json(place)["unreadable"]]
    except (CheckpointError, KeyError, TypeError, ValueError):
        bad = check(tree, track).unreadable
        write_json(place, {"unreadable": bad})
    return without(tree, [position for position, _ in bad]), [
        (f"{tree.root.name}/{tree.paths[position]}", reason) for position, reason in bad
    ]


def without(tree: Tree, positions: list[int]) -> Tree:
    """Return the tree without some of its images. Raises DataError for a class that this empties."""
    if not positions:
        return tree
    kept = np.setdiff1d(np.arange(len(tree.labels)), positions)
    refuse_empty_classes(tree, tree.labels[kept])
    paths, sizes, marks = ([column[i] for i in kept] for column in (tree.paths, tree.sizes, tree.marks))
    return replace(tree, paths=paths, sizes=sizes, marks=marks, labels=tree.labels[kept])
