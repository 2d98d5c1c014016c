"""Differences between the rows of a table: intervals, tests and the seeds that they need. No torch here.

With three seeds a cell's own variance has two degrees of freedom, and a t-test on it has hardly any power. So the
variances are moderated: each is shrunk towards the spread of the whole table (empirical Bayes; Smyth 2004, Statistical
Applications in Genetics and Molecular Biology 3), the more the cells are alike in spread. A few cells determine this
amount poorly; so instead of the best prior, all priors are averaged, weighted by how well they explain the table.

Equation:
    variance of a cell ~ scaled inverse chi-squared (d0, v0); the cell's moderated variance, with d = n - 1,
        v = (d0 v0 + d s^2) / (d0 + d), on d0 + d degrees of freedom
    t = (mean_1 - mean_2) / sqrt(v_1 / n_1 + v_2 / n_2), degrees of freedom by Welch and Satterthwaite
    p = sum over (d0, v0) of weight * P(|T| >= |t|); weight: the likelihood of all s^2 of the table, log v0 and
    sqrt(2 / d0), about the standard deviation of the cells' log variances, being uniform beforehand

scripts/compare_tests.py measures its error rates and power against other tests'; docs/statistics.md has the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from kdrun.evaluation.stats import ALPHA, EQUAL, POWER_QUANTILE, Seeds, holm, mean_std, seeds_for

LOG_SPREADS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.7, 2.0, 2.4)  # sqrt(2 / d0)
SAME = 1e9  # d0 if all cells share one variance
LOG_RANGE = (-3.0, 4.0)  # of v0 over the table's mean variance
NEGLIGIBLE = 1e-5  # a prior's weight
ONE_SIGMA = 0.31731050786291415  # probability of a normal variable beyond one standard deviation


@dataclass(frozen=True)
class Sample:
    """Summary of the seeds of a cell."""

    mean: float
    variance: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample | None:
        """Return the summary; None below two seeds, which have no spread."""
        mean, std = mean_std(values)
        return None if mean is None or std is None else cls(mean, std**2, len(values))


@dataclass(frozen=True)
class Spread:
    """Estimated distribution of a table's variances: priors (d0, v0) with their weights, which sum to 1."""

    weights: np.ndarray
    freedoms: np.ndarray
    variances: np.ndarray

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Spread | None:
        """Return the estimate; None if no cell of the table varies at all."""
        found = list(samples)
        freedom = np.array([one.n - 1.0 for one in found])
        variance = np.array([one.variance for one in found])
        if not found or np.sqrt(variance.max()) <= EQUAL:
            return None
        total = freedom.sum()
        step = min(0.25, np.sqrt(2 / total))
        logs = np.log(variance @ freedom / total) + np.arange(*LOG_RANGE, step)
        priors = [2 / spread**2 if spread else SAME for spread in LOG_SPREADS]
        likely = np.stack([log_likelihood(variance, freedom, prior, logs) for prior in priors])
        weights = np.exp(likely - likely.max())
        weights /= weights.sum()
        kept = weights > NEGLIGIBLE
        all_freedoms, all_variances = np.meshgrid(priors, np.exp(logs), indexing="ij")
        return cls(weights[kept] / weights[kept].sum(), all_freedoms[kept], all_variances[kept])

    def moderated(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Return (variance, degrees of freedom) of a cell under each prior."""
        own = sample.n - 1
        freedom = self.freedoms + own
        return (self.freedoms * self.variances + own * sample.variance) / freedom, freedom


def log_likelihood(variance: np.ndarray, freedom: np.ndarray, prior: float, logs: np.ndarray) -> np.ndarray:
    """Return the log likelihood of all variances of a table under prior degrees of freedom and each log v0, up to a
    constant: s^2 / v0 follows F(d, d0)."""
    from scipy.special import gammaln

    ratio = variance / np.exp(logs)[:, None]
    if prior >= SAME:
        terms = freedom / 2 * (np.log(freedom / 2) - ratio - logs[:, None]) - gammaln(freedom / 2)
    else:
        terms = (
            gammaln((freedom + prior) / 2)
            - gammaln(freedom / 2)
            - gammaln(prior / 2)
            + freedom / 2 * (np.log(freedom / prior) - logs[:, None])
            - (freedom + prior) / 2 * np.log1p(freedom * ratio / prior)
        )
    return terms.sum(1)


@dataclass(frozen=True)
class Estimate:
    """Estimated difference of two cells: a mixture of t distributions around `difference`, one for each prior."""

    difference: float
    weights: np.ndarray
    scales: np.ndarray
    freedoms: np.ndarray

    @classmethod
    def of(cls, one: Sample, other: Sample, spread: Spread) -> Estimate:
        (first, first_freedom), (second, second_freedom) = spread.moderated(one), spread.moderated(other)
        first, second = first / one.n, second / other.n
        freedom = (first + second) ** 2 / (first**2 / first_freedom + second**2 / second_freedom)
        return cls(one.mean - other.mean, spread.weights, np.sqrt(first + second), freedom)

    def tail(self, distance: float) -> float:
        """Return the probability of a deviation larger than `distance`."""
        from scipy.special import stdtr

        return float(self.weights @ (2 * stdtr(self.freedoms, -abs(distance) / self.scales)))

    @property
    def p(self) -> float:
        return self.tail(self.difference)

    @cached_property
    def heights(self) -> np.ndarray:
        """Return the normalising constants of the densities."""
        from scipy.special import gammaln

        half = self.freedoms / 2
        return np.exp(gammaln(half + 0.5) - gammaln(half)) / np.sqrt(2 * np.pi * half)

    def half(self, alpha: float) -> float:
        """Return half the width of the 1 - alpha interval. The tail is convex, so Newton's steps from 0 never
        overshoot."""
        found = 0.0
        for _ in range(200):
            density = self.heights * (1 + (found / self.scales) ** 2 / self.freedoms) ** (-(self.freedoms + 1) / 2)
            step = (self.tail(found) - alpha) / float(2 * self.weights @ (density / self.scales))
            found += step
            if step <= 1e-10 * found:
                break
        return found

    def interval(self) -> tuple[float, float]:
        half = self.half(ALPHA)
        return self.difference - half, self.difference + half


@dataclass(frozen=True)
class Test:
    """Test of one row against another. difference: mean of row - mean of against, in points; low, high: its
    uncorrected 95 % interval; n, n_against: seeds; p_holm: corrected over the tests of its family; seeds: per row,
    if the two are not distinguishable. All but the difference are None if there are fewer than two seeds, or if no
    cell of the table varies."""

    row: str
    against: str
    n: int
    n_against: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    seeds: Seeds | None = None

    @property
    def distinguishable(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class Pair:
    """Two rows of a column with the values of their seeds."""

    row: str
    values: Sequence[float]
    against: str
    against_values: Sequence[float]


def family(pairs: Sequence[Pair], spread: Spread | None) -> list[Test]:
    """Return the tests of one column, Holm-corrected together."""
    estimates = [estimate(pair.values, pair.against_values, spread) for pair in pairs]
    p_values = [one.p for one in estimates if one is not None]
    adjusted = iter(holm(p_values))
    return [
        bare(pair) if one is None else judged(bare(pair), one, next(adjusted), ALPHA / len(p_values))
        for pair, one in zip(pairs, estimates, strict=True)
    ]


def estimate(values: Sequence[float], against: Sequence[float], spread: Spread | None) -> Estimate | None:
    """Return the estimate; None if a side has fewer than two seeds or nothing in the table varies."""
    one, other = Sample.of(values), Sample.of(against)
    return None if one is None or other is None or spread is None else Estimate.of(one, other, spread)


def bare(pair: Pair) -> Test:
    """Return the difference of two means, without a test."""
    (mean, _), (other, _) = mean_std(pair.values), mean_std(pair.against_values)
    assert mean is not None and other is not None
    return Test(pair.row, pair.against, len(pair.values), len(pair.against_values), mean - other)


def judged(test: Test, found: Estimate, p_holm: float, level: float) -> Test:
    """Return the completed test, with the seeds needed at `level`, the strictest of the correction."""
    low, high = found.interval()
    done = replace(test, low=low, high=high, p=found.p, p_holm=p_holm)
    if done.distinguishable:
        return done
    now = 2 / (1 / test.n + 1 / test.n_against)
    reach_now = found.half(level) + POWER_QUANTILE * found.half(ONE_SIGMA)
    return replace(
        done,
        seeds=seeds_for(abs(test.difference), found.half(0.2), lambda number: reach_now * (now / number) ** 0.5),
    )
