"""Test set with images as flat patches of colour, from SLIC superpixels (Achanta et al. 2012, "SLIC superpixels
compared to state-of-the-art superpixel methods")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kdrun.config.options import setting
from kdrun.evaluation.testsets.base import DerivedSet, Draw


def enlarged(image: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """Return (the image, enlarged bilinearly by a whole factor so that its shorter side is at least `side`, the
    factor)."""
    from PIL import Image

    height, width, _ = image.shape
    factor = enlargement(height, width, side)
    if factor == 1:
        return image, 1
    return np.asarray(
        Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BILINEAR)
    ), factor


def enlargement(height: int, width: int, side: int) -> int:
    """Return the smallest whole factor that brings the shorter side to at least `side`."""
    return -(-side // min(height, width))


def enlarged_all(images: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """Apply `enlarged` to uint8 [N, H, W, 3]: (the images, the factor)."""
    made = [enlarged(image, side) for image in images]
    return np.stack([large for large, _ in made]), made[0][1]


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the mean of every factor x factor block: [H f, W f, ...] -> float [H, W, ...]."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return image.reshape(height, factor, width, factor, *image.shape[2:]).mean(axis=(1, 3))


def superpixels(image: np.ndarray, segments: int, compactness: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (segment numbers [H, W] from 0, mean colours [S, 3]) of about `segments` SLIC segments.

    The last result is cached, since it takes most of the time of every set based on it.
    """
    return _superpixels(image.tobytes(), image.shape, segments, compactness)


@lru_cache(maxsize=1)
def _superpixels(
    pixels: bytes, shape: tuple[int, ...], segments: int, compactness: float
) -> tuple[np.ndarray, np.ndarray]:
    from skimage.segmentation import slic

    image = np.frombuffer(pixels, dtype=np.uint8).reshape(shape)
    number = slic(image, n_segments=segments, compactness=compactness, start_label=0, channel_axis=-1)
    used = np.bincount(number.ravel()) > 0
    number = (np.cumsum(used) - 1)[number]  # no empty segments
    means = segment_means(number, image)
    number.flags.writeable = means.flags.writeable = False
    return number, means


def segment_means(number: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of values [H, W, C] over each segment, float64 [S, C]."""
    flat = number.ravel()
    area = np.bincount(flat)
    return np.stack([np.bincount(flat, values[..., c].ravel()) / area for c in range(values.shape[2])], axis=1)


@dataclass(frozen=True)
class Superpixel(DerivedSet):
    """SLIC segments, each filled with its mean colour: fine detail is removed, colours and outlines remain.

    segments: about how many. compactness: SLIC's weight of distance against colour. side: smaller images are enlarged
    by a whole factor to at least this side first (4 at 32 pixels), since 100 segments of 1,024 pixels are nearly the
    image itself; the published images were 330 pixels wide.
    """

    name = "superpixel"
    measures = "reliance on fine detail (the published grids' locality)"
    usual = "SLIC, mean colours"
    libraries = ("numpy", "scikit-image", "pillow")

    segments: int = setting(100, low=2)
    compactness: float = setting(10.0, over=0)
    side: int = setting(128, low=8)

    def shares(self) -> tuple[object, ...]:
        return ("superpixels", self.segments, self.compactness, self.side)

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        large, factor = enlarged(image, self.side)
        number, means = superpixels(large, self.segments, self.compactness)
        return np.round(shrunk(means[number], factor)).astype(np.uint8)
