"""Which files of a folder are its images: the one rule for data sets, predict and gradcam. Nothing is opened here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdrun.display import legible
from kdrun.errors import DataError

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".gif", ".tif", ".tiff"),
    *(".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga"),
)
IMAGES = frozenset(SUFFIXES)
NAMED = "png, jpg, webp, tif, bmp, gif, ppm, jp2, avif …"  # SUFFIXES for an error's line
PASSED_OVER = (".", "@", "__")  # hidden folders, @eaDir of a NAS, __MACOSX of a zip file
JUNK = {"lost+found", "#recycle", "$recycle.bin", "system volume information"}
BESIDE = {  # files that nobody takes for images
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".html", ".htm"),
    *(".db", ".ini", ".log", ".py", ".ipynb", ".sh", ".zip", ".gz", ".tar", ".xlsx", ".pdf", ".url", ".lnk"),
    *(".cache", ".lock", ".sha256", ".md5"),
}
GONE = -1  # the size of a file that cannot be asked for one: a link to nothing

Place = tuple[int, int]  # device and inode: what a folder or file is, whatever it is called


# (path from the folder that was listed or from its data set, with slashes; size; a mark that changes whenever the file
# does). A plain tuple: there may be a million.
ImageFile = tuple[str, int, int]


FolderMark = tuple[str, int, float]  # (path like an image's, a mark like an image's, when it was last changed)


@dataclass
class Listing:
    """The images of a folder and of those inside it. places: path -> what file it is, where links were followed.
    others: suffix -> how many files are no images of a known kind. doubled: links to what is there already. folders:
    those that were read, as they were before; linked: whether there was a link among what they hold."""

    files: list[ImageFile] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    doubled: int = 0
    folders: list[FolderMark] = field(default_factory=list)
    linked: bool = False


def is_passed_over(folder: str) -> bool:
    """Whether a folder of this name belongs to a program and not to the data set."""
    return folder.startswith(PASSED_OVER) or folder.lower() in JUNK


def entries_of(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder. Raises DataError."""
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
    """Names of the folders in a folder, without those that belong to a program."""
    return sorted(entry.name for entry in entries_of(folder) if is_folder(entry) and not is_passed_over(entry.name))


def images_beside(folder: str | os.PathLike[str]) -> int:
    """How many images lie directly in a folder."""
    return sum(is_image(entry.name) and not is_folder(entry) for entry in entries_of(folder))


def holds_images(folder: str | os.PathLike[str]) -> bool:
    """Whether there is any image in a folder or in those inside it."""
    return any(is_image(name) for _, _, files in os.walk(folder) for name in files)


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_images(root: Path, folder: str = "") -> Listing:
    """The images of root/folder and of all folders inside it, sorted by path.

    Links are followed, except to a folder that this one lies in, and what links reach a second time is counted once.
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
    """A walk through folders. met: folders that were seen, and files once links are followed. links: those that wait
    until everything else is known, so that the order of names does not decide which of two is the link."""

    def __init__(self, root: Path):
        self.root, self.listing = root, Listing()
        self.met: set[Place] = set()
        self.links: list[tuple[os.DirEntry[str], str]] = []

    def into(self, folder: str, prefix: str) -> None:
        """Add what lies in a folder."""
        stat = os.stat(folder)
        self.met.add(place_of(stat))
        self.listing.folders.append(folder_of(prefix, stat))
        for entry in entries_of(folder):
            name = entry.name
            if entry.is_file(follow_symlinks=False):  # a pipe would be waited for
                if not name.startswith("."):
                    self.add(entry, prefix + name)
            elif entry.is_symlink():
                if not (is_passed_over(name) if is_folder(entry) else name.startswith(".")):
                    self.links.append((entry, prefix + name))
            elif entry.is_dir() and not is_passed_over(name) and place_of(entry.stat()) not in self.met:
                self.into(entry.path, f"{prefix}{name}/")

    def add(self, entry: os.DirEntry[str], path: str) -> None:
        """Add a file where it is an image."""
        suffix = suffix_of(entry.name)
        if suffix in IMAGES:
            self.listing.files.append(image_file(path, entry.stat()))
        elif suffix not in BESIDE:
            self.listing.others[suffix] += 1

    def follow(self) -> None:
        """Add what links point to, unless it is there already."""
        places = self.listing.places
        places.update(places_of(self.root, self.listing))
        self.met |= set(places.values())
        while self.links:
            entry, path = self.links.pop(0)
            try:
                place = place_of(entry.stat())
            except OSError:  # to nothing: an image that cannot be read, where it may have been one
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
    """path -> what file it is, of those that are there."""
    return {path: place_of(os.stat(root / path)) for path, size, _ in listing.files if size != GONE}


def image_file(path: str, stat: os.stat_result) -> ImageFile:
    """Return a file as the file system knows it."""
    return path, stat.st_size, mark_of(stat)


def folder_of(path: str, stat: os.stat_result) -> FolderMark:
    """Return a folder as the file system knows it: its times change with the names in it."""
    return path, mark_of(stat), max(stat.st_mtime, stat.st_ctime)


def mark_of(stat: os.stat_result) -> int:
    """Return a number that changes whenever a file or folder does; the same in every process."""
    return hash((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))


def suffix_of(name: str) -> str:
    """.jpg of cat.JPG; nothing of a name without one."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def place_of(stat: os.stat_result) -> Place:
    return stat.st_dev, stat.st_ino


def others_in_words(others: Counter[str]) -> Iterator[str]:
    """6 files of .heic, for each suffix, the most frequent first."""
    for suffix, count in others.most_common():
        yield f"{count:,} file{'s' * (count > 1)} {f'of {legible(suffix)}' if suffix else 'without a suffix'}"
