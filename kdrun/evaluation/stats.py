"""Statistics over seeds: spread, Holm's correction, seeds needed, and the verdict on a published value. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALPHA = 0.05
POWER_QUANTILE = 0.8416212335729143  # of the normal distribution at a power of 80 %
MIN_SEEDS = 3  # minimum for a verdict
MAX_SEEDS = 1000  # more than anybody would train
TOST = 0.1  # two one-sided tests at 5 % correspond to the 90 % interval
EQUAL = 1e-9  # points: equal accuracies may differ by rounding of a division


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the arithmetic mean and the sample standard deviation (ddof=1); None below one and below two values."""
    if len(values) == 0:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction, in the order given (Holm 1979, Scandinavian Journal of
    Statistics 6).

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
    """Number of seeds that would decide a question, with an 80 % range of that number; None stands for more than
    MAX_SEEDS."""

    number: int | None
    low: int | None
    high: int | None


def seeds_for(distance: float, doubt: float, reach: Callable[[int], float]) -> Seeds:
    """Return the smallest numbers of seeds whose `reach` is no more than the distance, and than distance ± doubt.

    reach: seeds -> half the width of the deciding interval, plus the amount for 80 % power.
    """
    return Seeds(*(smallest(reach, one) for one in (distance, distance + doubt, distance - doubt)))


def smallest(reach: Callable[[int], float], distance: float) -> int | None:
    """Return the smallest number, at least two, with reach(number) <= distance; None if it exceeds MAX_SEEDS."""
    if distance <= EQUAL or reach(MAX_SEEDS) > distance:
        return None
    low, high = 1, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reach(middle) > distance else (low, middle)
    return high


@dataclass(frozen=True)
class Verdict:
    """Verdict on our mean against a published value, in points. low, high: the 90 % interval of the difference, None
    below three seeds and if all are equal; seeds: for an `unclear` verdict, how many would decide it, None if
    unknown."""

    difference: float
    word: str
    low: float | None = None
    high: float | None = None
    seeds: Seeds | None = None


def verdict(values: Sequence[float], published: float, margin: float) -> Verdict:
    """Test equivalence with the published value, which is treated as exact.

    `reproduced` means that the 90 % interval of our mean lies within ± margin of it, which are two one-sided t-tests at
    5 % (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15): more spread makes it harder. `differs`
    means that the interval excludes it and is not within the margin. The interval uses only these seeds, since the
    spread of other cells need not apply to this one.

    Equation:
        mean - published ± t(0.95, n - 1) s / sqrt(n)
    """
    mean, std = mean_std(values)
    assert mean is not None
    difference = mean - published
    if len(values) < MIN_SEEDS or std is None:
        return Verdict(difference, "too few seeds")
    if std <= EQUAL:  # no interval: a constant value may come from a test set of few images
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
    """Return the quantile of Student's t that |t| of so many seeds exceeds with probability alpha."""
    from scipy.special import stdtrit

    return float(stdtrit(seeds - 1, 1 - alpha / 2))
