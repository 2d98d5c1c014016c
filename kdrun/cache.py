"""What the teacher says of every training image, computed once where it sees the same images in every epoch: training
without augmentation, or with teacher_view=clean."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdrun.batch import Outputs
from kdrun.cost import free_memory
from kdrun.data.resident import ResidentTrain
from kdrun.network import Network

Watch = Callable[[Iterator[int], int], Iterator[int]]

MOST = 4 * 2**30  # bytes, and never more than a quarter of what is free


class Kept:
    """One tensor of the outputs for all samples, in the precision in which it was computed and the memory order in
    which the network laid a sample out, so that a method gets what a forward pass would have given it."""

    def __init__(self, example: Tensor, samples: int):
        """example [N, …]: of one batch."""
        order = sorted(range(1, example.dim()), key=example.stride, reverse=True)
        self.order = [0, *order]
        self.back = [self.order.index(axis) for axis in range(example.dim())]
        self.rows = example.new_empty([samples, *(example.shape[axis] for axis in order)])

    def put(self, start: int, values: Tensor) -> None:
        self.rows[start : start + len(values)] = values.permute(self.order)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.rows.index_select(0, index).permute(self.back)


class TeacherCache:
    """index [N] int64, positions in the training set -> the teacher's Outputs for those samples, in float32."""

    def __init__(self, example: Outputs, samples: int):
        """example: of one batch, not yet in float32; it fixes which outputs there are, their shapes and precision."""
        self.example, self.samples = example, samples
        self.kept = [Kept(tensor, samples) for tensor in tensors_of(example)]

    def put(self, start: int, outputs: Outputs) -> None:
        for kept, values in zip(self.kept, tensors_of(outputs), strict=True):
            kept.put(start, values)

    def __call__(self, index: Tensor) -> Outputs:
        rows = iter(self.kept)
        return self.example.apply(lambda _: next(rows)[index]).float()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(kept.rows.numel() * kept.rows.element_size() for kept in self.kept)


def tensors_of(outputs: Outputs) -> list[Tensor]:
    found: list[Tensor] = []
    outputs.apply(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def fill(network: Network, loader: ResidentTrain, watch: Watch) -> TeacherCache | None:
    """One pass of the frozen `network` over the training images as the teacher sees them; None where what it says does
    not fit into memory.

    In the set's own order and in full batches whatever the run has done before, and never compiled: a resumed run, and
    a lane beside other lanes, gets the same numbers. watch(steps, total) passes the steps on, and may show them.
    """
    assert not network.tap.training, "the teacher is in training mode"
    samples, size = loader.num_samples, min(loader.batch_size, loader.num_samples)
    room = min(MOST, free_memory(network.numerics.torch_device) // 4)
    cache = None
    starts = range(0, samples, size)
    for step in watch(iter(range(len(starts))), len(starts)):
        index = torch.arange(starts[step], starts[step] + size, device=network.numerics.torch_device) % samples
        with torch.no_grad():
            outputs = network.eager(loader.teacher_image(index))
        if cache is None:
            needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(outputs)) * samples // size
            if needed > room:
                return None
            cache = TeacherCache(outputs.apply(lambda tensor: tensor[:0]), samples)
        left = min(size, samples - starts[step])
        cache.put(starts[step], outputs.apply(lambda tensor, left=left: tensor[:left]))
    return cache
