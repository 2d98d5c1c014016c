"""Digest of the content of a tree of images. Every file is read once, and again only if it has changed: an index for
each tree, in the user's cache folder, records what was read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from kdrun.data.listing import GONE, ImageFile
from kdrun.display import legible
from kdrun.display import size as in_words
from kdrun.errors import CheckpointError, RunError, print_note
from kdrun.files import read_json, write_atomically, write_json
from kdrun.hardware import available_cores, cache_home

WHOLE = 16 << 30  # bytes of a tree; a larger one is identified only by names and sizes, without reading it
ANNOUNCED = 1 << 30  # bytes whose reading takes long enough to be announced
SETTLED = 2.0  # seconds after which a rewritten file gets a different time stamp on every file system
CHUNK = 256
UNREADABLE = "-" * 32


def by_names_and_sizes(files: Sequence[ImageFile]) -> str:
    """Return the SHA-256 of paths and sizes."""
    return digest_of(f"{path}\0{size}\n" for path, size, _ in files)


def by_content(root: Path, files: Sequence[ImageFile]) -> str:
    """Return the SHA-256 of paths and the content of every file; for a tree larger than WHOLE, of paths and sizes."""
    if sum(length for _, length, _ in files) > WHOLE:
        return by_names_and_sizes(files)
    place = index_place(root)
    stamp = stamp_of(files)
    known = _known_digest(place, stamp)
    if known is not None:
        return known
    hashes, settled = _hashes(root, files, _known_hashes(place))
    digest = digest_of(f"{path}\0{found}\n" for (path, _, _), found in zip(files, hashes, strict=True))
    if settled:
        _remember(place, root, stamp, digest, files, hashes)
    return digest


def index_place(root: Path, suffix: str = "") -> Path:
    """Return the path of a tree's index."""
    return cache_home() / "trees" / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]}{suffix}"


def stamp_of(files: Sequence[ImageFile]) -> str:
    """Return a SHA-256 that changes whenever a file does: equal stamps mean equal content."""
    return digest_of(f"{path}\0{size} {mark}\n" for path, size, mark in files)


def digest_of(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines that may contain names in any encoding."""
    digest = hashlib.sha256()
    every = iter(lines)
    while part := "".join(islice(every, 4096)):
        digest.update(part.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _hashes(root: Path, files: Sequence[ImageFile], known: dict[bytes, str]) -> tuple[list[str], bool]:
    """Return the hash of every file, computed by all cores if unknown; and True if none of those was modified just
    now."""
    found = [known.get(_key(file), "") for file in files]
    unread = [position for position, value in enumerate(found) if not value]
    total = sum(max(files[position][1], 0) for position in unread)
    if total > ANNOUNCED:
        print_note(f"reading {in_words(total)} in {legible(root)} once, to identify the images by content …")
    begun, settled = time.time(), True
    chunks = [unread[start : start + CHUNK] for start in range(0, len(unread), CHUNK)]
    with ThreadPoolExecutor(available_cores()) as pool:
        read = pool.map(lambda chunk: [_hash_of(root, files[position]) for position in chunk], chunks)
        for chunk, values in zip(chunks, read, strict=True):
            for position, (value, changed) in zip(chunk, values, strict=True):
                found[position] = value
                settled = settled and changed < begun - SETTLED
    return found, settled


def _hash_of(root: Path, file: ImageFile) -> tuple[str, float]:
    """Return (hash, time of the file's last change)."""
    path, size, _ = file
    if size == GONE:
        return UNREADABLE, 0
    try:
        with open(root / path, "rb") as opened:
            stat = os.fstat(opened.fileno())
            return hashlib.file_digest(opened, "sha256").hexdigest()[:32], max(stat.st_mtime, stat.st_ctime)
    except OSError:  # reported when it is read as an image
        return UNREADABLE, 0


def _key(file: ImageFile) -> bytes:
    path, size, mark = file
    return f"{size} {mark} ".encode() + os.fsencode(path)


def _known_digest(place: Path, stamp: str) -> str | None:
    try:
        found = read_json(place.with_suffix(".json"))
    except CheckpointError:
        return None
    return found.get("digest") if found.get("stamp") == stamp else None


def _known_hashes(place: Path) -> dict[bytes, str]:
    """Return the content of the index: size, mark and path of a file -> its hash."""
    try:
        index = place.with_suffix(".index").read_bytes()
        recorded = read_json(place.with_suffix(".json")).get("index")
    except (OSError, CheckpointError):
        return {}
    if recorded != hashlib.sha256(index).hexdigest():  # damaged, or from an earlier version: everything is read again
        return {}
    return {line[33:]: line[:32].decode(errors="replace") for line in index.split(b"\0") if len(line) > 33}


def _remember(
    place: Path, root: Path, stamp: str, digest: str, files: Sequence[ImageFile], hashes: Sequence[str]
) -> None:
    """Write the index if the cache folder is writable; otherwise everything is read again next time."""
    lines = b"\0".join(
        found.encode() + b" " + _key(file) for file, found in zip(files, hashes, strict=True) if found != UNREADABLE
    )
    try:
        write_atomically(place.with_suffix(".index"), lambda file: file.write(lines))
        about = {"root": legible(root), "stamp": stamp, "digest": digest, "index": hashlib.sha256(lines).hexdigest()}
        write_json(place.with_suffix(".json"), about)
    except RunError:
        return
