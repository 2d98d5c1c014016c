"""What students keep of their accuracy on a derived test set, and whether they moved towards their teacher in that.

Two sources of noise, as in reader studies of many readers and many cases: other seeds and other images. Their variances
are estimated apart and added. Three seeds say little of a variance, so those of a grid are moderated: drawn towards
what the rows have in common, the further the more alike they are. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdrun.evaluation.predictions import Answers

LEVEL = 0.95
LIMITS = (-1.0, 2.0)  # of the transfer ratio: as far before the independent student as beyond the teacher
LEAST_VARIANCE = 0.01  # of the median of its test set: networks that name one class throughout have none
NO_GAP = "teacher and independent student do not differ beyond noise"
NO_SPREAD = "no interval: it takes two seeds"


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; `reason` where one is blank."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def beyond(self) -> bool:
        """Whether it excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Kept:
    """The share of its accuracy that a row keeps. values: of each seed, [S], fractions; effects: by how much each image
    raises it, [S, N]; two of them where the clean images are others than the derived ones."""

    values: np.ndarray
    effects: list[np.ndarray]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def variance(self) -> float | None:
        """Over seeds; None below two."""
        return float(self.values.var(ddof=1)) if len(self.values) > 1 else None

    def own(self, place: int) -> float:
        """How much of the variance over images of the mean effect is of single seeds, which `variance` holds too."""
        effects = self.effects[place]
        return float(effects.var(axis=0, ddof=1).mean()) / effects.size if len(effects) > 1 else 0.0


def kept_of(seeds: Sequence[tuple[Answers, Answers]]) -> Kept:
    """Of (derived, clean) answers of each seed. Random answers mixed in lower both alike, and change nothing.

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
    """Of one seed's value. df: degrees of freedom that it is known with; most: those of all rows of the test set, as
    many as two moderated variances together can have."""

    value: float
    df: float
    most: float


def moderated(sets: Sequence[Sequence[Kept]]) -> list[list[Variance | None]]:
    """The variances over seeds of the rows (the same in each) of each test set, drawn towards the pooled one of the set
    by empirical Bayes (Smyth 2004, "Linear models and empirical Bayes methods"): how far, is one number for all sets.

    Equation:
        max((d0 v + d s²) / (d0 + d), r v), with d0 + d degrees of freedom, no more than the set has
    d = seeds - 1; v: pooled over the rows; r: the row's mean s² / v over the sets, so that a row that varies more than
    its neighbours everywhere is not made like them; d0: from how much more the log variances of a set differ than
    chance makes them. None where no row has two seeds.
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
    """0 where no row has two seeds."""
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
    """d0; infinite where the variances of each set differ by no more than chance."""
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
    """Of the rows with two seeds and more: unbiased logarithms of the variances, their degrees of freedom."""
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
    """A student beside the independent student of its own network, and beside the way from there to the teacher; of
    what they keep, as fractions. Without variances no interval."""

    value: float
    gap: float | None
    variance: float | None = None
    gap_variance: float = 0.0
    covariance: float = 0.0
    df: float = 0.0
    gap_df: float = 0.0

    @property
    def standard_error(self) -> float | None:
        """In points."""
        return None if self.variance is None else 100 * math.sqrt(self.variance)

    def interval(self, tests: int) -> Interval:
        """In points; of `tests` intervals all hold together in 95 % of experiments (Bonferroni)."""
        if self.variance is None:
            return Interval(100 * self.value, reason=NO_SPREAD)
        reach = quantile(self.df, tests) * math.sqrt(self.variance)
        return Interval(100 * self.value, 100 * (self.value - reach), 100 * (self.value + reach))

    def ratio(self, tests: int) -> Interval:
        """shift / gap with Fieller's interval (1954): it excludes 0 where that of the shift does. Blank where the gap's
        own interval holds 0; kept within LIMITS."""
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
    """Of Student's t: how many standard errors an interval reaches to either side."""
    from scipy import special

    return float(special.stdtrit(df, 1 - (1 - LEVEL) / (2 * max(tests, 1))))


def shift_of(
    student: Kept, control: Kept, teacher: Kept | None, spread: Variance | None, control_spread: Variance | None
) -> Shift:
    """spread, control_spread: of one seed of the student's and the control's row. The teacher is one network, the one
    that all seeds learned from."""
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
    """From the independent students to the teacher, as a shift of its own."""
    way = teacher.mean - control.mean
    if spread is None:
        return Shift(way, way)
    base, images = spread.value / len(control.values), image_covariance(teacher, teacher, control)
    df = satterthwaite([(base, spread.df), (images, teacher.effects[0].shape[1] - 1)])
    total = base + images
    return Shift(way, way, total, total, total, df, df)


def image_covariance(one: Kept, other: Kept, control: Kept) -> float:
    """Over images: of one - control with other - control, without what single seeds of a row add by themselves."""
    total = 0.0
    for place, base in enumerate(control.effects):
        first, second = (row.effects[place].mean(axis=0) - base.mean(axis=0) for row in (one, other))
        total += float(np.cov(first, second)[0, 1]) / base.shape[1] - control.own(place)
        total -= one.own(place) if one is other else 0.0
    return max(total, 0.0) if one is other else total


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independent variances with theirs."""
    total = sum(value for value, _ in parts)
    return total**2 / sum(value**2 / df for value, df in parts) if total else parts[-1][1]
