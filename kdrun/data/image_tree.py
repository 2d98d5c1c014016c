"""Class-folder trees: <root>/<class name>/**/<image>. Nothing is decoded here."""

from __future__ import annotations

import os
import time
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.content import by_content
from kdrun.data.listing import (
    NAMED,
    Listing,
    Place,
    entries_of,
    folder_of,
    folders_in,
    images_beside,
    is_folder,
    is_of_a_program,
    is_passed_over,
    list_images,
    not_read,
    others_in_words,
    places_of,
    suffix_of,
)
from kdrun.data.splits import FileSet
from kdrun.data.tree_index import Known, remember, remembered
from kdrun.display import legible, plural
from kdrun.errors import DataError

DEEPER = 3  # levels of nested folders that are searched for a data set


@dataclass(frozen=True)
class Tree:
    """Images in the order of their classes, with labels; classes are in alphabetical order, or in another tree's
    order. paths are relative, as in the file system, and not always printable text. sizes, marks: as in `ImageFile`;
    notes: what a user should know about how the folders were read."""

    root: Path
    paths: list[str]
    sizes: list[int]
    marks: list[int]
    labels: np.ndarray
    class_names: list[str]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def content(self) -> str:
        return by_content(self.root, list(zip(self.paths, self.sizes, self.marks, strict=True)))

    def __getstate__(self) -> dict[str, Any]:
        """Return a minimal state, since every task of a sweep sends it to another process. The file system's marks
        of the files are covered by `content`."""
        kept = {**vars(self), "content": self.content, "sizes": None, "marks": None}
        kept["paths"] = zlib.compress("\0".join(self.paths).encode(errors="surrogateescape"))
        return kept | {"labels": zlib.compress(self.labels.tobytes())}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        paths = zlib.decompress(kept["paths"]).decode(errors="surrogateescape").split("\0")
        labels = np.frombuffer(bytearray(zlib.decompress(kept["labels"])), dtype=np.int64)
        vars(self).update(kept, paths=paths, labels=labels, sizes=[0] * len(paths), marks=[0] * len(paths))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tree's content, independent of its location: equal for the same images under the
        same names."""
        return self.content

    def files(self) -> FileSet:
        return FileSet(self.root, self.paths, self.labels)


def class_name(folder: str) -> str:
    """Return the class name of a folder, normalised since two systems may encode a name differently."""
    return unicodedata.normalize("NFC", legible(folder))


def scan(root: Path, may_be_empty: bool = False) -> Tree:
    """List the images of every class folder under `root`, or recall them if no folder has changed. Raises DataError
    if there are no class folders, or an empty one that is not allowed."""
    known = remembered(root)
    if known is None:
        begun, above = time.time(), folder_of("", os.stat(root))
        found = listed(root, may_be_empty)
        listings = {name: listing for name, listing in found.items() if listing.files}
        files = [file for listing in listings.values() for file in listing.files]
        counts = [len(listing.files) for listing in listings.values()]
        labels = np.repeat(np.arange(len(listings), dtype=np.int64), counts)
        known = Known(files, labels, list(listings), notes_on(root, listings))
        # With links, or classes without images, the result depends on other folders and settings.
        if len(listings) == len(found) and not any(listing.linked for listing in found.values()):
            remember(root, known, [above, *(one for listing in listings.values() for one in listing.folders)], begun)
    paths, sizes, marks = (list(column) for column in zip(*known.files, strict=True))
    return Tree(root, paths, sizes, marks, known.labels, known.class_names, known.notes)


def listed(root: Path, may_be_empty: bool) -> dict[str, Listing]:
    """Return class name -> content of its folder. Raises DataError as `scan` does."""
    names = class_folders(root)
    found = [(name, list_images(root, folder), folder) for name, folder in sorted(names.items())]
    empty = [folder for _, listing, folder in found if not listing.files]
    if empty and not may_be_empty:
        listing = next(listing for _, listing, _ in found if not listing.files)
        instead = f"; it contains {', '.join(others_in_words(listing.others))}" if listing.others else ""
        raise DataError(
            f"class folder {legible(root / empty[0])} contains no images ({NAMED}){instead}; add some or remove it."
        )
    if len(empty) == len(found):
        raise DataError(f"{legible(root)} contains no images.")
    return {name: listing for name, listing, _ in found}


def class_folders(root: Path) -> dict[str, str]:
    """Return class name -> folder. Raises DataError."""
    names: dict[str, str] = {}
    for entry in entries_of(root):
        if is_folder(entry) and not is_passed_over(entry.name):
            name = class_name(entry.name)
            if name in names:
                raise DataError(f"{legible(root)} has two folders named {name}; put their images into one.")
            names[name] = entry.name
        elif entry.is_symlink() and not is_passed_over(entry.name) and not suffix_of(entry.name):
            raise_where_gone(entry)
    if not names:
        loose = images_beside(root)
        instead = f", only {plural(loose, 'image')} outside of any" if loose else ""
        aside = "".join(f"; {note}" for note in passed_over(root))
        raise DataError(
            f"{legible(root)} has no class folders{instead}; expected {legible(root)}/<class name>/<image>.png and "
            f"so on{aside}."
        )
    return names


def raise_where_gone(link: os.DirEntry[str]) -> None:
    """Raise DataError for a broken link: its target may have been a class."""
    if not os.path.exists(link.path):
        raise DataError(f"{legible(link.path)} is a broken link; repair or remove it.")


def notes_on(root: Path, listings: dict[str, Listing]) -> list[str]:
    """Return notes on files that were not read, and on links."""
    notes = []
    others: Counter[str] = Counter()
    for listing in listings.values():
        others += listing.others
    place = legible(root.name or root)
    if others:
        shown = list(others_in_words(others))
        more = f" and {len(shown) - 3} other kinds" if len(shown) > 3 else ""
        are = "is" if others.total() == 1 else "are"
        notes.append(f"{', '.join(shown[:3])}{more} in {place}/ {are} not read")
    if loose := images_beside(root):
        notes.append(f"{plural(loose, 'image')} in {place}/ outside of any class folder: not read")
    if doubled := sum(listing.doubled for listing in listings.values()):
        are = "is" if doubled == 1 else "are"
        notes.append(f"{plural(doubled, 'link')} in {place}/ to files that are already there {are} not followed")
    notes += passed_over(root, [path for listing in listings.values() for path in listing.passed_over])
    folders = {name: inner for name, listing in listings.items() if len(inner := folders_alone(listing)) > 1}
    if folders:
        name, inner = next(iter(folders.items()))
        more = f"; so do {len(folders) - 1:,} more" if len(folders) > 1 else ""
        shown = f"{', '.join(map(legible, inner[:3]))}{' …' if len(inner) > 3 else ''}"
        notes.append(f"the class {name} has its images in several folders ({shown}), which count as one class{more}")
        if len(folders) == len(listings) and all(other == inner for other in folders.values()):
            notes[-1] += "; all have the same: if these are the classes, or splits, put them above the others"
    return notes + in_two_classes(root, listings)


def passed_over(root: Path, deeper: Sequence[str] = ()) -> list[str]:
    """Return a note on folders with images that are not read because of how their names begin. deeper: such folders
    inside of the classes."""
    names = [entry.name for entry in entries_of(root) if is_folder(entry) and is_passed_over(entry.name)]
    what = not_read(root, sorted([*(name for name in names if not is_of_a_program(name)), *deeper]))
    reason = "folders that begin with @ or __ are passed over; rename what belongs to the data"
    return [f"{what}: {reason}"] if what else []


def folders_alone(listing: Listing) -> list[str]:
    """Return the folders in which a class has its images, if it has none directly."""
    inside = [path.split("/")[1:] for path, _, _ in listing.files]
    return [] if any(len(parts) == 1 for parts in inside) else sorted({parts[0] for parts in inside})


def in_two_classes(root: Path, listings: dict[str, Listing]) -> list[str]:
    """Return a note if links put one file into several classes."""
    if not any(listing.places for listing in listings.values()):
        return []
    owner: dict[Place, str] = {}
    shared: list[tuple[str, str, str]] = []
    for name, listing in listings.items():
        for path, place_in in (listing.places or places_of(root, listing)).items():
            other = owner.setdefault(place_in, name)
            if other != name:
                shared.append((path, other, name))
    if not shared:
        return []
    path, *both = shared[0]
    where = f"the first {legible(path)} in {' and '.join(both)}"
    return [f"{len(shared):,} files in {legible(root.name)}/ are in two classes by links, {where}"]


def inner_folder(folder: Path) -> Path | None:
    """Return the only subfolder of a folder that contains nothing else, if it holds folders but no images: the data
    set is one level deeper."""
    names = folders_in(folder)
    if len(names) != 1 or images_beside(folder):
        return None
    inner = folder / names[0]
    return inner if folders_in(inner) and not images_beside(inner) else None


def descend(folder: Path) -> Path:
    """Return `folder`, or the nested folder that contains its class folders."""
    for _ in range(DEEPER):
        inner = inner_folder(folder)
        if inner is None:
            break
        folder = inner
    return folder


def check_classes(tree: Tree) -> None:
    """Raise DataError for a training set with only one class."""
    if len(tree.class_names) < 2:
        aside = "".join(f"; {note}" for note in passed_over(tree.root))
        raise DataError(
            f"{legible(tree.root)} has only one class, {tree.class_names[0]}; expected a "
            f"folder for each of two or more classes{aside}."
        )


def refuse_empty_classes(tree: Tree, readable: np.ndarray) -> None:
    """Raise DataError if a class of a tree has no readable image. readable: labels of the readable ones."""
    lost = [tree.class_names[label] for label in np.setdiff1d(tree.labels, readable)]
    if lost:
        raise DataError(
            f"no image of {classes(lost)} in {legible(tree.root)} can be read; kdrun data FOLDER lists damaged ones."
        )


def aligned(reference: Tree, other: Tree, may_lack: bool) -> Tree:
    """Return `other` with the labels of `reference`. Raises DataError if it has a class that `reference` lacks, or
    lacks one that it may not."""
    if reference.root.resolve() == other.root.resolve():
        raise DataError(f"{legible(reference.root)} and {legible(other.root)} are the same folder; remove the link.")
    known = {name: label for label, name in enumerate(reference.class_names)}
    unknown = [name for name in other.class_names if name not in known]
    if unknown:
        alike = {name.strip().casefold(): name for name in reference.class_names}
        for name in unknown:
            if (twin := alike.get(name.strip().casefold())) is not None:
                raise DataError(
                    f"{legible(other.root)} has the class {name!r} and {legible(reference.root)} the class {twin!r}: "
                    "if they are the same, rename one of the folders."
                )
        raise DataError(
            f"{legible(other.root)} has {classes(unknown)}, which {legible(reference.root)} lacks; a class "
            f"without training images cannot be tested: add images of {'it' if len(unknown) == 1 else 'them'} there, "
            f"or remove the {'folder' if len(unknown) == 1 else 'folders'}."
        )
    lacking = [name for name in reference.class_names if name not in other.class_names]
    if lacking and not may_lack:
        raise DataError(
            f"{legible(other.root)} lacks {classes(lacking)} of {legible(reference.root)}; add images, or set "
            "dataset.allow_missing_classes=true."
        )
    if not lacking:
        return other
    moved = np.array([known[name] for name in other.class_names], dtype=np.int64)
    note = f"{legible(other.root.name)}/ lacks {classes(lacking)} of {legible(reference.root.name)}/"
    return replace(other, labels=moved[other.labels], class_names=reference.class_names, notes=[*other.notes, note])


def classes(names: list[str], most: int = 8) -> str:
    """Return names as text: the class cat, or 12 classes (ant, bee …)."""
    shown = [name if name == name.strip() else repr(name) for name in names]
    if len(names) == 1:
        return f"the class {shown[0]}"
    return f"{len(names)} classes ({', '.join(shown[:most])}{' …' if len(names) > most else ''})"


def images_in(place: Path) -> list[Path]:
    """Return the images of a folder and of all its subfolders."""
    return [place / path for path, _, _ in list_images(place).files]
