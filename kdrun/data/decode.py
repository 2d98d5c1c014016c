"""Decode a class-folder tree once, in parallel, into a memory-mapped cache keyed by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.image_tree import Tree
from kdrun.data.processes import process_pool
from kdrun.data.splits import ArraySet
from kdrun.display import Track, untracked
from kdrun.errors import DataError, one_line
from kdrun.files import write_json
from kdrun.hardware import available_cores

CHUNK = 256


def read_image(path: str | os.PathLike[str], size: int | None) -> np.ndarray:
    """One file as `rgb_pixels`."""
    from PIL import Image

    with Image.open(path) as image:
        return rgb_pixels(image, size)


def rgb_pixels(image: Any, size: int | None) -> np.ndarray:
    """A PIL image as RGB uint8 [H, W, 3], upright by its EXIF tag; resized (bilinear) to size x size where it
    differs."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I;16", "I;16B", "I;16L", "I"):  # PIL clips 16-bit grey to white otherwise
        upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    rgb = upright.convert("RGB")
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def decode_chunk(root: Path, size: int, paths: list[str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """(images [n, size, size, 3], [(position, reason)] of those that cannot be read)."""
    images = np.zeros((len(paths), size, size, 3), dtype=np.uint8)
    bad = []
    for position, path in enumerate(paths):
        try:
            images[position] = read_image(root / path, size)
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and its own kinds for damaged files
            bad.append((position, one_line(error)))
    return images, bad


def decode_tree(
    tree: Tree, size: int, on_error: str, cache: Path, track: Track = untracked
) -> tuple[ArraySet, list[str]]:
    """The tree as arrays, from the cache where it was decoded before, and notes about skipped files.

    on_error: "stop" raises DataError that names the damaged file; "skip" leaves it out and says so.
    """
    key = hashlib.sha256(f"{tree.fingerprint()} {size} {on_error}".encode()).hexdigest()[:16]
    folder = cache / key
    if not (folder / "meta.json").is_file():
        _decode_into(folder, tree, size, on_error, track)
    meta = json.loads((folder / "meta.json").read_text())
    # Copy-on-write mapping: the pages stay shared with the file, and torch may wrap them without a warning.
    images = np.load(folder / "images.npy", mmap_mode="c")
    labels = np.load(folder / "labels.npy")
    return ArraySet(images, labels), [f"skipped {name}: {reason}" for name, reason in meta["skipped"]]


def _decode_into(folder: Path, tree: Tree, size: int, on_error: str, track: Track) -> None:
    """Write images.npy, labels.npy and, last, meta.json, whose presence means complete."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"images.{os.getpid()}.tmp.npy"
    kept: list[int] = []
    skipped: list[tuple[str, str]] = []
    try:
        images = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=(len(tree.paths), size, size, 3))
        for start, pixels, bad in _decoded_chunks(tree, size, track):
            for position, reason in bad:
                name = tree.paths[start + position]
                if on_error == "stop":
                    raise DataError(
                        f"image {tree.root / name} cannot be read ({reason}); repair or remove it, "
                        "or set dataset.on_error=skip."
                    )
                skipped.append((name, reason))
            wrong = {position for position, _ in bad}
            good = [position for position in range(len(pixels)) if position not in wrong]
            images[len(kept) : len(kept) + len(good)] = pixels[good]
            kept += [start + position for position in good]
        if skipped:
            np.save(scratch, images[: len(kept)].copy())
        images.flush()
        digest = hashlib.sha256(images[: len(kept)].data).hexdigest()
        del images
        os.replace(scratch, folder / "images.npy")
    finally:
        scratch.unlink(missing_ok=True)
    np.save(folder / "labels.npy", tree.labels[kept])
    meta = {"root": str(tree.root), "images": len(kept), "sha256": digest, "skipped": skipped}
    write_json(folder / "meta.json", meta)


def _decoded_chunks(tree: Tree, size: int, track: Track) -> Iterator[tuple[int, np.ndarray, list[tuple[int, str]]]]:
    """(index of the chunk's first image, images, unreadable ones) in order, decoded by all cores."""
    starts = list(range(0, len(tree.paths), CHUNK))
    chunks = [tree.paths[start : start + CHUNK] for start in starts]
    decode = partial(decode_chunk, tree.root, size)
    label = f"decoding {len(tree.paths):,} images"
    if len(chunks) <= 2:
        for number in track(iter(range(len(chunks))), len(chunks), label):
            yield starts[number], *decode(chunks[number])
        return
    with process_pool(min(available_cores(), len(chunks))) as pool:
        results = pool.map(decode, chunks)
        for number in track(iter(range(len(chunks))), len(chunks), label):
            yield starts[number], *next(results)
