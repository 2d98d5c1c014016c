"""Timing side by side. Machines drift and other programs disturb, so only ratios within the same round are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Step = Callable[[], int]  # one unit of work; returns the number of images processed


@dataclass
class Timing:
    """Images per second, one number per round."""

    name: str
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def ratio(self, base: Timing) -> tuple[float, float, float]:
        """Return (median, lowest, highest) over the rounds of this rate divided by the base's of the same round."""
        ratios = [mine / other for mine, other in zip(self.rates, base.rates, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def alternate(
    rows: dict[str, Step],
    rounds: int,
    steps: int,
    warm: int,
    device: torch.device,
    tick: Callable[[], object],
    drop: Callable[[str, Exception], object],
) -> list[Timing]:
    """Run every row for `steps` steps alternately, in `rounds` rounds, after `warm` steps each. A round's rate is all
    its images over all its time, including stalls, as a user would experience it. A row that fails in its first steps
    is passed to `drop`, and the others go on; but the first row's error is raised, since all ratios are to it."""
    timings = []
    for name, step in rows.items():
        try:
            for _ in range(warm):
                step()
            synchronize(device)
            timings.append(Timing(name))
        except Exception as error:  # from a compiler, a graph's recording or a full memory
            if not timings:
                raise
            drop(name, error)
        tick()
    for _ in range(rounds):
        for timing in timings:
            timing.rates.append(rate_of(rows[timing.name], steps, device))
            tick()
    return timings


def rate_of(step: Step, steps: int, device: torch.device) -> float:
    begun = time.perf_counter()
    images = sum(step() for _ in range(steps))
    getattr(step, "wait", lambda: synchronize(device))()  # a step in another process has a device of its own
    return images / (time.perf_counter() - begun)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


LONG = 2.0  # seconds: work that takes this long needs neither warm-up nor many repeats
QUEUED = 20  # calls on a GPU between two synchronisations, which take longer than a small kernel


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = 9, warm: int = 3) -> float:
    """Return the median time of one call, from `repeats` measurements after `warm`, or from as many as take LONG
    together. On a GPU each measures QUEUED calls."""
    calls = QUEUED if device.type == "cuda" else 1
    spent: list[float] = []
    while len(spent) < warm + repeats and sum(spent) < LONG:
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent[min(warm, len(spent) - 1) :]) / calls
