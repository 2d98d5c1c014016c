"""How the images of a batch are shared out among the processes that train one run together."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Share(NamedTuple):
    """The images of one batch that this process has: those of number `rank`, where `counts` says how many each has."""

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
        """Where they stand in the batch."""
        start = sum(self.counts[: self.rank])
        return slice(start, start + self.own)


class Part(NamedTuple):
    """This process among those that train one run: number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def cut(self, start: int, stop: int, unit: int = 1) -> tuple[slice, Share | None]:
        """Return which of the places start … stop-1 of an epoch's order, one batch, this process takes, and its share.
        unit: images that stay together. A batch of fewer images than processes is every one's whole, without a share.
        """
        count = stop - start
        units = -(-count // unit)
        if self.size == 1 or units < self.size:
            return slice(start, stop), None
        edges = [min(unit * (rank * units // self.size), count) for rank in range(self.size + 1)]
        counts = tuple(after - before for before, after in pairwise(edges))
        return slice(start + edges[self.rank], start + edges[self.rank + 1]), Share(self.rank, counts)

    def turns(self, count: int, size: int) -> range:
        """Return where those of the batches of `size` begin that are this process's, in turn with the others."""
        return range(self.rank * size, count, self.size * size)

    def most(self, count: int, unit: int = 1) -> int:
        """Return how many images of a batch of `count` a process takes at most."""
        units = -(-count // unit)
        return min(count, unit * -(-units // self.size))
