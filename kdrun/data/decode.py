"""Decoding of a class-folder tree: once, in parallel, into a memory-mapped cache keyed by content."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.arrays import read_array, sha256_of_values
from kdrun.data.image_tree import Tree, refuse_empty_classes
from kdrun.data.processes import process_pool
from kdrun.data.splits import ArraySet
from kdrun.display import Track, legible, untracked
from kdrun.errors import CheckpointError, DataError, one_line
from kdrun.files import read_json, write_json
from kdrun.hardware import available_cores

CHUNK = 256
NUMBERS = ("I", "F")  # Pillow's modes of 32-bit integers and fractions
RANGES = ((0, 1), (-1, 1), (0, 2**8 - 1), (0, 2**15 - 1), (0, 2**16 - 1), (0, 2**31 - 1))  # usual ones of such images
BITS = 258  # TIFF's tag

# Pillow's warnings about transparency, tags and large images do not concern somebody who trains on them.
warnings.filterwarnings("ignore", module=r"PIL\.")


def read_image(path: str | os.PathLike[str], size: int | None) -> np.ndarray:
    """Read one file with `rgb_pixels`."""
    from PIL import Image

    with Image.open(path) as image:
        return rgb_pixels(image, size)


def rgb_pixels(image: Any, size: int | None) -> np.ndarray:
    """Return a PIL image (its first frame) as RGB uint8 [H, W, 3], upright by its EXIF tag; resized (bilinear) to
    size x size if it differs. Transparency is dropped; the colour beneath it is kept."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # otherwise PIL clips 16-bit grey to white
        upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    elif upright.mode in NUMBERS:
        upright = Image.fromarray(grey_levels(np.asarray(upright), *grey_range(image)))
    elif upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    rgb = upright.convert("RGB")
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def grey_range(image: Any) -> tuple[float, float]:
    """Return the values of an image of 32-bit numbers that become black and white: those of the file's type for 16
    bits, else the smallest of `RANGES` that contains what is there, but for an overshoot as resampling leaves it, so
    that a value is the same grey in as many images as possible. Other fractions are stretched from minimum to
    maximum, and negative integers are black. Raises ValueError for NaN or infinity."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it contains NaN or infinite values")
    if image.mode == "I":
        if image.format in ("PNG", "PPM"):  # 16 bits
            return 0, 2**16 - 1
        if getattr(image, "tag_v2", {}).get(BITS) == (16,):  # with a sign
            return 0, 2**15 - 1
        return 0, next(limit for limit in (2**8 - 1, 2**16 - 1, 2**31 - 1) if high <= limit)
    if low >= -0.25 and high <= 2:
        return 0, 1
    if low >= -1.25 and high <= 1.25:
        return -1, 1
    if low >= -high / 4 and high <= 2 * (2**16 - 1):
        return 0, 255 if high <= 2 * 255 else 2**16 - 1
    return low, high


def grey_levels(values: np.ndarray, least: float, most: float) -> np.ndarray:
    """Convert 32-bit numbers to uint8 of the same shape: least and what is below to 0, most and what is above to 255;
    a constant image that is stretched is black."""
    values = values.clip(least, most)
    if np.issubdtype(values.dtype, np.integer):
        return (values >> (int(most).bit_length() - 8)).astype(np.uint8)
    return np.round((values.astype(np.float64) - least) * (255 / ((most - least) or 1.0))).astype(np.uint8)


def why_unreadable(error: Exception, path: str | os.PathLike[str]) -> str:
    """Return briefly why a file could not be read as an image, without repeating its name."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "a broken link" if os.path.islink(path) else "the file no longer exists"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not an image format that Pillow reads" if os.path.getsize(path) else "the file is empty"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large, {legible(one_line(error))}"
    return legible(one_line(error))


def cannot_be_read(path: str | os.PathLike[str], reason: str) -> DataError:
    """Return the error for a damaged image when none may be left out."""
    return DataError(
        f"image {legible(path)} cannot be read ({reason}); repair or remove it, or set dataset.on_error=skip; "
        "kdrun data FOLDER lists all such files."
    )


