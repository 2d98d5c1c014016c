"""Number of images in each split of a run, without decoding any of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdrun.config.options import DatasetOptions
from kdrun.data import cifar, digits, folder
from kdrun.data.datasets import STREAMED, DataSource
from kdrun.data.splits import first_of


@dataclass(frozen=True)
class Counts:
    """Number of images by split, and the bytes that they take in memory if all are held there."""

    train: int
    test: int
    val: int
    in_memory: int


def counts_of(source: DataSource) -> Counts:
    """Return the counts of the splits that `DataSource.load` would make."""
    options = source.options
    train, val, test = _classes(source)
    train, test = _limited(train, options.train_limit), _limited(test, options.test_limit)
    if options.val_fraction and not val.sum():
        kept = _share(train, 1 - options.val_fraction)
        train, val = kept, train - kept
    if options.evaluate_on == "val":
        test, val = val, np.zeros_like(val)
    total = int(train.sum()), int(test.sum()), int(val.sum())
    held = 0 if options.name in STREAMED else sum(total) * 3 * options.image_size**2
    return Counts(*total, held)


def _classes(source: DataSource) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images of each class in (train, val, test)."""
    options, located, none = source.options, source.located, np.zeros(1, dtype=np.int64)
    if isinstance(located, folder.Source) and located.flat is not None:
        flat = np.bincount(located.flat.labels)
        first = _share(flat, source.train_fraction)
        return first, none, flat - first
    if isinstance(located, folder.Source):
        train, val, test = (
            none if tree is None else np.bincount(tree.labels) for tree in (located.train, located.val, located.test)
        )
        return train, val, test
    if isinstance(located, cifar.Source):
        if located.trees:
            return np.bincount(located.trees[0].labels), none, np.bincount(located.trees[1].labels)
        each = 50_000 // source.num_classes
        return np.full(source.num_classes, each), none, np.full(source.num_classes, each // 5)
    if options.name == "digits":
        every = np.array(digits.CLASS_SIZES)
        first = _share(every, source.train_fraction)
        return first, none, every - first
    return _even(options, options.fake_train), none, _even(options, options.fake_test)


def _even(options: DatasetOptions, count: int) -> np.ndarray:
    return np.diff(np.linspace(0, count, options.fake_classes + 1).astype(np.int64))


def _share(classes: np.ndarray, fraction: float) -> np.ndarray:
    """Return the counts that `stratified_split` puts first of each class."""
    return np.array([first_of(int(count), fraction) for count in classes])


def _limited(classes: np.ndarray, limit: int | None) -> np.ndarray:
    """Return the counts that `limited` takes."""
    total = int(classes.sum())
    return classes if limit is None or limit >= total else _share(classes, limit / total)
