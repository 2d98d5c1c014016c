"""Class-folder trees: <root>/<class name>/**/<image>. Nothing is decoded here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdrun.data.splits import FileSet
from kdrun.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Tree:
    """Sorted relative paths with byte sizes and labels; labels follow the alphabetical order of the class names."""

    root: Path
    paths: list[str]
    sizes: list[int]
    labels: np.ndarray
    class_names: list[str]

    def fingerprint(self) -> str:
        """SHA-256 over relative paths and sizes: content enough to tell data sets apart without reading them."""
        digest = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes, strict=True):
            digest.update(f"{path}\0{size}\n".encode())
        return digest.hexdigest()

    def files(self) -> FileSet:
        return FileSet(self.root, self.paths, self.labels)


def scan(root: Path) -> Tree:
    """List the images of every class folder under `root`. Raises DataError for no classes or an empty one."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{root} holds no class folders; expected {root}/<class name>/<image>.png and so on.")
    paths: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(root / name, name))
        if not found:
            raise DataError(
                f"class folder {root / name} holds no images ({', '.join(SUFFIXES)}); add some or remove it."
            )
        paths += [path for path, _ in found]
        sizes += [size for _, size in found]
        labels += [label] * len(found)
    return Tree(root, paths, sizes, np.asarray(labels, dtype=np.int64), classes)


def _images(folder: Path, prefix: str) -> list[tuple[str, int]]:
    found = []
    for entry in os.scandir(folder):
        if entry.is_dir():
            found += _images(Path(entry.path), f"{prefix}/{entry.name}")
        elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            found.append((f"{prefix}/{entry.name}", entry.stat().st_size))
    return found


def same_classes(reference: Tree, other: Tree) -> None:
    """Raise DataError unless both trees have the same classes."""
    only = sorted(set(reference.class_names) ^ set(other.class_names))
    if only:
        where = reference.root if only[0] in reference.class_names else other.root
        raise DataError(
            f"{reference.root} and {other.root} differ in {len(only)} class(es): {only[0]!r} exists only in {where}."
        )
