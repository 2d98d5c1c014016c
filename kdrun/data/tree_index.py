"""Index of the images in a tree, in the user's cache folder: as long as no folder has changed, none is listed again.

Rewriting a file in place does not change its folder's time, so the files' own times are still checked, except in trees
too large to be identified by content anyway.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdrun.data.content import SETTLED, WHOLE, index_place
from kdrun.data.listing import FolderMark, ImageFile, image_file, mark_of
from kdrun.errors import RunError
from kdrun.files import DAMAGED_ARCHIVE, write_atomically

WORTH = 10_000  # files; fewer are listed quickly
VERSION = 2  # of the rules for reading a tree, and of this file's format


@dataclass
class Known:
    """Result of listing a tree, as in `kdrun.data.image_tree.Tree`."""

    files: list[ImageFile]
    labels: np.ndarray
    class_names: list[str]
    notes: list[str]


def remembered(root: Path) -> Known | None:
    """Return the stored listing of a tree; None if there is none, or if a folder has changed since."""
    try:
        with np.load(index_place(root, ".npz"), allow_pickle=False) as found:
            if int(found["version"]) != VERSION:
                return None
            folders = zip(unpacked(found["folders"]), found["folder_marks"].tolist(), strict=True)
            if any(mark_of(os.stat(root / folder)) != mark for folder, mark in folders):
                return None
            paths, sizes, marks = unpacked(found["paths"]), found["sizes"].tolist(), found["marks"].tolist()
            names, notes, labels = unpacked(found["class_names"]), unpacked(found["notes"]), found["labels"]
        if sum(sizes) <= WHOLE:
            base = os.path.join(root, "")
            files = [image_file(path, os.stat(base + path)) for path in paths]
        else:
            files = list(zip(paths, sizes, marks, strict=True))
    except (OSError, ValueError, KeyError, *DAMAGED_ARCHIVE):  # missing, damaged, or a file no longer exists
        return None
    return Known(files, labels, names, notes) if len(files) == len(labels) else None


def remember(root: Path, known: Known, folders: list[FolderMark], begun: float) -> None:
    """Store the listing of a tree, if it took a while and the cache folder is writable. folders: those that were
    read; begun: start time. Anything that changed just before could change again within the same clock tick."""
    if len(known.files) < WORTH or max(changed for _, _, changed in folders) > begun - SETTLED:
        return
    paths, sizes, marks = zip(*known.files, strict=True)
    columns = {
        "version": np.array(VERSION),
        "folders": packed([folder for folder, _, _ in folders]),
        "folder_marks": np.array([mark for _, mark, _ in folders], dtype=np.int64),
        "paths": packed(paths),
        "sizes": np.array(sizes, dtype=np.int64),
        "marks": np.array(marks, dtype=np.int64),
        "labels": known.labels,
        "class_names": packed(known.class_names),
        "notes": packed(known.notes),
    }
    try:
        write_atomically(index_place(root, ".npz"), lambda file: np.savez(file, **columns))  # type: ignore[arg-type]
    except (RunError, zipfile.LargeZipFile):
        return


def packed(texts: list[str] | tuple[str, ...]) -> np.ndarray:
    """Pack texts of any encoding into one array."""
    return np.frombuffer("".join(f"{text}\0" for text in texts).encode(errors="surrogateescape"), dtype=np.uint8)


def unpacked(content: np.ndarray) -> list[str]:
    return content.tobytes().decode(errors="surrogateescape").split("\0")[:-1]
