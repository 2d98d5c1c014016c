"""Every random number of training, as a pure function of what it is for.

Draws are counter-based: a seed, a purpose and a position (epoch, step, sample) are mixed into bits, so neither the
batch, nor the number of workers, nor a resume, nor the device changes them. Initial weights and dropout, which PyTorch
draws itself, come from its generators, seeded by `kdrun.streams`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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


def bits(key: int, counter: Tensor) -> Tensor:
    """Random 64-bit words for `counter` int64 of any shape, which is left as it is."""
    key = _signed(key)
    return mix_(mix_(counter + key).add_(key))


def uniform(key: int, index: Tensor, count: int, first: int | None = None) -> Tensor:
    """`count` numbers in [0, 1) for each of `index` [N] int64, or only the `first` of them: float64 [N, count], on its
    device, equal on all."""
    counter = index[:, None] * count + torch.arange(first or count, device=index.device)
    return _shifted(bits(key, counter), 11).double().mul_(2.0**-53)


def normal(key: int, index: Tensor, count: int) -> Tensor:
    """Standard normal numbers, float32 [N, count]: Box and Muller's transform of two uniform ones each. Devices may
    differ in the last bits of their logarithm and cosine."""
    one, two = uniform(key, index, 2 * count).unflatten(1, (2, count)).unbind(1)
    return ((-2 * (1 - one).log()).sqrt_() * (2 * math.pi * two).cos_()).float()


def permutation(key: int, count: int, device: torch.device) -> Tensor:
    """A random order of 0 … count-1, int64 [count] on the device."""
    return bits(key, torch.arange(count, device=device)).argsort(stable=True)


@dataclass(frozen=True)
class Draws:
    """A method's random numbers in one training step.

    purpose: any number that tells draws of one method apart, counted from 0.
    """

    seed: int
    epoch: int
    step: int

    def uniform(self, purpose: int, index: Tensor, *shape: int) -> Tensor:
        """Numbers in [0, 1) for each sample of `index` [N] (`Batch.index`): float64 [N, *shape], the same whatever
        batch a sample comes in."""
        return uniform(key_of(self.seed, self.epoch, purpose), index, math.prod(shape)).view(-1, *shape)

    def normal(self, purpose: int, index: Tensor, *shape: int) -> Tensor:
        """Standard normal numbers for each sample: float32 [N, *shape]."""
        return normal(key_of(self.seed, self.epoch, purpose), index, math.prod(shape)).view(-1, *shape)

    def order(self, purpose: int, count: int, device: torch.device) -> Tensor:
        """A random order of 0 … count-1, another one in every step: int64 [count]."""
        return permutation(key_of(self.seed, self.epoch, purpose, self.step), count, device)


def seed_dropout(seed: int, epoch: int, step: int, device: torch.device) -> None:
    """Seed what dropout on `device` draws from in one step. `torch.manual_seed` visits every backend, which takes a
    hundred times as long."""
    key = key_of(seed, epoch, DROPOUT, step)
    torch.default_generator.manual_seed(key & (MASK >> 1))
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key & (MASK >> 1))
