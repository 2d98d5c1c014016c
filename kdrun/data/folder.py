"""Class-folder data sets of any size: train/val/test folders, or one flat tree that is split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kdrun.data.image_tree import Tree, same_classes, scan
from kdrun.data.splits import FileSet, stratified_split
from kdrun.errors import DataError

VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Source:
    """The trees that were found; `flat` holds everything where there are no train/test folders."""

    train: Tree | None
    val: Tree | None
    test: Tree | None
    flat: Tree | None

    def fingerprint(self) -> str:
        trees = [tree.fingerprint() if tree else "-" for tree in (self.train, self.val, self.test, self.flat)]
        return hashlib.sha256(" ".join(trees).encode()).hexdigest()


def locate(root: str | None) -> Source:
    """Scan dataset.root. With train/ and val/ but no test/, val/ is the test set (ImageNet's convention)."""
    if root is None:
        raise DataError("dataset.root is not set: give the folder that holds train/ and val/, or one folder per class.")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise DataError(f"dataset.root={root}: no such folder. Expected train/ and val/ (and test/), or class folders.")
    if not (base / "train").is_dir():
        return Source(None, None, None, scan(base))
    val_folder = next((base / name for name in VAL_NAMES if (base / name).is_dir()), None)
    train = scan(base / "train")
    val = scan(val_folder) if val_folder else None
    test = scan(base / "test") if (base / "test").is_dir() else None
    if test is None:
        val, test = None, val
    if test is None:
        raise DataError(f"dataset.root={root} has train/ but neither test/ nor val/; add one, or point root at train/.")
    for other in (val, test):
        if other is not None:
            same_classes(train, other)
    return Source(train, val, test, None)


def split(source: Source, train_fraction: float, seed: int) -> tuple[FileSet, FileSet | None, FileSet, list[str]]:
    """(train, val or None, test, class names)."""
    if source.flat is not None:
        files = source.flat.files()
        first, rest = stratified_split(files.labels, train_fraction, seed)
        return files.take(first), None, files.take(rest), source.flat.class_names
    assert source.train is not None and source.test is not None
    val = source.val.files() if source.val else None
    return source.train.files(), val, source.test.files(), source.train.class_names
