"""Listing of the images in a folder: the one rule for data sets, predict and gradcam. No file is opened here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from kdrun.display import legible, plural
from kdrun.errors import DataError

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif", ".tif", ".tiff"),
    *(".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga"),
)
IMAGES = frozenset(SUFFIXES)
NAMED = "png, jpg, webp, tif, bmp, gif, ppm, jp2, avif …"  # SUFFIXES for an error's line
RESERVED = ("@", "__")  # beginnings of a folder's name: @eaDir of a NAS, __MACOSX of a zip file
JUNK = {
    *("lost+found", "#recycle", "$recycle.bin", "system volume information"),
    *("@eadir", "@tmp", "@recycle", "__macosx", "__pycache__"),
}
BESIDE = {  # files that are not meant as images
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".htm"),
    *(".db", ".ini", ".log", ".py", ".ipynb", ".sh", ".zip", ".gz", ".tar", ".xlsx", ".pdf", ".url", ".lnk"),
    *(".cache", ".lock", ".sha256", ".md5"),
}
LOOKED_AT = 1000  # files of a folder that is not read, among which an image is looked for
GONE = -1  # size of a file that does not exist: a broken link

Place = tuple[int, int]  # device and inode: identity of a folder or file, independent of its name


# (path relative to the listed folder or its data set, with slashes; size; a mark that changes whenever the file does).
# A plain tuple: there may be a million.
ImageFile = tuple[str, int, int]


FolderMark = tuple[str, int, float]  # (path and mark as for an image, time of last change)


@dataclass
class Listing:
    """Images of a folder and of its subfolders. places: path -> identity of the file, if links were followed;
    others: suffix -> number of files that are not images of a known kind; doubled: links to files that are already
    there; folders: those that were read, in their state before; passed_over: those that may be a user's and were not
    read; linked: True if there was a link among their entries."""

    files: list[ImageFile] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    folders: list[FolderMark] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    linked: bool = False


def is_passed_over(folder: str) -> bool:
    """Return True if a folder of this name is not read: it belongs to a program, or is named as if it did."""
    return folder.startswith(RESERVED) or is_of_a_program(folder)


def is_of_a_program(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in JUNK


def entries_of(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder. Raises DataError."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(f"folder {legible(folder)} cannot be read ({error.strerror}).") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folders_in(folder: str | os.PathLike[str]) -> list[str]:
    """Return the names of the subfolders of a folder, except those of programs."""
    return sorted(entry.name for entry in entries_of(folder) if is_folder(entry) and not is_passed_over(entry.name))


def images_beside(folder: str | os.PathLike[str]) -> int:
    """Return the number of images directly in a folder."""
    return sum(is_image(entry.name) and not is_folder(entry) for entry in entries_of(folder))


def holds_images(folder: str | os.PathLike[str], most: int | None = None) -> bool:
    """Return True if there is any image in a folder or its subfolders. most: number of files to look at."""
    return any(map(is_image, islice(files_below(folder), most)))


def files_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the names of the files in a folder and its subfolders, each as soon as it is found; none of a folder that
    cannot be read."""
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(entry.path)
            else:
                yield entry.name


def not_read(folder: Path, names: Iterable[str]) -> str:
    """Return "images in a/, a/b/ are not read" for those of a folder's subfolders that hold images; "" if none does."""
    place = folder.name or folder
    found = [legible(f"{place}/{name}/") for name in names if holds_images(folder / name, LOOKED_AT)]
    more = f" and {plural(len(found) - 3, 'more folder')}" if len(found) > 3 else ""
    return f"images in {', '.join(found[:3])}{more} are not read" if found else ""


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_images(root: Path, folder: str = "") -> Listing:
    """List the images of root/folder and of all its subfolders, sorted by path.

    Links are followed, except to an enclosing folder; files reached twice by links are counted once.
    """
    walk = _Walk(root)
    top = root / folder
    above = [*top.absolute().parents, *top.resolve().parents]
    walk.met = {place_of(os.stat(parent)) for parent in above}
    walk.into(os.fspath(top), f"{folder}/" if folder else "")
    if walk.links:
        walk.listing.linked = True
        walk.follow()
    walk.listing.files.sort()
    return walk.listing


