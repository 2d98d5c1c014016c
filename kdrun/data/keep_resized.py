"""dataset.cache=resized: each image file decoded and resized once, into one file that all readers map into memory.

Its pixels are those that evaluation sees; training crops, flips and colours the same pixels as those of the files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock, Timeout

from kdrun.config.options import DatasetOptions
from kdrun.data.arrays import read_array
from kdrun.data.resized import Resized
from kdrun.data.splits import AnySet, FileSet
from kdrun.data.stream import StreamEval
from kdrun.display import Track, legible, size
from kdrun.errors import CheckpointError, DiskFull, print_note
from kdrun.files import read_json, refused, write_atomically, write_json

VERSION = 2  # of the rules by which the images are made
BATCH = 64


def kept(files: AnySet, content: str, options: DatasetOptions, cache: Path, track: Track, fill: bool) -> AnySet:
    """Return `files` with their cached pixels. A missing cache is filled, or, without `fill`, the files are returned
    unchanged. content: digest of their tree. Raises DataError for a damaged file, DiskFull."""
    if not isinstance(files, FileSet):
        return files
    folder = cache / key_of(files, content, options)
    if not is_whole(folder, len(files), options.image_size):
        if not fill:
            return files
        with alone(folder):
            if not is_whole(folder, len(files), options.image_size):
                write(folder, files, options, track)
    return replace(files, resized=Resized(folder / "images.npy"))


def key_of(files: FileSet, content: str, options: DatasetOptions) -> str:
    """Name everything that the pixels depend on, and their order."""
    rules = [VERSION, options.image_size, options.resize, importlib.metadata.version("torchvision")]
    names = "\0".join([content, *map(str, rules), *files.paths])
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]


def is_whole(folder: Path, count: int, side: int) -> bool:
    """Return True if all images are there. They are not read here: `kdrun doctor output_root=…` compares their
    checksum."""
    try:
        if read_json(folder / "meta.json").get("images") != count:
            return False
        images = read_array(folder / "images.npy", mmap_mode="r")
    except (CheckpointError, ValueError):  # not made yet, or damaged
        return False
    return images.dtype == np.uint8 and images.shape == (count, side, side, 3)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other runs from filling the folder. On a file system without locks several may, each for itself."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    except OSError as error:
        raise refused(error, folder) from error
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print_note(f"another run fills {legible(folder)}: waiting for it")
            lock.acquire()
        for left in folder.glob(".images.npy.*.tmp"):  # by a run that was killed
            left.unlink()
    try:
        yield
    finally:
        lock.release()


def write(folder: Path, files: FileSet, options: DatasetOptions, track: Track) -> None:
    """Write images.npy and, last, meta.json, whose presence means complete."""
    side, digest = options.image_size, hashlib.sha256()
    needed, free = len(files) * side * side * 3, shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"dataset.cache=resized needs {size(needed)} in {legible(folder)}, where {size(free)} are free: set "
            "output_root=… to a folder on a larger disk, or leave dataset.cache out."
        )
    loader = StreamEval(
        files,
        image_size=side,
        resize=options.resize,
        batch_size=BATCH,
        stats=([0.0] * 3, [1.0] * 3),
        workers=options.workers,
        device=torch.device("cpu"),
    )
    count, label = len(loader.batches_of), f"resizing {len(files):,} images, once for all runs"

    def fill(file: IO[bytes]) -> None:
        shape = (len(files), side, side, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for _, packed in zip(track(iter(range(count)), count, label), loader.read(), strict=True):
            pixels = packed.image.numpy().data
            digest.update(pixels)
            file.write(pixels)

    write_atomically(folder / "images.npy", fill)
    meta = {"root": legible(files.root), "images": len(files), "sha256": digest.hexdigest()}
    write_json(folder / "meta.json", meta)
