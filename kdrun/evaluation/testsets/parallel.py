"""Creation of derived images chunk by chunk, in parallel. The result depends on neither the chunks nor the
processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from kdrun.data.processes import process_pool
from kdrun.data.splits import ArraySet
from kdrun.display import Track, untracked
from kdrun.errors import RunError
from kdrun.evaluation.testsets.base import DerivedSet, Draw
from kdrun.evaluation.testsets.pretrained import batch_size
from kdrun.hardware import available_cores

CHUNK_BYTES = 2**19  # bytes of images per task: small enough to end evenly, large against a task's overhead

START_SECONDS = 6.0  # approximate start time of a process that imports torch


@dataclass(frozen=True)
class Task:
    """Task of one chunk. keys: one for each set made from it; images, others: uint8 [n, H, W, 3]; start: index of
    the first image; size: of a full chunk."""

    sets: tuple[DerivedSet, ...]
    keys: tuple[int, ...]
    start: int
    images: np.ndarray
    others: np.ndarray | None
    device: str
    size: int


def made_chunks(
    sets: tuple[DerivedSet, ...],
    test: ArraySet,
    others: np.ndarray | None,
    seed: int,
    track: Track = untracked,
    processes: int | None = None,
    device: str = "cpu",
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (index of the chunk's first image, its images for each set) in order.

    others [N]: indices of the other images for a set of pairs. Several sets are created in one pass; a set that needs a
    network is created alone, in batches. Raises RunError if a process was killed or a GPU's memory is full.
    """
    size = max(CHUNK_BYTES // max(test.images[0].nbytes, 1), 1)
    if sets[0].needs_network:
        size = batch_size(device, *sets[0].made_at(*test.images.shape[1:3]))
    starts = range(0, len(test), size)
    label = f"{' and '.join(each.name for each in sets)}: {len(test):,} images"
    keys = tuple(each.key(seed) for each in sets)

    def task(start: int) -> Task:
        part = slice(start, start + size)
        pair = None if others is None else np.asarray(test.images[others[part]])
        return Task(sets, keys, start, np.asarray(test.images[part]), pair, device, size)

    count = 1 if device.startswith("cuda") else min(processes or worthwhile(sets, test), len(starts))
    if count <= 1:
        for number in track(iter(range(len(starts))), len(starts), label):
            yield starts[number], make_chunk(task(starts[number]))
        return
    with process_pool(count, one_thread) as pool:
        pending: dict[int, Future[list[np.ndarray]]] = {}
        submitted = 0
        for number in track(iter(range(len(starts))), len(starts), label):
            while submitted < min(number + 2 * count, len(starts)):  # no more images in flight than needed
                pending[submitted] = pool.submit(make_chunk, task(starts[submitted]))
                submitted += 1
            yield starts[number], result_of(pending.pop(number))


def worthwhile(sets: tuple[DerivedSet, ...], test: ArraySet) -> int:
    """Return the number of processes: one per core, or only this one if the work would end before others have
    started."""
    work = sum(each.seconds_per_megapixel for each in sets) * test.images[..., 0].size / 1e6
    return 1 if work < START_SECONDS else available_cores()


def result_of(made: Future[list[np.ndarray]]) -> list[np.ndarray]:
    """Return the images of a task. Raises RunError (one line) if the process was killed."""
    try:
        return made.result()
    except BrokenProcessPool as error:
        raise RunError("a process that made images was killed (out of memory?); try again with processes=1.") from error


def make_chunk(task: Task) -> list[np.ndarray]:
    """Return the derived images of a task, uint8 [n, H, W, 3] for each set; image by image, so that sets can share
    work."""
    if task.sets[0].needs_network:
        return [make_batch(task)]
    made: list[list[np.ndarray]] = [[] for _ in task.sets]
    for place, image in enumerate(task.images):
        other = None if task.others is None else task.others[place]
        for images, derived, key in zip(made, task.sets, task.keys, strict=True):
            images.append(derived.image(image, Draw(key, task.start + place), other))
    return [np.stack(images) for images in made]


def make_batch(task: Task) -> np.ndarray:
    """Return the derived images of a task made by a network in one batch. The last batch is filled up, since another
    size could be rounded differently."""
    import torch

    (derived,) = task.sets
    filled = np.minimum(np.arange(task.size), len(task.images) - 1)
    others = None if task.others is None else task.others[filled]
    try:
        made = derived.by_network(task.images[filled], others, task.device)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"testset={derived.name}: {task.size} images at once do not fit into the memory of {task.device}; use "
            "device=cpu, or a smaller side."
        ) from error
    return made[: len(task.images)]


def one_thread() -> None:
    """Limit each process to one thread. Libraries read their thread count on import, so it is set before."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