def decode_chunk(root: Path, size: int, paths: list[str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Return (images [n, size, size, 3], [(position, reason)] of unreadable ones)."""
    images = np.zeros((len(paths), size, size, 3), dtype=np.uint8)
    bad = []
    for position, path in enumerate(paths):
        try:
            images[position] = read_image(root / path, size)
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and own types for damaged files
            bad.append((position, why_unreadable(error, root / path)))
    return images, bad


def decode_tree(
    tree: Tree, size: int, on_error: str, cache: Path, track: Track = untracked
) -> tuple[ArraySet, list[tuple[str, str]]]:
    """Return the tree as arrays, from the cache if it was decoded before, and (image, reason) for those left out.

    on_error: "stop" raises DataError that names the damaged file; "skip" leaves it out.
    """
    folder = cache / hashlib.sha256(f"{tree.fingerprint()} {size}".encode()).hexdigest()[:16]
    if not (folder / "meta.json").is_file():
        _decode_into(folder, tree, size, on_error, track)
    images, labels, left_out = _read(folder, size)
    unreadable = [(tree.paths[position], reason) for position, reason in left_out]
    if unreadable and on_error == "stop":
        raise cannot_be_read(tree.root / unreadable[0][0], unreadable[0][1])
    refuse_empty_classes(tree, labels)
    return ArraySet(images, labels), [(f"{tree.root.name}/{path}", reason) for path, reason in unreadable]


def _read(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Return (images, labels, [(position, reason)] of those left out). Raises DataError if they do not match meta.json.

    The images are mapped, not read: `kdrun doctor output_root=…` compares their checksum.
    """
    again = f"delete {folder} and repeat the command"
    try:
        meta = read_json(folder / "meta.json")
        left_out = [(int(position), str(reason)) for position, reason in meta["unreadable"]]
        # Copy-on-write mapping: pages stay shared with the file, and torch can wrap them without a warning.
        images = read_array(folder / "images.npy", mmap_mode="c")
        labels = read_array(folder / "labels.npy")
    except (CheckpointError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({one_line(error)}); {again}.") from error
    count = meta.get("images")
    if images.dtype != np.uint8 or images.shape != (count, size, size, 3) or labels.shape != (count,):
        shapes = f"images {list(images.shape)} and labels {list(labels.shape)}"
        raise DataError(f"{folder} has {shapes}, contrary to its meta.json; {again}.")
    if "labels_sha256" in meta and meta["labels_sha256"] != sha256_of_values(labels):
        raise DataError(f"{folder}/labels.npy has changed since it was written; {again}.")
    return images, labels, left_out


def _decode_into(folder: Path, tree: Tree, size: int, on_error: str, track: Track) -> None:
    """Write images.npy, labels.npy and, last, meta.json, whose presence marks the folder as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"images.{os.getpid()}.tmp.npy"
    kept: list[int] = []
    unreadable: list[tuple[int, str]] = []
    try:
        images = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=(len(tree.paths), size, size, 3))
        for start, pixels, bad in _decoded_chunks(tree, size, track):
            if bad and on_error == "stop":
                raise cannot_be_read(tree.root / tree.paths[start + bad[0][0]], bad[0][1])
            unreadable += [(start + position, reason) for position, reason in bad]
            wrong = {position for position, _ in bad}
            good = [position for position in range(len(pixels)) if position not in wrong]
            images[len(kept) : len(kept) + len(good)] = pixels[good]
            kept += [start + position for position in good]
        if unreadable:
            np.save(scratch, images[: len(kept)].copy())
        images.flush()
        digest = sha256_of_values(images[: len(kept)])
        del images
        os.replace(scratch, folder / "images.npy")
    finally:
        scratch.unlink(missing_ok=True)
    labels = tree.labels[kept]
    np.save(folder / "labels.npy", labels)
    meta = {"root": legible(tree.root), "images": len(kept), "sha256": digest, "unreadable": unreadable}
    write_json(folder / "meta.json", {**meta, "labels_sha256": sha256_of_values(labels)})


def _decoded_chunks(tree: Tree, size: int, track: Track) -> Iterator[tuple[int, np.ndarray, list[tuple[int, str]]]]:
    """Yield (index of the chunk's first image, images, unreadable ones) in order, decoded by all cores."""
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
