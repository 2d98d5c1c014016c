"""Batches on their way from the processes that read files to the training device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Packed:
    """Batch as sent by the workers: uint8 images [N, S, S, 3] for the student, the teacher and the strong views, or
    (path, reason) of the first damaged file."""

    image: Tensor
    label: Tensor
    index: Tensor
    teacher_image: Tensor | None = None
    strong: Tensor | None = None
    problem: tuple[str, str] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if isinstance(value, Tensor)}

    def changed(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """Return the batch with every tensor changed."""
        return replace(self, **{name: change(value) for name, value in self.tensors.items()})

    def pin_memory(self) -> Packed:
        """Return the batch in page-locked memory, from which a GPU copies while the host continues. The loader calls
        it by this name, and skips objects without it."""
        return self.changed(Tensor.pin_memory)


def on_device(batches: Iterable[Packed], device: torch.device, side: Any) -> Iterator[tuple[Packed, Tensor]]:
    """Yield each batch on the device, and its index on the host. The next batch is copied to a GPU while it works on
    this one. side: the CUDA stream of the copies, one for all epochs, since PyTorch keeps freed memory for the stream
    that used it; None on a CPU."""
    if side is None:
        yield from ((packed, packed.index) for packed in batches)
        return
    waiting: list[tuple[Packed, Tensor, Any]] = []  # with the event that marks a batch as copied
    for packed in batches:
        with torch.cuda.stream(side):
            sent = packed.changed(lambda x: x.to(device, non_blocking=True))
            waiting.append((sent, packed.index, side.record_event()))
        if len(waiting) > 1:
            yield arrived(*waiting.pop(0))
    for one in waiting:
        yield arrived(*one)


def arrived(packed: Packed, index: Tensor, sent: Any) -> tuple[Packed, Tensor]:
    """Make the stream that reads a batch wait for it, and the batch's memory for the stream."""
    reads = torch.cuda.current_stream(packed.image.device)
    reads.wait_event(sent)
    for tensor in packed.tensors.values():
        tensor.record_stream(reads)
    return packed, index
