"""Division of a batch's images among the processes that train one run together."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Share(NamedTuple):
    """A share: the images of one batch that this process computes, those of number `rank`. counts: images of each
    process."""

    rank: int
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def own(self) -> int:
        return self.counts[self.rank]

    @property
    def rows(self) -> slice:
        """Return the positions of this process's images in the batch."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.own)


class Part(NamedTuple):
    """The number `rank` of this process among the `size` processes that train one run."""

    rank: int = 0
    size: int = 1

    def cut(self, start: int, stop: int, unit: int = 1) -> tuple[slice, Share | None]:
        """Return this process's slice of one batch (positions start … stop-1 of an epoch's order), and its share.

        unit: consecutive images that stay together. A batch with fewer images than processes goes whole to every
        process, without a share.
        """
        count = stop - start
        units = -(-count // unit)
        if self.size == 1 or units < self.size:
            return slice(start, stop), None
        edges = [min(unit * (rank * units // self.size), count) for rank in range(self.size + 1)]
        counts = tuple(after - before for before, after in pairwise(edges))
        return slice(start + edges[self.rank], start + edges[self.rank + 1]), Share(self.rank, counts)

    def turns(self, count: int, size: int) -> range:
        """Return the starts of this process's batches of `size`, when processes take turns."""
        return range(self.rank * size, count, self.size * size)

    def most(self, count: int, unit: int = 1) -> int:
        """Return the largest number of images of a batch of `count` that a process takes."""
        units = -(-count // unit)
        return min(count, unit * -(-units // self.size))
