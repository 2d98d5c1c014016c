"""Statistics over seeds: spread, verdicts against published values, paired tests, seeds needed. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

ALPHA = 0.05
POWER = 0.8
UNPUBLISHED_STD = 0.25  # points; of CIFAR-100 accuracies whose publication prints none
MIN_SEEDS = 3  # for a verdict
MAX_SEEDS = 1000  # beyond it nobody would train them
EQUAL = 1e-9  # points: accuracies come from divisions, equal ones differ by less than this

SEPARATED = "already separated"
UNKNOWN = "not from these data"


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Arithmetic mean and sample standard deviation (ddof=1); None below one and below two values."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True)
class Comparison:
    """Ours beside a published value, in points. z is None below three seeds."""

    difference: float
    z: float | None
    verdict: str


def compare(values: Sequence[float], published: float, published_std: float | None) -> Comparison:
    """`reproduced` where the mean over seeds lies within two standard errors of the published value.

    Equation:
        |mean - published| <= 2 sqrt(s^2 / n + sigma^2)
        z = (mean - published) / sqrt(s^2 / n + sigma^2)
    with s the sample standard deviation of our n seeds and sigma the published one (0.25 points where none is printed).
    """
    mean, std = mean_std(values)
    assert mean is not None
    difference = mean - published
    if len(values) < MIN_SEEDS or std is None:
        return Comparison(difference, None, "too few seeds")
    sigma = UNPUBLISHED_STD if published_std is None else published_std
    scale = math.sqrt(std**2 / len(values) + sigma**2)
    z = difference / max(scale, EQUAL)  # where neither side varies, the slightest difference is one
    return Comparison(difference, z, "reproduced" if abs(z) <= 2 else "above" if z > 0 else "below")


@dataclass(frozen=True)
class PairedTest:
    """A row against another over their common seeds. difference: mean of (row - against), in points.

    p: of the two-sided paired t-test; None where it cannot judge (below two common seeds, or the same difference, not
    zero, in every seed). p_holm: corrected for all tests of the table. seeds: how many would separate the two with
    80 % power at the level that the correction leaves them, or SEPARATED, or UNKNOWN.
    """

    row: str
    against: str
    n: int
    difference: float
    std: float | None
    t: float | None
    p: float | None
    p_holm: float | None = None
    seeds: str = UNKNOWN

    @property
    def distinguishable(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA


def paired_test(row: str, ours: Mapping[int, float], against: str, theirs: Mapping[int, float]) -> PairedTest | None:
    """The paired t-test of two rows, seed -> value each; None where no seed is common."""
    differences = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
    mean, std = mean_std(differences)
    if mean is None:
        return None
    n = len(differences)
    if std is None:
        return PairedTest(row, against, n, mean, None, None, None)
    if std <= EQUAL:
        # t is 0/0 or infinite. No difference at all is no evidence; the same one in every seed may be a single test
        # image, whose p would come out as 0.
        return PairedTest(row, against, n, mean, 0.0, None, 1.0 if abs(mean) <= EQUAL else None)
    from scipy.special import stdtr

    t = mean / (std / math.sqrt(n))
    return PairedTest(row, against, n, mean, std, t, float(2 * stdtr(n - 1, -abs(t))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given (Holm 1979, Scandinavian Journal of Statistics 6).

    Equation:
        p_holm of the k-th smallest = max over j <= k of min(1, (m - j + 1) p of the j-th smallest)
    """
    corrected = [0.0] * len(p_values)
    highest, factors = 0.0, holm_factors(p_values)
    for position in sorted(range(len(p_values)), key=lambda place: p_values[place]):
        highest = max(highest, min(1.0, factors[position] * p_values[position]))
        corrected[position] = highest
    return corrected


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t-test over n seeds finds an effect of |mean| / std = effect."""
    from scipy.special import nctdtr, stdtrit

    critical = float(stdtrit(n - 1, 1 - alpha / 2))
    shift = abs(effect) * math.sqrt(n)
    under, far = float(nctdtr(n - 1, shift, critical)), float(nctdtr(n - 1, shift, -critical))
    return 1 - (under if math.isfinite(under) else 0.0) + (far if math.isfinite(far) else 0.0)  # tails may underflow


def seeds_needed(difference: float, std: float | None, alpha: float = ALPHA) -> str:
    """The smallest number of seeds with 80 % power, if mean and std of the differences are what was observed."""
    if std is None or std <= EQUAL or abs(difference) <= EQUAL:
        return UNKNOWN
    effect = abs(difference) / std
    low, high = 1, 2
    while power(effect, high, alpha) < POWER:
        low, high = high, 2 * high
        if low >= MAX_SEEDS:
            return f"over {MAX_SEEDS}"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, middle, alpha) < POWER else (low, middle)
    return f"over {MAX_SEEDS}" if high > MAX_SEEDS else str(high)


def corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests of one table, with Holm's correction over all that have a p-value, and the seeds they would need.

    A test that the correction holds back must pass at ALPHA over its factor, so that is the level its seeds are
    counted for: at the plain level the answer could be fewer seeds than there are.
    """
    usable = [test.p for test in tests if test.p is not None]
    adjusted = iter(zip(holm(usable), holm_factors(usable), strict=True))
    done = []
    for test in tests:
        if test.p is None:
            done.append(test)
            continue
        p_holm, factor = next(adjusted)
        if p_holm < ALPHA:
            seeds = SEPARATED
        else:
            factor = max(factor, p_holm / test.p if test.p > 0 else 1.0)
            seeds = seeds_needed(test.difference, test.std, ALPHA / factor)
        done.append(replace(test, p_holm=p_holm, seeds=seeds))
    return done


def holm_factors(p_values: Sequence[float]) -> list[int]:
    """By how much Holm's correction multiplies each p-value before it makes them monotone."""
    factors = [0] * len(p_values)
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        factors[position] = len(p_values) - rank
    return factors
