"""Statistics against independent oracles: scipy.stats, worked examples, simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdrun.evaluation.stats import holm, mean_std, verdict

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_mean_and_std_are_numpys(n):
    values = RNG.normal(73, 0.3, n)
    mean, std = mean_std(list(values))
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert std == pytest.approx(values.std(ddof=1), rel=1e-10)


def test_mean_and_std_of_few():
    assert mean_std([]) == (None, None)
    assert mean_std([71.5]) == (71.5, None)


def test_holm_on_worked_examples():
    """Wikipedia's "Holm-Bonferroni method": 0.01, 0.04, 0.03, 0.005 at 5 % rejects the 4th and the 1st, and stops at
    the 3rd. The adjusted values are R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_sequential_procedure(seed):
    """Rejected at alpha exactly where the stepwise rule rejects: the definition, without adjusted values."""
    p_values = np.random.default_rng(seed).uniform(0, 0.1, 12)
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for rank, position in enumerate(np.argsort(p_values)):
            if p_values[position] > alpha / (len(p_values) - rank):
                break
            rejected.add(int(position))
        assert {place for place, p in enumerate(holm(list(p_values))) if p <= alpha} == rejected


@pytest.mark.parametrize(
    ("values", "published", "word"),
    [
        ([73.5, 73.7, 73.6], 73.54, "reproduced"),
        ([74.5, 74.7, 74.6], 73.54, "differs"),
        ([72.5, 72.7, 72.6], 73.54, "differs"),
        ([73.1, 73.9, 73.6], 73.54, "unclear"),
        ([70.0, 73.0, 76.0], 73.56, "unclear"),  # the noisiest seeds reproduce nothing
        ([73.7, 73.8, 73.75], 73.54, "reproduced"),  # the interval excludes it, yet lies within the margin
        ([73.5, 73.7], 73.54, "too few seeds"),
        ([80.0], 73.54, "too few seeds"),
        ([73.0, 73.0, 73.0], 73.0, "unclear"),
    ],
)
def test_verdicts(values, published, word):
    found = verdict(values, published, 0.5)
    assert (found.word, found.difference) == (word, pytest.approx(np.mean(values) - published))
    assert (found.seeds is not None) == (word == "unclear" and np.std(values) > 0)
    if found.low is not None:
        oracle = scipy_stats.ttest_1samp(values, published).confidence_interval(0.9)
        shift = found.difference
        assert (found.low, found.high) == pytest.approx((oracle.low - published, oracle.high - published)) and (
            found.low < shift < found.high
        )
    else:
        assert len(values) < 3 or np.std(values) == 0


def test_the_margin_decides():
    values = [73.1, 73.9, 73.6]
    assert [verdict(values, 73.54, margin).word for margin in (0.5, 0.75)] == ["unclear", "reproduced"]
    assert verdict([73.7, 73.8, 73.75], 73.54, 0.1).word == "differs"


@pytest.mark.parametrize(
    ("gap", "sd", "n"), [(1.0, 0.15, 3), (1.0, 0.8, 3), (1.0, 3.0, 5), (0.5, 0.25, 3), (0.5, 2.0, 3)]
)
def test_what_is_a_margin_away_is_seldom_reproduced(gap, sd, n):
    draws = np.random.default_rng(3).normal(gap, sd, (3000, n))
    rate = np.mean([verdict(list(values), 0.0, 0.5).word == "reproduced" for values in draws])
    assert rate <= 0.05 + 0.01


def test_what_is_equal_is_reproduced_where_the_spread_permits():
    draws = np.random.default_rng(3).normal(0.0, 0.15, (2000, 5))
    words = [verdict(list(values), 0.0, 0.5).word for values in draws]
    assert words.count("reproduced") >= 0.97 * len(words) and words.count("differs") == 0


def test_the_seeds_of_a_verdict_are_the_smallest_number():
    """By hand: the difference 0.2 leaves 0.3 to the margin, which t(0.95, n - 1) and the power's 0.84 must fit in; at
    0.4 it is nearer to `differs`."""
    values = [72.95, 73.45, 74.2]
    found = verdict(values, 73.333333, 0.5)
    std, distance = np.std(values, ddof=1), 0.5 - found.difference

    def fits(n: int) -> bool:
        return std * (scipy_stats.t.ppf(0.95, n - 1) + scipy_stats.norm.ppf(0.8)) / n**0.5 <= distance

    assert found.word == "unclear" and found.seeds is not None
    assert fits(found.seeds.number) and not fits(found.seeds.number - 1)
    assert 2 <= found.seeds.low < found.seeds.number and found.seeds.high is None
    distance, found = 0.4, verdict(values, 73.133333, 0.5)
    assert found.word == "unclear" and fits(found.seeds.number) and not fits(found.seeds.number - 1)


def test_no_number_of_seeds_settles_what_spreads_too_far():
    found = verdict([13.0, 73.5, 134.0], 73.0, 0.5)
    assert found.word == "unclear" and found.seeds is not None and found.seeds.number is None
