"""Random seeds of training: one for each network, purpose and position. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

VERSION = 2  # part of a run's identity: other streams give other results

MASK = 2**64 - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(x: int) -> int:
    """Return one output of SplitMix64 (Steele et al. 2014) for the state `x`: golden-ratio step, then the finaliser."""
    x = (x + GOLDEN) & MASK
    x = ((x ^ (x >> 30)) * FIRST) & MASK
    x = ((x ^ (x >> 27)) * SECOND) & MASK
    return x ^ (x >> 31)


def key_of(*words: int) -> int:
    """Return a 64-bit key of an ordered sequence of non-negative integers, such as (seed, epoch, purpose)."""
    key = 0
    for word in words:
        key = mix((key + word) & MASK)
    return key


@dataclass(frozen=True)
class Streams:
    """Random seeds for training one network. No two coincide: neither those of different roles ("student",
    "teacher", "peer") or purposes, nor those of different seeds."""

    role: str
    seed: int

    @cached_property
    def start(self) -> int:
        """Return the seed of the network's initial weights."""
        return self._hash("start")

    @cached_property
    def parts(self) -> int:
        """Return the seed of the initial weights of the method's own modules."""
        return self._hash("parts")

    @cached_property
    def data(self) -> int:
        """Return the seed of the images' order and augmentation."""
        return self._hash("data")

    @cached_property
    def method(self) -> int:
        """Return the seed of the method's own draws."""
        return self._hash("method")

    @cached_property
    def dropout(self) -> int:
        """Return the seed of dropout and stochastic depth."""
        return self._hash("dropout")

    def _hash(self, purpose: str) -> int:
        """Return 63 bits of a hash. PyTorch's CPU generator keeps the lower 32 bits of a seed, where 2**32 + n
        equals n."""
        text = f"kdrun {VERSION} {self.role} {self.seed} {purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
