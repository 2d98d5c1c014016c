"""Derived test sets on disk: made in parallel once, then read from a cache that its manifest vouches for."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.checkpoint import explain_os_error, read_json, write_atomically, write_json
from kdrun.cores import available_cores
from kdrun.data.ingest import Track, untracked
from kdrun.data.sets import ArraySet
from kdrun.errors import CheckpointError, DataError, RunError
from kdrun.runs import digest_of
from kdrun.testsets.base import DerivedSet, Draw, NamedSet, partners
from kdrun.testsets.corruptions import PublishedCorruption
from kdrun.testsets.files import png_files, write_zip
from kdrun.testsets.pretrained import batch_size

CHUNK_BYTES = 2**19  # of images that one task gets: small enough for an even end, large against the cost of a task
SCHEMA = 1


@dataclass(frozen=True)
class Derived:
    """A derived set: images uint8 [N, H, W, 3] and labels int64 [N], in the order of the test set.

    texture_labels: of a cue conflict, the class that gave the texture (labels are the shape's); else None. cached:
    whether nothing had to be made.
    """

    data: ArraySet
    texture_labels: np.ndarray | None
    manifest: dict[str, Any]
    folder: Path
    cached: bool


def derive(
    wished: NamedSet,
    test: ArraySet,
    caches: Path,
    *,
    seed: int = 0,
    track: Track = untracked,
    processes: int | None = None,
    device: str = "auto",
) -> Derived:
    """`test` as `wished` changes it, from <caches>/testsets/<name>-<digest>/ where it was made before; published files
    are read where they are.

    processes: of the making; None: one for each core. device: where a network makes the images; a GPU needs no
    processes. What is made does not depend on processes; what a network makes is another set on a GPU than on the CPU,
    since the last bits differ. Raises DataError where the parameters do not fit the images, a file that the recipe
    needs is missing, or a cache does not match its manifest.
    """
    height, width = test.images.shape[1:3]
    if isinstance(wished, PublishedCorruption):
        return read_published(wished, test)
    assert isinstance(wished, DerivedSet)
    wished.check_size(height, width)
    wanted = {"schema": SCHEMA, **wished.identity(seed), "data": fingerprint(test), "count": len(test),
              "image_size": [height, width], "versions": wished.versions()}  # fmt: skip
    place = "cpu"
    if wished.needs_network:
        place = resolved(device)
        wanted["device"] = place.partition(":")[0]
    folder = caches / "testsets" / f"{wished.name}-{digest_of(wanted)[:12]}"
    cached = (folder / "manifest.json").is_file()
    if not cached:
        build(folder, wished, test, seed, wanted, track, processes, place)
    return read(folder, wanted, test.labels, cached)


def resolved(device: str) -> str:
    """cpu or cuda:N. Raises ConfigError for a device that is not there."""
    from kdrun.numerics import resolve_device

    return resolve_device(device)


def read_published(wished: PublishedCorruption, test: ArraySet) -> Derived:
    """The published files in place of `test`. Raises DataError where they show images of another size."""
    data = wished.load(int(test.labels.max()) + 1)
    if data.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"{wished.files}: images of {data.images.shape[1]} px, but dataset.image_size is "
                        f"{test.images.shape[1]}.")  # fmt: skip
    manifest = {"schema": SCHEMA, **wished.identity(0), "count": len(data), "image_size": list(data.images.shape[1:3])}
    return Derived(data, None, manifest, Path(str(wished.files)), True)


def fingerprint(test: ArraySet) -> str:
    """SHA-256 of pixels and labels."""
    return hashlib.sha256(f"{sha256(test.images)} {sha256(test.labels.astype(np.int64))}".encode()).hexdigest()


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def build(
    folder: Path,
    derived: DerivedSet,
    test: ArraySet,
    seed: int,
    wanted: dict[str, Any],
    track: Track,
    processes: int | None,
    device: str,
) -> None:
    """Write images.npy, for pairs partners.npy, and last manifest.json, whose presence means complete."""
    others = partners(derived, test.labels, seed) if derived.pairs else None
    images = np.empty(test.images.shape, dtype=np.uint8)
    for start, made in made_chunks(derived, test, others, seed, track, processes, device):
        images[start : start + len(made)] = made
    write_atomically(folder / "images.npy", lambda file: np.save(file, images))
    if others is not None:
        write_atomically(folder / "partners.npy", lambda file: np.save(file, others))
    sums = {"sha256": sha256(images), "partners_sha256": None if others is None else sha256(others)}
    write_json(folder / "manifest.json", {**wanted, **sums})


def made_chunks(
    derived: DerivedSet,
    test: ArraySet,
    others: np.ndarray | None,
    seed: int,
    track: Track = untracked,
    processes: int | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the chunk's first image, its images) in order; for a network a chunk is a batch."""
    size = max(CHUNK_BYTES // max(test.images[0].nbytes, 1), 1)
    if derived.needs_network:
        size = batch_size(device, *derived.made_at(*test.images.shape[1:3]))
    starts = range(0, len(test), size)
    label = f"{derived.name}: {len(test):,} images"

    def task(start: int) -> Task:
        part = slice(start, start + size)
        pair = None if others is None else np.asarray(test.images[others[part]])
        return Task(derived, derived.key(seed), start, np.asarray(test.images[part]), pair, device, size)

    count = 1 if device.startswith("cuda") else min(processes or available_cores(), len(starts))
    if count <= 1:
        for number in track(iter(range(len(starts))), len(starts), label):
            yield starts[number], make_chunk(task(starts[number]))
        return
    # Spawned, not forked: the parent may already run the threads of torch or of a progress bar.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=one_thread) as pool:
        pending: dict[int, Future[np.ndarray]] = {}
        submitted = 0
        for number in track(iter(range(len(starts))), len(starts), label):
            while submitted < min(number + 2 * count, len(starts)):  # no more images in flight than needed
                pending[submitted] = pool.submit(make_chunk, task(starts[submitted]))
                submitted += 1
            yield starts[number], result_of(pending.pop(number))


def result_of(made: Future[np.ndarray]) -> np.ndarray:
    """Raises RunError in one line where the process was killed."""
    try:
        return made.result()
    except BrokenProcessPool as error:
        raise RunError("a process that made images was killed (out of memory?); try again with processes=1.") from error


@dataclass(frozen=True)
class Task:
    """One chunk: uint8 images and others [n, H, W, 3]; start: index of the first; size: of a whole chunk."""

    derived: DerivedSet
    key: int
    start: int
    images: np.ndarray
    others: np.ndarray | None
    device: str
    size: int


def make_chunk(task: Task) -> np.ndarray:
    """The derived images of a task, uint8 [n, H, W, 3]."""
    if task.derived.needs_network:
        return make_batch(task)
    made = [
        task.derived.image(
            image, Draw(task.key, task.start + place), None if task.others is None else task.others[place]
        )
        for place, image in enumerate(task.images)
    ]
    return np.stack(made)


def make_batch(task: Task) -> np.ndarray:
    """The same in one go. The last batch is filled up, since another size could round otherwise."""
    import torch

    filled = np.minimum(np.arange(task.size), len(task.images) - 1)
    others = None if task.others is None else task.others[filled]
    try:
        made = task.derived.by_network(task.images[filled], others, task.device)
    except torch.OutOfMemoryError as error:
        raise RunError(f"testset={task.derived.name}: no room on {task.device} for {task.size} images at once; use "
                       "device=cpu, or a smaller side.") from error  # fmt: skip
    return made[: len(task.images)]


def one_thread() -> None:
    """Each process has one core; libraries that read their thread count when they are imported are told before."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def read(folder: Path, wanted: dict[str, Any], labels: np.ndarray, cached: bool) -> Derived:
    """The set in `folder`. Raises DataError in one line where it is not what its manifest says, or not `wanted`."""
    again = f"delete {folder} and run again"
    try:
        manifest = read_json(folder / "manifest.json")
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        paired = manifest.get("partners_sha256") is not None
        others = np.load(folder / "partners.npy", allow_pickle=False) if paired else None
    except (CheckpointError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{folder} is damaged ({error}); {again}.") from error
    for name, value in wanted.items():
        if manifest.get(name) != value:
            raise DataError(f"{folder}/manifest.json says {name}={manifest.get(name)}, expected {value}; {again}.")
    if images.dtype != np.uint8 or images.shape != (len(labels), *wanted["image_size"], 3):
        raise DataError(
            f"{folder}/images.npy is {images.dtype} {list(images.shape)}, not what its manifest says; {again}."
        )
    if sha256(images) != manifest.get("sha256"):
        raise DataError(f"{folder}/images.npy is not the file that its manifest.json describes; {again}.")
    texture_labels = None
    if others is not None:
        if sha256(others) != manifest["partners_sha256"]:
            raise DataError(f"{folder}/partners.npy is not the file that its manifest.json describes; {again}.")
        texture_labels = np.asarray(labels)[others]
    return Derived(ArraySet(images, np.asarray(labels)), texture_labels, manifest, folder, cached)


def export(found: Derived, class_names: list[str], place: Path, track: Track = untracked) -> None:
    """Write PNG class folders and the manifest to a new folder, or to one archive where `place` ends in .zip.

    Raises DataError where `place` exists with something in it, RunError for a full disk.
    """

    def content() -> Iterator[tuple[str, bytes]]:
        yield from png_files(found.data, class_names, found.texture_labels, track)
        yield "manifest.json", (json.dumps(found.manifest, indent=2) + "\n").encode()

    if place.suffix.lower() == ".zip":
        if place.exists():
            raise DataError(f"save={place}: exists already; delete it or choose another name.")
        write_atomically(place, lambda file: write_zip(file, content()))
        return
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"save={place}: exists already and is not empty; choose another folder.")
    scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        for name, data in content():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(data)
        if place.is_dir():
            place.rmdir()
        os.replace(scratch, place)
    except OSError as error:
        raise RunError(explain_os_error(error, place)) from error
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)
