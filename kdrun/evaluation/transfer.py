"""Bias transfer: the share of accuracy that students keep on a derived test set, and whether distillation moved it
towards their teacher's.

There are two sources of noise, as in multi-reader multi-case studies: seeds and images. Their variances are estimated
separately and added. Three seeds estimate a variance poorly, so the variances of a grid are moderated: shrunk towards
the rows' common variance, the more the rows are alike. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdrun.evaluation.predictions import Answers

LEVEL = 0.95
LIMITS = (-1.0, 2.0)  # of the transfer ratio: equally far below the independent student and beyond the teacher
LEAST_VARIANCE = 0.01  # relative to the test set's median: networks that always predict one class have no variance
NO_GAP = "teacher and independent student do not differ beyond noise"
NO_SPREAD = "no interval: at least two seeds needed"


@dataclass(frozen=True)
class Interval:
    """Estimate with its interval; `reason` if one is blank."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def beyond(self) -> bool:
        """Return True if it excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Kept:
    """Share of its accuracy that a row keeps. values: of each seed, [S], fractions; effects: the influence of each
    image, [S, N]; two arrays if the clean images are different ones from the derived."""

    values: np.ndarray
    effects: list[np.ndarray]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def variance(self) -> float | None:
        """Return the variance over seeds; None below two."""
        return float(self.values.var(ddof=1)) if len(self.values) > 1 else None

    def own(self, place: int) -> float:
        """Return how much of the mean effect's variance over images is due to single seeds, which `variance` already
        contains."""
        effects = self.effects[place]
        return float(effects.var(axis=0, ddof=1).mean()) / effects.size if len(effects) > 1 else 0.0


def kept_of(seeds: Sequence[tuple[Answers, Answers]]) -> Kept:
    """Return the share kept, from (derived, clean) predictions of each seed. Mixing in random predictions lowers both
    equally, and changes nothing.

    Equation:
        kept = (accuracy on the set - 1/K) / (accuracy on clean images - 1/K)
    """
    values, effects = [], []
    for derived, clean in seeds:
        chance = 1 / derived.log_probabilities.shape[1]
        above, whole = derived.right - chance, clean.right - chance
        value = float(above.mean() / whole.mean())
        values.append(value)
        same = np.array_equal(derived.labels, clean.labels)
        parts = [above - value * whole] if same else [above - above.mean(), -value * (whole - whole.mean())]
        effects.append([part / whole.mean() for part in parts])
    return Kept(np.array(values), [np.stack(parts) for parts in zip(*effects, strict=True)])


@dataclass(frozen=True)
class Variance:
    """Variance of one seed's value. df: its degrees of freedom; most: those of all rows of the test set, the maximum
    for two moderated variances together."""

    value: float
    df: float
    most: float


def moderated(sets: Sequence[Sequence[Kept]]) -> list[list[Variance | None]]:
    """Return the variances over seeds of the rows (the same in each) of each test set, shrunk towards the set's pooled
    variance by empirical Bayes (Smyth 2004, "Linear models and empirical Bayes methods"), by the same amount for all
    sets.

    Equation:
        max((d0 v + d s²) / (d0 + d), r v), with d0 + d degrees of freedom, no more than the set has d = seeds - 1; v:
        pooled over the rows; r: the row's mean s² / v over the sets, so that a row that varies more than its neighbours
        everywhere is not shrunk to theirs; d0: from the excess of the log variances' spread in a set over chance. None
        if no row has two seeds.
    """
    prior, pooled = prior_df(sets), [pooled_variance(rows) for rows in sets]
    varied = [place for place, value in enumerate(pooled) if value]
    factors = []
    for row in range(len(sets[0]) if sets else 0):
        own = [variance / pooled[place] for place in varied if (variance := sets[place][row].variance) is not None]
        factors.append(float(np.mean(own)) if own else 0.0)
    return [
        [moderated_variance(row, prior, centre, factor, rows) for row, factor in zip(rows, factors, strict=True)]
        for rows, centre in zip(sets, pooled, strict=True)
    ]


def pooled_variance(rows: Sequence[Kept]) -> float:
    """Return the pooled variance; 0 if no row has two seeds."""
    free = sum(len(row.values) - 1 for row in rows)
    return sum((len(row.values) - 1) * (row.variance or 0.0) for row in rows) / free if free else 0.0


def moderated_variance(
    row: Kept, prior: float, centre: float, factor: float, neighbours: Sequence[Kept]
) -> Variance | None:
    free, most = len(row.values) - 1, sum(len(other.values) - 1 for other in neighbours)
    if not most or not prior + free:
        return None
    weight = 1.0 if math.isinf(prior) else prior / (prior + free)
    drawn = weight * centre + (1 - weight) * (row.variance or 0.0)
    return Variance(max(drawn, factor * centre), min(prior + free, most), most)


def prior_df(sets: Sequence[Sequence[Kept]]) -> float:
    """Return d0; infinite if the variances of each set differ by no more than chance."""
    from scipy import optimize, special

    squares, chance, free = 0.0, 0.0, 0
    for rows in sets:
        logs, dfs = log_variances(rows)
        if len(logs) > 1:
            squares += float(((logs - logs.mean()) ** 2).sum())
            chance += float(special.polygamma(1, dfs / 2).mean()) * (len(logs) - 1)
            free += len(logs) - 1
    if not free:
        return 0.0
    excess = (squares - chance) / free
    low, high = 0.05, 1e4
    if excess <= special.polygamma(1, high):
        return math.inf
    if excess >= special.polygamma(1, low):
        return 2 * low
    found = optimize.brentq(lambda half: special.polygamma(1, half) - excess, low, high)
    assert isinstance(found, float)
    return 2 * found


def log_variances(rows: Sequence[Kept]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for rows with at least two seeds, unbiased logarithms of the variances and their degrees of freedom."""
    from scipy import special

    found = [(row.variance, len(row.values) - 1) for row in rows if row.variance is not None]
    values = np.array([value for value, _ in found], dtype=float)
    dfs = np.array([df for _, df in found], dtype=float)
    least = LEAST_VARIANCE * float(np.median(values)) if len(values) else 0.0
    if least == 0:
        return np.array([]), np.array([])
    return np.log(np.maximum(values, least)) - special.digamma(dfs / 2) + np.log(dfs / 2), dfs


