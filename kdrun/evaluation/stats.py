"""Statistics over seeds: spread, Holm's correction, seeds needed, and the verdict on a published value. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALPHA = 0.05
POWER_QUANTILE = 0.8416212335729143  # of the normal distribution at a power of 80 %
MIN_SEEDS = 3  # for a verdict
MAX_SEEDS = 1000  # beyond it nobody would train them
TOST = 0.1  # two one-sided tests at 5 % are the interval of 90 %
EQUAL = 1e-9  # points: accuracies come from divisions, equal ones differ by less than this


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Arithmetic mean and sample standard deviation (ddof=1); None below one and below two values."""
    if len(values) == 0:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given (Holm 1979, Scandinavian Journal of Statistics 6).

    Equation:
        p_holm of the k-th smallest = max over j <= k of min(1, (m - j + 1) p of the j-th smallest)
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = highest
    return corrected


@dataclass(frozen=True)
class Seeds:
    """How many seeds would settle a question, with the numbers of which the true one is among in four of five cases;
    None stands for more than MAX_SEEDS."""

    number: int | None
    low: int | None
    high: int | None


def seeds_for(distance: float, doubt: float, reach: Callable[[int], float]) -> Seeds:
    """The smallest numbers of seeds whose `reach` is no more than the distance, and than distance ± doubt.

    reach: seeds -> half the width of the interval that decides, plus what 80 % power takes.
    """
    return Seeds(*(smallest(reach, one) for one in (distance, distance + doubt, distance - doubt)))


def smallest(reach: Callable[[int], float], distance: float) -> int | None:
    """The smallest number of at least two with reach(number) <= distance; None where MAX_SEEDS do not get there."""
    if distance <= EQUAL or reach(MAX_SEEDS) > distance:
        return None
    low, high = 1, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reach(middle) > distance else (low, middle)
    return high


@dataclass(frozen=True)
class Verdict:
    """Ours beside a published value, in points. low, high: the 90 % interval of the difference; None below three
    seeds, and where all are alike. seeds: of an `unclear` one, how many would settle it; None where none can be said.
    """

    difference: float
    word: str
    low: float | None = None
    high: float | None = None
    seeds: Seeds | None = None


def verdict(values: Sequence[float], published: float, margin: float) -> Verdict:
    """Test equivalence with the published value, which is taken as the number it is.

    `reproduced` means that the 90 % interval of our mean lies within ± margin of it, which are two one-sided t-tests at
    5 % (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15): more spread makes it harder. `differs`
    means that the interval excludes it and is not within the margin. The interval is of these seeds alone: what other
    cells of the table spread says nothing about this one for certain.

    Equation:
        mean - published ± t(0.95, n - 1) s / sqrt(n)
    """
    mean, std = mean_std(values)
    assert mean is not None
    difference = mean - published
    if len(values) < MIN_SEEDS or std is None:
        return Verdict(difference, "too few seeds")
    if std <= EQUAL:  # no interval: a figure that never moves may be a test set of few images
        return Verdict(difference, "unclear")
    half = std * quantile(len(values), TOST) / math.sqrt(len(values))
    low, high = difference - half, difference + half
    if -margin <= low and high <= margin:
        return Verdict(difference, "reproduced", low, high)
    if low > 0 or high < 0:
        return Verdict(difference, "differs", low, high)

    def reach(number: int) -> float:
        return std * (quantile(number, TOST) + POWER_QUANTILE) / math.sqrt(number)

    distance = max(abs(difference), margin - abs(difference))  # to `differs`, or to `reproduced`
    doubt = std * quantile(len(values), 0.2) / math.sqrt(len(values))
    return Verdict(difference, "unclear", low, high, seeds_for(distance, doubt, reach))


def quantile(seeds: int, alpha: float) -> float:
    """Student's t that |t| of so many seeds exceeds with probability alpha."""
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 1 - alpha / 2))
