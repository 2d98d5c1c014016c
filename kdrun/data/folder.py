"""Class-folder data sets of any size: train/val/test folders, or one flat tree that is split."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdrun.data import readable
from kdrun.data.image_tree import DEEPER, Tree, aligned, check_classes, descend, scan
from kdrun.data.listing import entries_of, folders_in, holds_images, images_beside, is_folder, is_of_a_program, not_read
from kdrun.data.splits import FileSet, stratified_split
from kdrun.display import Track, legible, untracked
from kdrun.errors import DataError

# Names of a split's folder, in any case and with _, - or spaces: train, Training, TRAIN_SET, seg_train …
ENDINGS = r"(set|data|images|imgs|split|folder)?"
ROLES = {
    "train": re.compile(rf"(seg)?train(ing)?{ENDINGS}"),
    "val": re.compile(rf"(seg)?(val|valid|validation|dev){ENDINGS}"),
    "test": re.compile(rf"(seg)?(test|testing|eval|evaluation){ENDINGS}"),
}
PLAIN = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # preferred names


@dataclass(frozen=True)
class Source:
    """Located trees; `flat` holds everything if there are no train/test folders."""

    train: Tree | None
    val: Tree | None
    test: Tree | None
    flat: Tree | None
    notes: list[str] = field(default_factory=list)

    @property
    def trees(self) -> list[Tree]:
        return [tree for tree in (self.flat, self.train, self.val, self.test) if tree is not None]

    @property
    def root(self) -> Path:
        """Return the folder of the data set."""
        return self.flat.root if self.flat is not None else self.trees[0].root.parent

    def fingerprint(self) -> str:
        trees = [tree.fingerprint() if tree else "-" for tree in (self.train, self.val, self.test, self.flat)]
        return hashlib.sha256(" ".join(trees).encode()).hexdigest()


def locate(root: str | None, may_lack: bool = False) -> Source:
    """Scan dataset.root. With train/ and val/ but no test/, val/ is the test set (ImageNet's convention). may_lack:
    True if val/ and test/ may lack classes of train/."""
    if root is None:
        raise DataError("dataset.root is not set: give the folder with train/ and val/, or with one folder per class.")
    given = Path(os.path.expanduser(root))
    if not given.is_dir():
        what = "is a file: unpack it, and give the folder" if given.exists() else "no such folder"
        raise DataError(f"dataset.root={root}: {what}. Expected train/ and val/ (and test/), or class folders.")
    base, found = find_splits(given)
    notes = [] if base == given else [f"the data set is in {legible(base)}"]
    if not found:
        tree = scan(base)
        check_classes(tree)
        return Source(None, None, None, tree, [*notes, *tree.notes])
    named = " and ".join(f"{legible(folder.name)}/" for folder in found.values())
    if "train" not in found:
        raise DataError(
            f"dataset.root={root} has {named} but no training images: expected a folder train/ as well, or one folder "
            f"per class. kdrun eval RUN split=all measures on such a folder alone: point root at it."
        )
    if len(found) == 1:
        raise DataError(
            f"dataset.root={root} has {named} but neither test/ nor val/; add one, or point root at {named}."
        )
    train = scan(descend(found["train"]))
    check_classes(train)
    held = {
        role: aligned(train, scan(descend(found[role]), may_be_empty=may_lack), may_lack)
        for role in ("val", "test")
        if role in found
    }
    test = held.get("test", held.get("val"))
    val = held.get("val") if "test" in held else None
    notes += unread(base, found)
    notes += [note for tree in (train, *held.values()) for note in tree.notes]
    return Source(train, val, test, None, notes)


def find_splits(given: Path) -> tuple[Path, dict[str, Path]]:
    """Return (the folder of the data set, role -> folder of a split): `given`, or the only data set in it, possibly
    some levels deeper. Without splits the folder holds class folders. Raises DataError."""
    base = given
    for _ in range(DEEPER):
        inner = None if split_folders(base) else the_only_data_set(base)
        if inner is None:
            break
        base = inner
    found = split_folders(base)
    refuse_unsorted(base, found)
    return base, found


def the_only_data_set(folder: Path) -> Path | None:
    """Return the only subfolder that holds train/ and so on, or that holds class folders while no other folder has
    any images. Raises DataError for several with train/."""
    inside = [folder / name for name in folders_in(folder)]
    found = [path for path in inside if "train" in split_folders(path)]
    if len(found) > 1:
        names = ", ".join(legible(path.name) for path in found)
        raise DataError(f"{legible(folder)} has {len(found)} data sets ({names}); point dataset.root at one of them.")
    if not found and not any(map(images_beside, [folder, *inside])):
        found = [path for path in inside if holds_images(path)]
    return found[0] if len(found) == 1 and folders_in(found[0]) else None


def role_of(folder: str) -> str | None:
    """Return train, val or test if a folder's name means that, else None."""
    letters = re.sub(r"[^a-z]", "", folder.lower())
    return next((role for role, pattern in ROLES.items() if pattern.fullmatch(letters)), None)


def split_folders(base: Path) -> dict[str, Path]:
    """Return role -> folder, for folders that are named like a split and hold class folders.

    Raises DataError if two folders could be the same split.
    """
    named = [name for name in folders_in(base) if role_of(name)]
    found: dict[str, Path] = {}
    for role, plain in PLAIN.items():
        names = [name for name in named if role_of(name) == role and folders_in(base / name)]
        if len(named) == 1 and names and images_beside(base / names[0]):
            continue  # a class with this name (trains)
        chosen = next((name for name in plain if name in names), None)
        if len(names) > 1 and chosen is None:
            both = " and ".join(f"{legible(name)}/" for name in names)
            raise DataError(f"{legible(base)} has {both}, and each could be the {role} split; rename or remove one.")
        if names:
            found[role] = base / (chosen or names[0])
    return found


def unread(base: Path, found: dict[str, Path]) -> list[str]:
    """Return a note on folders beside the splits whose images are not read. found: role -> folder of a split."""
    read = {path.resolve() for path in found.values()}
    names = [entry.name for entry in entries_of(base) if is_folder(entry) and not is_of_a_program(entry.name)]
    what = not_read(base, sorted(name for name in names if (base / name).resolve() not in read))
    only = " and ".join(f"{legible(path.name)}/" for path in found.values())
    return [f"{what}, only those in {only}"] if what else []


def refuse_unsorted(base: Path, found: dict[str, Path]) -> None:
    """Raise DataError for a folder that is named like a split but holds no class folders. It is not a class either,
    unless it is the only such name and may be a vehicle's."""
    odd = [name for name in folders_in(base) if (role := role_of(name)) and role not in found]
    if not odd or (not found and odd in (["train"], ["Train"])):
        return
    name = legible(odd[0])
    raise DataError(
        f"{legible(base)}/{name} has no class folders: expected {name}/<class name>/<image>, or no such name among "
        "the classes."
    )


def split(source: Source, train_fraction: float, seed: int) -> tuple[FileSet, FileSet | None, FileSet, list[str]]:
    """Return (train, val or None, test, class names)."""
    if source.flat is not None:
        files = source.flat.files()
        first, rest = stratified_split(files.labels, train_fraction, seed, source.flat.class_names)
        return files.take(first), None, files.take(rest), source.flat.class_names
    assert source.train is not None and source.test is not None
    val = source.val.files() if source.val else None
    return source.train.files(), val, source.test.files(), source.train.class_names


def readable_part(source: Source, cache: Path, track: Track = untracked) -> tuple[Source, list[tuple[str, str]]]:
    """Return the source without unreadable images, and (image, reason) for those. Raises DataError for a class
    without readable images."""
    unreadable: list[tuple[str, str]] = []
    parts: dict[str, Tree | None] = {}
    for role in ("train", "val", "test", "flat"):
        tree = getattr(source, role)
        if tree is not None:
            tree, bad = readable.readable_part(tree, cache, track)
            unreadable += bad
        parts[role] = tree
    return replace(source, **parts), unreadable
