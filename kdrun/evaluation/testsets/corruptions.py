"""Common corruptions (Hendrycks & Dietterich 2019): the published CIFAR-C files, and an approximation of some."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from kdrun.config.options import setting
from kdrun.data.arrays import read_array
from kdrun.data.splits import ArraySet
from kdrun.errors import DataError, one_line
from kdrun.evaluation.testsets.base import DerivedSet, Draw, NamedSet

SIDE = 32  # side of the images for which the constants were chosen
SEVERITIES = 5
Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def gaussian_noise(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    return image + generator.normal(0, (0.04, 0.06, 0.08, 0.09, 0.10)[level], image.shape)


def shot_noise(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    photons = (500, 250, 100, 75, 50)[level]
    return generator.poisson(image * photons) / photons


def impulse_noise(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """Add salt and pepper, each to half of the affected values."""
    draws = generator.random(image.shape)
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    return np.where(draws < amount, (draws < amount / 2).astype(float), image)


def speckle_noise(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    return image + image * generator.normal(0, (0.06, 0.1, 0.12, 0.16, 0.2)[level], image.shape)


def gaussian_blur(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    """Blur the image. The published widths are in pixels at 32; larger images are blurred in proportion."""
    from scipy.ndimage import gaussian_filter

    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[level] * min(image.shape[:2]) / SIDE
    return gaussian_filter(image, (sigma, sigma, 0), mode="nearest")


def brightness(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    return _in_hsv(image, 2, 1.0, (0.05, 0.1, 0.15, 0.2, 0.3)[level])


def saturate(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    return _in_hsv(image, 1, *((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[level])


def contrast(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + mean


def jpeg_compression(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image

    buffer = BytesIO()
    _picture(image).save(buffer, "JPEG", quality=(80, 65, 58, 50, 40)[level])
    return np.asarray(Image.open(buffer)) / 255


def pixelate(image: np.ndarray, level: int, generator: np.random.Generator) -> np.ndarray:
    from PIL import Image

    share = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    height, width, _ = image.shape
    small = _picture(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX)) / 255


def _in_hsv(image: np.ndarray, channel: int, factor: float, shift: float) -> np.ndarray:
    from skimage.color import hsv2rgb, rgb2hsv

    hsv = rgb2hsv(image)
    hsv[..., channel] = np.clip(hsv[..., channel] * factor + shift, 0, 1)
    return hsv2rgb(hsv)


def _picture(image: np.ndarray):
    from PIL import Image

    return Image.fromarray(np.round(image * 255).astype(np.uint8))


GENERATORS: dict[str, Corruption] = {
    made.__name__: made
    for made in (
        gaussian_noise,
        shot_noise,
        impulse_noise,
        speckle_noise,
        gaussian_blur,
        brightness,
        contrast,
        saturate,
        pixelate,
        jpeg_compression,
    )
}


@dataclass(frozen=True)
class Corrupted(DerivedSet):
    """Corruption at one severity, computed here with the constants of CIFAR-10-C.

    An approximation: the published files used other random numbers and libraries, and ImageNet-C other constants.
    `cifar_c` reads the published files. kind: which; severity: 1 to 5.
    """

    name = "corruptions"
    measures = "robustness to common corruptions"
    usual = "C-like (made here; not the published CIFAR-C files)"
    libraries = ("numpy", "scipy", "scikit-image", "pillow")

    kind: str = setting("gaussian_noise", choices=tuple(GENERATORS))
    severity: int = setting(3, low=1, high=SEVERITIES)

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        made = GENERATORS[self.kind](image / 255, self.severity - 1, draw.generator())
        return (np.clip(made, 0, 1) * 255 + 1e-6).astype(np.uint8)  # truncated, as in the published files


@dataclass(frozen=True)
class PublishedCorruption(NamedSet):
    """Corruption at one severity from the published files of CIFAR-10-C or CIFAR-100-C.

    files: the folder of labels.npy [5 n] and <kind>.npy uint8 [5 n, 32, 32, 3], severities 1 to 5 one after the other;
    Zenodo 2535967 (CIFAR-10-C), 3555552 (CIFAR-100-C). Labels are indices of the sorted class names.
    """

    name = "cifar_c"
    measures = "robustness to common corruptions, published files"
    usual = "published CIFAR-C files"

    files: str | None = setting(None)
    kind: str = setting("gaussian_noise")
    severity: int = setting(3, low=1, high=SEVERITIES)

    def load(self, num_classes: int) -> ArraySet:
        """Load the set. Raises DataError (one line) for a missing or unsuitable file."""
        if self.files is None:
            raise DataError(
                "cifar_c.files is not set: give the unpacked folder of CIFAR-10-C.tar (Zenodo 2535967) or "
                "CIFAR-100-C.tar (3555552); the set `corruptions` computes an approximation offline."
            )
        folder = Path(os.path.expanduser(self.files))
        found = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
        if self.kind not in found:
            there = (
                f"it has {', '.join(found)}" if found else "unpack CIFAR-10-C.tar of Zenodo 2535967 (3555552 for 100)"
            )
            raise DataError(f"{folder / self.kind}.npy: no such corruption; {there}.")
        images, labels = (_array(folder / f"{name}.npy") for name in (self.kind, "labels"))
        count = len(labels) // SEVERITIES
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(labels):
            raise DataError(
                f"{folder / self.kind}.npy: {images.dtype} {list(images.shape)}, expected uint8 "
                f"[{len(labels)}, side, side, 3] as labels.npy has {len(labels)} labels."
            )
        if count * SEVERITIES != len(labels) or count == 0:
            raise DataError(f"{folder}/labels.npy: {len(labels)} labels are not {SEVERITIES} severities of one set.")
        part = slice((self.severity - 1) * count, self.severity * count)
        chosen = np.asarray(labels[part]).astype(np.int64)
        if chosen.min() < 0 or chosen.max() >= num_classes:
            raise DataError(
                f"{folder}/labels.npy: labels up to {chosen.max()}, but the data set has {num_classes} "
                "classes; is it the other CIFAR's?"
            )
        return ArraySet(images[part], chosen)


def _array(place: Path) -> np.ndarray:
    """Return a memory-mapped array; nothing is ever unpickled."""
    try:
        return read_array(place, mmap_mode="c")
    except ValueError as error:
        raise DataError(f"{place} cannot be read ({one_line(error)}); download it again.") from error
