"""Images for `kdrun gradcam`: some of the run's own, or files, prepared as for evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdrun.config.arguments import parts_of
from kdrun.config.options import DatasetOptions
from kdrun.data.datasets import STREAMED
from kdrun.data.decode import cannot_be_read
from kdrun.data.image_tree import class_name
from kdrun.data.inference import Preparation, find_images, read_one
from kdrun.data.splits import AnySet, ArraySet
from kdrun.display import legible
from kdrun.errors import ConfigError
from kdrun.training.build import Data


@dataclass(frozen=True)
class Images:
    """Images with labels. pixels: uint8 [N, S, S, 3]; labels: [N] int64, -1 if the class is unknown; names: of the
    files, or numbers."""

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def own_images(chosen: AnySet, count: int, options: DatasetOptions) -> Images:
    """Return the first `count` images of `spread`, prepared."""
    order = spread(chosen.labels)[:count]
    part = chosen.take(order)
    if isinstance(part, ArraySet):
        pixels = np.ascontiguousarray(part.images)
    else:
        pixels = np.stack([prepared(part.root / path, options) for path in part.paths])
    return Images(pixels, part.labels, [str(number) for number in order])


def spread(labels: np.ndarray) -> np.ndarray:
    """Return all positions in a fixed random order, one of every class before any second one."""
    order = np.random.default_rng(0).permutation(len(labels))
    seen: dict[int, int] = {}
    turns = []
    for label in labels[order].tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return order[np.argsort(turns, kind="stable")]


def files_named(word: str) -> list[Path]:
    """Return the image files given by images=…. Raises ConfigError or DataError."""
    found: list[Path] = []
    for part in parts_of(word, Path, {}):
        path = Path(os.path.expanduser(part))
        if not path.exists():
            raise ConfigError(f"images={part}: no such file or folder (or give a number of the run's own images).")
        found += find_images(path, "images")
    return found


def read_files(files: list[Path], data: Data) -> tuple[Images, list[tuple[Path, str]]]:
    """Read the images, and return (file, reason) for unreadable ones. The name of a file's folder is its class, if the
    data set has such a class.

    Raises DataError if none can be read.
    """
    classes = {name: label for label, name in enumerate(data.splits.class_names)}
    read = [(path, read_one(path, preparation(data.config.dataset))) for path in files]
    good = [(path, pixels) for path, pixels in read if not isinstance(pixels, str)]
    unreadable = [(path, reason) for path, reason in read if isinstance(reason, str)]
    if not good:
        raise cannot_be_read(*unreadable[0])
    labels = np.array([classes.get(class_name(path.absolute().parent.name), -1) for path, _ in good], dtype=np.int64)
    return Images(np.stack([pixels for _, pixels in good]), labels, [legible(path) for path, _ in good]), unreadable


def preparation(options: DatasetOptions) -> Preparation:
    """Return the preparation of an image for evaluation, before normalisation."""
    return Preparation(options.image_size, options.resize, options.name in STREAMED)


def prepared(path: Path, options: DatasetOptions) -> np.ndarray:
    """Return one image of the data set: uint8 [S, S, 3]. Raises DataError."""
    pixels = read_one(path, preparation(options))
    if isinstance(pixels, str):
        raise cannot_be_read(path, pixels)
    return pixels


def batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