@dataclass(frozen=True)
class Shift:
    """Shift of a student from the independent student of its own network, and the distance from there to the
    teacher; both in accuracy kept, as fractions. Without variances there is no interval."""

    value: float
    gap: float | None
    variance: float | None = None
    gap_variance: float = 0.0
    covariance: float = 0.0
    df: float = 0.0
    gap_df: float = 0.0

    @property
    def standard_error(self) -> float | None:
        """Return the standard error in points."""
        return None if self.variance is None else 100 * math.sqrt(self.variance)

    def interval(self, tests: int) -> Interval:
        """Return the interval in points; all of `tests` intervals hold jointly in 95 % of experiments (Bonferroni)."""
        if self.variance is None:
            return Interval(100 * self.value, reason=NO_SPREAD)
        reach = quantile(self.df, tests) * math.sqrt(self.variance)
        return Interval(100 * self.value, 100 * (self.value - reach), 100 * (self.value + reach))

    def ratio(self, tests: int) -> Interval:
        """Return shift / gap with Fieller's interval (1954), which excludes 0 whenever that of the shift does. Blank
        if the gap's own interval contains 0; clipped to LIMITS."""
        if self.variance is None or self.gap is None:
            return Interval(None, reason=NO_SPREAD)
        t = quantile(self.df, tests)
        if self.gap**2 <= max(t, quantile(self.gap_df, tests)) ** 2 * self.gap_variance:
            return Interval(None, reason=NO_GAP)
        # |shift - r gap| <= t · its standard error, a quadratic in r
        a = self.gap**2 - t**2 * self.gap_variance
        b = self.value * self.gap - t**2 * self.covariance
        c = self.value**2 - t**2 * self.variance
        root = math.sqrt(max(b**2 - a * c, 0.0))
        ends = (self.value / self.gap, (b - root) / a, (b + root) / a)
        value, low, high = (min(max(end, LIMITS[0]), LIMITS[1]) for end in ends)
        return Interval(value, low, high)


def quantile(df: float, tests: int) -> float:
    """Return the quantile of Student's t: how many standard errors an interval extends to either side."""
    from scipy import special

    return float(special.stdtrit(df, 1 - (1 - LEVEL) / (2 * max(tests, 1))))


def shift_of(
    student: Kept, control: Kept, teacher: Kept | None, spread: Variance | None, control_spread: Variance | None
) -> Shift:
    """Return the shift of a student. spread, control_spread: of one seed of the student's and the control's row. The
    teacher is a single network, with which all seeds were trained."""
    value = student.mean - control.mean
    way = None if teacher is None else way_to(teacher, control, control_spread)
    if spread is None or control_spread is None:
        return Shift(value, way and way.value)
    ours, base = spread.value / len(student.values), control_spread.value / len(control.values)
    images = image_covariance(student, student, control)
    seeds_df = min(satterthwaite([(ours, spread.df), (base, control_spread.df)]), spread.most)
    df = satterthwaite([(ours + base, seeds_df), (images, student.effects[0].shape[1] - 1)])
    if teacher is None or way is None or way.variance is None:
        return Shift(value, None, ours + base + images, df=df)
    covariance = base + image_covariance(student, teacher, control)
    return Shift(value, way.value, ours + base + images, way.variance, covariance, df, way.df)


def way_to(teacher: Kept, control: Kept, spread: Variance | None) -> Shift:
    """Return the distance from the independent students to the teacher, as a shift."""
    way = teacher.mean - control.mean
    if spread is None:
        return Shift(way, way)
    base, images = spread.value / len(control.values), image_covariance(teacher, teacher, control)
    df = satterthwaite([(base, spread.df), (images, teacher.effects[0].shape[1] - 1)])
    total = base + images
    return Shift(way, way, total, total, total, df, df)


def image_covariance(one: Kept, other: Kept, control: Kept) -> float:
    """Return the covariance over images of (one - control) with (other - control), without the contribution of
    single seeds of a row."""
    total = 0.0
    for place, base in enumerate(control.effects):
        first, second = (row.effects[place].mean(axis=0) - base.mean(axis=0) for row in (one, other))
        total += float(np.cov(first, second)[0, 1]) / base.shape[1] - control.own(place)
        total -= one.own(place) if one is other else 0.0
    return max(total, 0.0) if one is other else total


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a sum of independent variances."""
    total = sum(value for value, _ in parts)
    return total**2 / sum(value**2 / df for value, df in parts) if total else parts[-1][1]
