"""In-memory cache of teacher outputs, for runs in which the teacher sees identical images every epoch (no
augmentation, or teacher_view=clean or fixed)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrun.data.resident import ResidentTrain
from kdrun.display import Track
from kdrun.structures import Outputs
from kdrun.training.cost import free_memory
from kdrun.training.network import Network

MOST = 4 * 2**30  # bytes, and never more than a quarter of the free memory


class Kept:
    """Cached tensor of the outputs for all samples, in the precision in which it was computed and the memory order
    in which the network returned it, so that a method gets exactly what a forward pass would have given."""

    def __init__(self, example: Tensor, samples: int):
        """Allocate the tensor. example [N, …]: from one batch."""
        order = sorted(range(1, example.dim()), key=example.stride, reverse=True)
        self.order = [0, *order]
        self.back = [self.order.index(axis) for axis in range(example.dim())]
        self.rows = example.new_empty([samples, *(example.shape[axis] for axis in order)])

    def put(self, start: int, values: Tensor) -> None:
        """Store values; those beyond the last sample are dropped."""
        room = self.rows[start : start + len(values)]
        room.copy_(values[: len(room)].permute(self.order))

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.rows.index_select(0, index).permute(self.back)


class TeacherCache:
    """Cache of the teacher's Outputs in float32, by index [N] int64, positions in the training set."""

    def __init__(self, example: Outputs, samples: int):
        """Allocate the cache. example: from one batch, not yet in float32; it determines the outputs, their shapes
        and precision."""
        self.kept = [Kept(tensor, samples) for tensor in tensors_of(example)]
        self.shape = example.apply(lambda tensor: tensor.new_empty(0))  # a view would keep the whole batch in memory

    def put(self, start: int, outputs: Outputs) -> None:
        for kept, values in zip(self.kept, tensors_of(outputs), strict=True):
            kept.put(start, values)

    def __call__(self, index: Tensor) -> Outputs:
        rows = iter(self.kept)
        return self.shape.apply(lambda _: next(rows)[index]).float()

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return bytes_of([kept.rows for kept in self.kept])


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tensors_of(outputs: Outputs) -> list[Tensor]:
    found: list[Tensor] = []
    outputs.apply(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def fill(network: Network, loader: ResidentTrain, track: Track) -> tuple[TeacherCache | None, str]:
    """Run the frozen `network` once over the training images as the teacher sees them: return (cache, ""), or (None,
    the reason why nothing can be cached).

    The pass uses the set's own order and full batches, independent of the run's progress, and is never compiled: a
    resumed run, and a lane among others, gets the same numbers.
    """
    assert not network.tap.training, "the teacher is in training mode"
    samples, size, cache = loader.num_samples, loader.own_batch_size, None
    steps = -(-samples // size)
    label = f"teacher outputs of {samples:,} images, the same in every epoch"
    for step, image in zip(track(iter(range(steps)), steps, label), loader.teacher_images(), strict=True):
        with torch.no_grad():
            outputs = network.eager(image)
            if cache is None and not rows_stand_alone(network, image, outputs):
                return None, "on this machine, the last bits of an image's outputs depend on its position in the batch"
        if cache is None:
            room = min(MOST, free_memory(network.numerics.torch_device) // (4 * loader.part.size))
            if bytes_of(tensors_of(outputs)) * samples // len(image) > room:
                return None, "they do not fit into memory"
            cache = TeacherCache(outputs, samples)
        cache.put(step * size, outputs)
    return cache, ""


def rows_stand_alone(network: Network, image: Tensor, outputs: Outputs) -> bool:
    """Return True if the outputs of an image stay the same, to the last bit, when the batch is reordered.

    PyTorch does not guarantee this: it holds if every row of a matrix product is summed in the same way at any
    position. Otherwise cached outputs would differ from those of a pass over a shuffled batch.
    """
    order = torch.arange(len(image) - 1, -1, -1, device=image.device).roll(1)
    turned = network.eager(image[order].contiguous(memory_format=torch.channels_last))
    pairs = zip(tensors_of(outputs), tensors_of(turned), strict=True)
    return all(torch.equal(straight[order], rows) for straight, rows in pairs)
