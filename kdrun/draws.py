"""Random numbers of training, each a pure function of its purpose and position.

Draws are counter-based: a seed, a purpose and a position (epoch, step, sample) are mixed into bits, so batch
composition, number of workers, resuming and device do not change them. Initial weights and dropout, which PyTorch draws
itself, come from its generators, seeded by `kdrun.streams`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.streams import FIRST, GOLDEN, MASK, SECOND, key_of

# Purposes of the data stream's draws. A method numbers its own purposes from 0, in a separate stream.
VIEW, TEACHER_VIEW, STRONG_VIEW, STRONG, ORDER, DROPOUT, POLICY, ERASE, MIX = range(9)


def mix_(x: Tensor) -> Tensor:
    """Apply `kdrun.streams.mix` to every element of an int64 tensor, in place.

    PyTorch has no unsigned arithmetic, but sums and products wrap to the same bits, and a masked shift is a logical
    one.
    """
    x.add_(_signed(GOLDEN))
    x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(FIRST))
    x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(SECOND))
    return x.bitwise_xor_(_shifted(x, 31))


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by).bitwise_and_(2 ** (64 - by) - 1)


def bits(key: int | Tensor, counter: Tensor) -> Tensor:
    """Return random 64-bit words for `counter` (int64, any shape), which is not modified. key: a number, or an int64
    tensor that holds one."""
    key = key if isinstance(key, Tensor) else _signed(key)
    return mix_(mix_(counter + key).add_(key))


def uniform(key: int | Tensor, index: Tensor, count: int, first: int | None = None) -> Tensor:
    """Draw `count` numbers in [0, 1) for each element of `index` [N] int64, or only the `first` of them: float64 [N,
    count] on the device of `index`, equal on all devices."""
    counter = index[:, None] * count + torch.arange(first or count, device=index.device)
    return _shifted(bits(key, counter), 11).double().mul_(2.0**-53)


def normal(key: int | Tensor, index: Tensor, count: int) -> Tensor:
    """Draw standard normal numbers, float32 [N, count], by Box and Muller's transform of two uniform numbers each.

    Devices may differ in the last bits of the logarithm and cosine.
    """
    one, two = uniform(key, index, 2 * count).unflatten(1, (2, count)).unbind(1)
    return ((-2 * (1 - one).log()).sqrt_() * (2 * math.pi * two).cos_()).float()


def permutation(key: int | Tensor, count: int, device: torch.device) -> Tensor:
    """Return a random permutation of 0 … count-1, int64 [count] on the device."""
    return bits(key, torch.arange(count, device=device)).argsort(stable=True)


@dataclass
class Slot:
    """One number of `Numbers`. function: computes it from the progress."""

    function: Callable[[Any], float]
    tensor: Tensor
    value: float | None = None

    def fill(self, progress: Any) -> None:
        value = self.function(progress)
        if value != self.value:
            self.value = value
            self.tensor.fill_(_signed(value) if isinstance(value, int) else value)


class Numbers:
    """Numbers that change from step to step: plain numbers on a CPU, scalar tensors at fixed addresses on a GPU, so
    that a step recorded as a CUDA graph can be replayed with other numbers.

    A step must ask for its numbers in the same order every time. `begin` fills all known ones.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.slots: list[Slot] = []
        self.progress: Any = None
        self.asked = 0
        self.recorded = False  # by a CUDA graph: a new number would be filled only once, at recording

    def begin(self, progress: Any) -> None:
        """Start the step at `progress`."""
        self.progress, self.asked = progress, 0
        for slot in self.slots:
            slot.fill(progress)

    def get(self, function: Callable[[Any], float], dtype: torch.dtype = torch.float32) -> Any:
        """Return function(progress) for the current step, on a GPU as a tensor of `dtype`."""
        if self.device.type == "cpu":
            return function(self.progress)
        known = self.slots[self.asked] if self.asked < len(self.slots) else None
        if known is None or known.tensor.dtype != dtype:
            known = Slot(function, torch.empty((), dtype=dtype, device=self.device))
            self.slots[self.asked : self.asked + 1] = [known]
        if self.recorded and function(self.progress) != known.value:
            raise RuntimeError("a step asked for its numbers in a different order from earlier steps")
        known.function = function
        known.fill(self.progress)
        self.asked += 1
        return known.tensor


@dataclass(frozen=True)
class Draws:
    """A method's random numbers in one training step.

    purpose: any number that tells a method's draws apart, counted from 0. numbers: the step numbers of the lane.
    """

    seed: int
    epoch: int
    step: int
    numbers: Numbers | None = field(default=None, compare=False)

    def key(self, purpose: int, each_step: bool) -> Any:
        """Return the key of a purpose in the epoch, or in the step."""

        def of(draws: Draws) -> int:
            return key_of(draws.seed, draws.epoch, purpose, *([draws.step] if each_step else []))

        return of(self) if self.numbers is None else self.numbers.get(lambda at: of(at.draws), torch.int64)

    def uniform(self, purpose: int, index: Tensor, *shape: int) -> Tensor:
        """Draw numbers in [0, 1) for each sample of `index` [N] (`Batch.index`): float64 [N, *shape], independent of
        the batch in which a sample comes."""
        return uniform(self.key(purpose, each_step=False), index, math.prod(shape)).view(-1, *shape)

    def normal(self, purpose: int, index: Tensor, *shape: int) -> Tensor:
        """Draw standard normal numbers for each sample: float32 [N, *shape]."""
        return normal(self.key(purpose, each_step=False), index, math.prod(shape)).view(-1, *shape)

    def order(self, purpose: int, count: int, device: torch.device) -> Tensor:
        """Return a random permutation of 0 … count-1, a new one in every step: int64 [count]."""
        return permutation(self.key(purpose, each_step=True), count, device)


def seed_all(seed: int) -> None:
    """Seed PyTorch's generators and, for the user's code, numpy's and Python's."""
    torch.manual_seed(seed)
    seed_others(seed)


def seed_others(seed: int) -> None:
    """Seed numpy's and Python's generators."""
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def seed_dropout(seed: int, epoch: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Seed the dropout of one step on `device`, differently for each process that has its own share of the images,
    and what the user's code may draw by other generators.

    `torch.manual_seed` would visit every backend, which takes a hundred times as long.
    """
    key = key_of(seed, epoch, DROPOUT, step, *([rank] if rank else []))
    seed_others(key)
    torch.default_generator.manual_seed(key & (MASK >> 1))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key & (MASK >> 1))


def has_drawn(device: torch.device) -> bool:
    """Return True if the GPU's generator has been used since `seed_dropout`."""
    return torch.cuda.default_generators[device.index or 0].get_offset() > 0
