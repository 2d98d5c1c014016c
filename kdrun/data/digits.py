"""scikit-learn's handwritten digits: 1,797 real 8x8 images in ten classes, built into the package, so that the
default run needs no download (Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.splits import ArraySet
from kdrun.files import DAMAGED_ARCHIVE, write_atomically

CONTENT = "scikit-learn digits, 1797 images of 8x8 in 17 grey levels, bilinear"
CLASS_NAMES = [str(digit) for digit in range(10)]
CLASS_SIZES = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)


def load(image_size: int, cache: Path) -> ArraySet:
    """Return all images as [1797, image_size, image_size, 3] uint8: bilinearly enlarged, the grey level in each
    channel.

    Cached in `cache`, since importing scikit-learn takes longer than everything else at the start of a run.
    """
    place = cache / f"digits-{image_size}.npz"
    try:
        with np.load(place) as found:
            return ArraySet(found["images"], found["labels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, *DAMAGED_ARCHIVE):  # missing, or damaged
        made = enlarged(image_size)
    write_atomically(place, lambda file: np.savez(file, images=made.images, labels=made.labels))
    return made


def enlarged(image_size: int) -> ArraySet:
    from PIL import Image
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    side = (image_size, image_size)
    large = np.stack([np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)) for image in grey])
    return ArraySet(np.repeat(large[..., None], 3, axis=3), data.target.astype(np.int64))
