"""Data sets as the rest of kdrun sees them, and the one way in which they are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdrun.display import plural
from kdrun.errors import DataError

if TYPE_CHECKING:
    from kdrun.data.resized import Resized


@dataclass(frozen=True)
class ArraySet:
    """Images in memory (or memory-mapped): images uint8 [N, H, W, 3], labels int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> ArraySet:
        return ArraySet(self.images[index], self.labels[index])


@dataclass(frozen=True)
class FileSet:
    """Image files that are read during training: paths relative to root, labels int64 [N]. resized: their cached
    pixels, which are read instead."""

    root: Path
    paths: list[str]
    labels: np.ndarray
    resized: Resized | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> FileSet:
        resized = None if self.resized is None else self.resized.take(index)
        return FileSet(self.root, [self.paths[i] for i in index], self.labels[index], resized)


AnySet = ArraySet | FileSet


@dataclass(frozen=True)
class Dataset:
    """Data set with splits of one kind, class names in label order, and notes for the user. unreadable: (image,
    reason) for those left out."""

    train: AnySet
    test: AnySet
    val: AnySet | None
    class_names: list[str]
    image_size: int
    notes: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def together(parts: Sequence[AnySet]) -> AnySet:
    """Return the images of several parts as one. Raises DataError if their files lie in several folders."""
    labels = np.concatenate([part.labels for part in parts])
    arrays = [part.images for part in parts if isinstance(part, ArraySet)]
    if len(arrays) == len(parts):
        return ArraySet(np.concatenate(arrays), labels)
    files = [part for part in parts if isinstance(part, FileSet)]
    if len({part.root for part in files}) > 1:
        raise DataError("split=all: these images have folders for their splits; measure on one of them.")
    return FileSet(files[0].root, [path for part in files for path in part.paths], labels)


def first_of(count: int, fraction: float) -> int:
    """Return how many of a class's `count` images a stratified split puts first."""
    return min(max(round(fraction * count), 1), count - 1)


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of (first, rest): `fraction` of every class, rounded, goes first.

    At least one image of each class is on either side, so a class needs two. The split depends only on labels, fraction
    and seed. Raises DataError if a class is too small.
    """
    generator = np.random.default_rng(seed)
    by_class = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[by_class])) + 1
    first = []
    for members in np.split(by_class, ends) if len(labels) else ():
        if len(members) < 2:
            label = int(labels[members[0]])
            name = class_names[label] if class_names else label
            raise DataError(f"class {name} has only {plural(len(members), 'image')}; a split needs at least two.")
        first.append(generator.permutation(members)[: first_of(len(members), fraction)])
    is_first = np.zeros(len(labels), dtype=bool)
    is_first[np.concatenate(first)] = True
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def limited(data: AnySet, limit: int | None, seed: int, class_names: Sequence[str] = ()) -> AnySet:
    """Return a stratified sample of about `limit` images, or everything."""
    if limit is None or limit >= len(data):
        return data
    return data.take(stratified_split(data.labels, limit / len(data), seed, class_names)[0])
