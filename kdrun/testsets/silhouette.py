"""The foreground as one flat shape on a flat background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdrun.options import setting
from kdrun.testsets.base import DerivedSet, Draw
from kdrun.testsets.superpixel import enlarged, segment_means, shrunk, superpixels

NEAREST = 3  # border segments that speak for the background: one alone may be the object where it leaves the image


def foreground(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """The mask of what differs from the border in colour, bool [H, W], by classical means (no network).

    Each SLIC segment's saliency is its CIELAB distance to the nearest border segments, weighted by how near it is to
    the centre; Otsu's threshold over the pixels, the largest connected part, its holes filled. An image of one colour
    has an empty mask.
    """
    from scipy import ndimage
    from skimage.color import rgb2lab
    from skimage.filters import threshold_otsu

    number, _ = superpixels(image, segments, compactness)
    colour = segment_means(number, rgb2lab(image))
    border = np.unique(np.concatenate([number[0], number[-1], number[:, 0], number[:, -1]]))
    distance = np.linalg.norm(colour[:, None] - colour[border][None], axis=2)
    distance[border, np.arange(len(border))] = np.inf  # a border segment is judged by the others
    saliency = np.sort(distance, axis=1)[:, :NEAREST]
    saliency = np.where(np.isfinite(saliency), saliency, 0).mean(axis=1)
    height, width = number.shape
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    centred = np.exp(-(rows**2 + columns**2))
    score = saliency[number] * centred
    if np.ptp(score) < 1e-6:
        return np.zeros(number.shape, dtype=bool)
    mask = score > threshold_otsu(score)
    found: Any = ndimage.label(mask)
    parts, count = found
    if count > 1:
        mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return np.asarray(ndimage.binary_fill_holes(mask))


@dataclass(frozen=True)
class Silhouette(DerivedSet):
    """The foreground filled with one grey level, the background with another.

    The published recipe takes the mask from a segmentation network (FCN-ResNet101); this one is the offline way, from
    superpixels and the border's colours, so its masks are coarser. ink, paper: grey levels of fore- and background.
    segments, compactness, side: as in the superpixel set.
    """

    name = "silhouette"
    measures = "shape"
    recipe = "SLIC and border-colour mask (offline; published: FCN-ResNet101)"
    libraries = ("numpy", "scipy", "scikit-image", "pillow")

    ink: int = setting(0, low=0, high=255)
    paper: int = setting(255, low=0, high=255)
    segments: int = setting(100, low=4)
    compactness: float = setting(10.0, over=0)
    side: int = setting(128, low=8)

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        large, factor = enlarged(image, self.side)
        mask = shrunk(foreground(large, self.segments, self.compactness), factor) >= 0.5
        return np.where(mask[..., None], np.uint8(self.ink), np.uint8(self.paper)).repeat(3, axis=2)
