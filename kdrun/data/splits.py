"""A data set as the rest of kdrun sees it, and the one way in which anything is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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
    """Image files that are read while training: paths relative to root, labels int64 [N]. resized: what is kept of
    them, which is then read instead."""

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
    """Splits of one kind, class names in label order, and the notes a user should read once. unreadable: (image, why)
    of those that were left out."""

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


def first_of(count: int, fraction: float) -> int:
    """Return how many images of a class of `count` a stratified split puts first."""
    return min(max(round(fraction * count), 1), count - 1)


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of (first, rest), each sorted: `fraction` of every class, rounded, goes first.

    At least one image of each class lands on either side, so a class needs two. The split depends on labels, fraction
    and seed alone. Raises DataError where a class is too small.
    """
    generator = np.random.default_rng(seed)
    by_class = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[by_class])) + 1
    first = []
    for members in np.split(by_class, ends) if len(labels) else ():
        if len(members) < 2:
            label = int(labels[members[0]])
            name = class_names[label] if class_names else label
            raise DataError(f"class {name} has {len(members)} image(s); a stratified split needs two of every class.")
        first.append(generator.permutation(members)[: first_of(len(members), fraction)])
    is_first = np.zeros(len(labels), dtype=bool)
    is_first[np.concatenate(first)] = True
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def limited(data: AnySet, limit: int | None, seed: int, class_names: Sequence[str] = ()) -> AnySet:
    """A stratified sample of about `limit` images, or everything."""
    if limit is None or limit >= len(data):
        return data
    return data.take(stratified_split(data.labels, limit / len(data), seed, class_names)[0])
