"""Every random number of training, as a pure function of what it is for.

Draws are counter-based: a seed, a purpose and a position (epoch, step, sample) are mixed into bits, so neither the
batch, nor the number of workers, nor a resume, nor the device changes them. Initial weights and dropout, which PyTorch
draws itself, come from its generators, seeded by `kdrun.streams`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdrun.streams import FIRST, GOLDEN, MASK, SECOND, key_of

# Purposes of a data stream's draws; a method counts its own from 0, in a stream of its own.
VIEW, TEACHER_VIEW, STRONG_VIEW, STRONG, ORDER, DROPOUT, POLICY, ERASE, MIX = range(9)


def mix_(x: Tensor) -> Tensor:
    """`kdrun.streams.mix` of every element of an int64 tensor, in place: PyTorch has no unsigned arithmetic, but sums
    and products wrap to the same bits, and a masked shift is a logical one."""
    x.add_(_signed(GOLDEN))
    x.bitwise_xor_(_shifted(x, 30)).mul_(_signed(FIRST))
    x.bitwise_xor_(_shifted(x, 27)).mul_(_signed(SECOND))
    return x.bitwise_xor_(_shifted(x, 31))


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by).bitwise_and_(2 ** (64 - by) - 1)


def bits(key: int | Tensor, counter: Tensor) -> Tensor:
    """Random 64-bit words for `counter` int64 of any shape, which is left as it is. key: a number, or an int64 tensor
    that holds it."""
    key = key if isinstance(key, Tensor) else _signed(key)
    return mix_(mix_(counter + key).add_(key))


def uniform(key: int | Tensor, index: Tensor, count: int, first: int | None = None) -> Tensor:
    """`count` numbers in [0, 1) for each of `index` [N] int64, or only the `first` of them: float64 [N, count], on its
    device, equal on all."""
    counter = index[:, None] * count + torch.arange(first or count, device=index.device)
    return _shifted(bits(key, counter), 11).double().mul_(2.0**-53)


def normal(key: int | Tensor, index: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32 [N, count]: Box and Muller's transform of two uniform ones each. Devices may
    differ in the last bits of their logarithm and cosine."""
    one, two = uniform(key, index, 2 * count).unflatten(1, (2, count)).unbind(1)
    return ((-2 * (1 - one).log()).sqrt_() * (2 * math.pi * two).cos_()).float()


def permutation(key: int | Tensor, count: int, device: torch.device) -> Tensor:
    """A random order of 0 … count-1, int64 [count] on the device."""
    return bits(key, torch.arange(count, device=device)).argsort(stable=True)


@dataclass
class Slot:
    """One of `Numbers`. function: of the progress."""

    function: Callable[[Any], float]
    tensor: Tensor
    value: float | None = None

    def fill(self, progress: Any) -> None:
        value = self.function(progress)
        if value != self.value:
            self.value = value
            self.tensor.fill_(_signed(value) if isinstance(value, int) else value)


class Numbers:
    """Numbers that differ from step to step: plain ones on a CPU, and on a GPU scalar tensors that stay where they
    are, so that a step which was recorded once can be played again with the numbers of another.

    A step asks for them in its own order, and in the same order every time. `begin` fills all that are known.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.slots: list[Slot] = []
        self.progress: Any = None
        self.asked = 0
        self.recorded = False  # by a CUDA graph: what is new would be filled once and for all

    def begin(self, progress: Any) -> None:
        """Start the step at `progress`."""
        self.progress, self.asked = progress, 0
        for slot in self.slots:
            slot.fill(progress)

    def get(self, function: Callable[[Any], float], dtype: torch.dtype = torch.float32) -> Any:
        """Return function(progress) of the step, as a tensor of `dtype` on a GPU."""
        if self.device.type == "cpu":
            return function(self.progress)
        known = self.slots[self.asked] if self.asked < len(self.slots) else None
        if known is None or known.tensor.dtype != dtype:
            known = Slot(function, torch.empty((), dtype=dtype, device=self.device))
            self.slots[self.asked : self.asked + 1] = [known]
        if self.recorded and function(self.progress) != known.value:
            raise RuntimeError("a step asks for its numbers in another order than the steps before")
        known.function = function
        known.fill(self.progress)
        self.asked += 1
        return known.tensor


@dataclass(frozen=True)
class Draws:
    """A method's random numbers in one training step.

    purpose: any number that tells draws of one method apart, counted from 0. numbers: of the lane that trains.
    """

    seed: int
    epoch: int
    step: int
    numbers: Numbers | None = field(default=None, compare=False)

    def key(self, purpose: int, each_step: bool) -> Any:
        """The key of a purpose in the epoch, or in the step."""

        def of(draws: Draws) -> int:
            return key_of(draws.seed, draws.epoch, purpose, *([draws.step] if each_step else []))

        return of(self) if self.numbers is None else self.numbers.get(lambda at: of(at.draws), torch.int64)

    def uniform(self, purpose: int, index: Tensor, *shape: int) -> Tensor:
        """Numbers in [0, 1) for each sample of `index` [N] (`Batch.index`): float64 [N, *shape], the same whatever
        batch a sample comes in."""
        return uniform(self.key(purpose, each_step=False), index, math.prod(shape)).view(-1, *shape)

    def normal(self, purpose: int, index: Tensor, *shape: int) -> Tensor:
        """Standard normal numbers for each sample: float32 [N, *shape]."""
        return normal(self.key(purpose, each_step=False), index, math.prod(shape)).view(-1, *shape)

    def order(self, purpose: int, count: int, device: torch.device) -> Tensor:
        """A random order of 0 … count-1, another one in every step: int64 [count]."""
        return permutation(self.key(purpose, each_step=True), count, device)


def seed_dropout(seed: int, epoch: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Seed what dropout on `device` draws from in one step, another seed for each process that has images of its own.
    `torch.manual_seed` visits every backend, which takes a hundred times as long."""
    key = key_of(seed, epoch, DROPOUT, step, *([rank] if rank else []))
    torch.default_generator.manual_seed(key & (MASK >> 1))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key & (MASK >> 1))


def has_drawn(device: torch.device) -> bool:
    """Return True if anything on a GPU has drawn from its generator since `seed_dropout`."""
    return torch.cuda.default_generators[device.index or 0].get_offset() > 0