class _Walk:
    """Walk through folders. met: folders seen, and files once links are followed; links: deferred until everything
    else is known, so that the order of names does not decide which of two entries is the link."""

    def __init__(self, root: Path):
        self.root, self.listing = root, Listing()
        self.met: set[Place] = set()
        self.links: list[tuple[os.DirEntry[str], str]] = []

    def into(self, folder: str, prefix: str) -> None:
        """Add the content of a folder."""
        stat = os.stat(folder)
        self.met.add(place_of(stat))
        self.listing.folders.append(folder_of(prefix, stat))
        for entry in entries_of(folder):
            name = entry.name
            if entry.is_file(follow_symlinks=False):  # opening a pipe would block
                if not name.startswith("."):
                    self.add(entry, prefix + name)
            elif is_folder(entry) and is_passed_over(name):
                if not is_of_a_program(name):
                    self.listing.passed_over.append(prefix + name)
            elif entry.is_symlink():
                if is_folder(entry) or not name.startswith("."):
                    self.links.append((entry, prefix + name))
            elif entry.is_dir() and place_of(entry.stat()) not in self.met:
                self.into(entry.path, f"{prefix}{name}/")

    def add(self, entry: os.DirEntry[str], path: str) -> None:
        """Add a file if it is an image."""
        suffix = suffix_of(entry.name)
        if suffix in IMAGES:
            self.listing.files.append(image_file(path, entry.stat()))
        elif suffix not in BESIDE:
            self.listing.others[suffix] += 1

    def follow(self) -> None:
        """Add the targets of links, unless they are already there."""
        places = self.listing.places
        places.update(places_of(self.root, self.listing))
        self.met |= set(places.values())
        while self.links:
            entry, path = self.links.pop(0)
            try:
                place = place_of(entry.stat())
            except OSError:  # a broken link counts as an unreadable image if it is named like one
                if suffix_of(entry.name) in ("", *SUFFIXES):
                    self.listing.files.append((path, GONE, 0))
                continue
            if place in self.met:
                self.listing.doubled += entry.is_dir() or is_image(entry.name)
            elif entry.is_dir():
                self.into(entry.path, f"{path}/")
            elif entry.is_file():
                self.met.add(place)
                self.add(entry, path)
        places.update(places_of(self.root, self.listing))


def places_of(root: Path, listing: Listing) -> dict[str, Place]:
    """Return path -> identity of the file, for existing files."""
    return {path: place_of(os.stat(root / path)) for path, size, _ in listing.files if size != GONE}


def image_file(path: str, stat: os.stat_result) -> ImageFile:
    """Return a file as recorded by the file system."""
    return path, stat.st_size, mark_of(stat)


def folder_of(path: str, stat: os.stat_result) -> FolderMark:
    """Return a folder as recorded by the file system: its times change with the names in it."""
    return path, mark_of(stat), max(stat.st_mtime, stat.st_ctime)


def mark_of(stat: os.stat_result) -> int:
    """Return a number that changes whenever a file or folder does; the same in every process."""
    return hash((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def suffix_of(name: str) -> str:
    """Return the suffix in lower case: .jpg for cat.JPG; an empty string for a name without one."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def place_of(stat: os.stat_result) -> Place:
    return stat.st_dev, stat.st_ino


def others_in_words(others: Counter[str]) -> Iterator[str]:
    """Yield the number of files for each suffix, as in "6 files of .heic", the most frequent first."""
    for suffix, count in others.most_common():
        yield f"{plural(count, 'file')} {f'of {legible(suffix)}' if suffix else 'without a suffix'}"
