"""Images from any source, prepared exactly as a data set's are for evaluation, one batch at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.decode import rgb_pixels, why_unreadable
from kdrun.data.image_tree import images_in
from kdrun.data.listing import NAMED
from kdrun.display import legible
from kdrun.errors import DataError
from kdrun.hardware import available_cores


@dataclass(frozen=True)
class Preparation:
    """Preparation of images. image_size: side of the result; resize: as in `DatasetOptions`; streamed: True if the
    data set's files are resized as tensors during training, rather than by Pillow when decoded once; the pixels
    differ slightly."""

    image_size: int
    resize: str
    streamed: bool

    def __call__(self, image: Any) -> np.ndarray:
        """Return an image as RGB uint8 [image_size, image_size, 3].

        image: a PIL image, a path, or an array uint8 [H, W, 3] (RGB) or [H, W] (grey). Raises TypeError for anything
        else, and whatever Pillow raises for a damaged file.
        """
        from PIL import Image

        if isinstance(image, str | os.PathLike):
            with Image.open(image) as opened:
                return self(opened)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            kind = f"array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise TypeError(f"an image is a path, a PIL image or an array uint8 [H, W, 3], not {kind}")
        if not self.streamed:
            return rgb_pixels(image, self.image_size)
        import torch

        from kdrun.data.transform import PlainView

        pixels = torch.from_numpy(rgb_pixels(image, None).copy()).permute(2, 0, 1)
        return PlainView(self.image_size, self.resize)(pixels).permute(1, 2, 0).numpy()


@dataclass(frozen=True)
class Read:
    """Batch of images: pixels uint8 [n, S, S, 3] of `paths`, and (path, reason) for unreadable ones."""

    paths: list[Path]
    pixels: np.ndarray
    unreadable: list[tuple[Path, str]]


def find_images(place: Path, setting: str = "path") -> list[Path]:
    """Return `place` itself, or every image below it, sorted, as for data sets. setting: the setting that named the
    place.

    Raises DataError if there is none.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{setting}={legible(place)}: no such file or folder.")
    found = images_in(place)
    if not found:
        raise DataError(f"{setting}={legible(place)} contains no images ({NAMED}).")
    return found


def read_batches(paths: list[Path], prepare: Preparation, batch_size: int) -> Iterator[Read]:
    """Yield every batch in order, decoded by all cores while the previous one is processed; memory holds at most
    two."""
    starts = [*range(0, len(paths), batch_size), len(paths)]
    with ThreadPoolExecutor(available_cores()) as pool:
        waiting: list[tuple[list[Path], list[Future[np.ndarray | str]]]] = []
        for start in starts:
            chunk = paths[start : start + batch_size]
            if chunk:
                waiting.append((chunk, [pool.submit(read_one, path, prepare) for path in chunk]))
            if len(waiting) == 2 or (not chunk and waiting):
                yield gathered(*waiting.pop(0), prepare.image_size)


def read_one(path: Path, prepare: Preparation) -> np.ndarray | str:
    """Return the prepared pixels, or the reason why there are none."""
    try:
        return prepare(path)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and own types for damaged files
        return why_unreadable(error, path)


def gathered(paths: list[Path], futures: list[Future[np.ndarray | str]], side: int) -> Read:
    results = [(path, future.result()) for path, future in zip(paths, futures, strict=True)]
    good = [(path, pixels) for path, pixels in results if not isinstance(pixels, str)]
    bad = [(path, reason) for path, reason in results if isinstance(reason, str)]
    pixels = np.stack([one for _, one in good]) if good else np.empty((0, side, side, 3), np.uint8)
    return Read([path for path, _ in good], pixels, bad)
