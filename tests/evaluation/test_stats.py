"""Statistics against independent oracles: scipy.stats, worked examples, simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdrun.evaluation import stats
from kdrun.evaluation.stats import EQUAL, SEPARATED, UNKNOWN, compare, corrected, holm, mean_std, paired_test, power

RNG = np.random.default_rng(5)


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(float(value) for value in values))


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_mean_and_std_are_numpys(n):
    values = RNG.normal(73, 0.3, n)
    mean, std = mean_std(list(values))
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert std == pytest.approx(values.std(ddof=1), rel=1e-10)


def test_mean_and_std_of_few():
    assert mean_std([]) == (None, None)
    assert mean_std([71.5]) == (71.5, None)


@pytest.mark.parametrize("n", [2, 3, 5, 17])
@pytest.mark.parametrize("shift", [0.0, 0.2, -1.5])
def test_paired_test_is_scipys(n, shift):
    one, other = RNG.normal(73 + shift, 0.3, n), RNG.normal(73, 0.3, n)
    test = paired_test("kd", by_seed(one), "none", by_seed(other))
    oracle = scipy_stats.ttest_rel(one, other)
    assert test is not None
    assert (test.n, test.difference) == (n, pytest.approx((one - other).mean(), abs=1e-9))
    assert test.t == pytest.approx(oracle.statistic, rel=1e-9)
    assert test.p == pytest.approx(oracle.pvalue, rel=1e-9)


def test_only_common_seeds_are_paired():
    test = paired_test("kd", {0: 71.0, 1: 72.0, 5: 99.0}, "none", {1: 71.0, 0: 70.5, 7: 1.0})
    assert test is not None
    assert (test.n, test.difference) == (2, 0.75)
    assert paired_test("kd", {0: 71.0}, "none", {1: 70.0}) is None


def test_one_common_seed_gives_a_difference_and_no_test():
    test = paired_test("kd", {0: 71.0, 1: 72.0}, "none", {0: 70.5})
    assert test is not None
    assert (test.n, test.difference, test.p, test.seeds) == (1, 0.5, None, UNKNOWN)


def test_identical_differences_are_no_certainty():
    """0.1 + 0.2 style noise included: these differences differ in their last bit."""
    same = paired_test("kd", {0: 70.3, 1: 70.6, 2: 70.9}, "none", {0: 70.0, 1: 70.3, 2: 70.6})
    equal = paired_test("kd", {0: 70.3, 1: 70.6}, "none", {0: 70.3, 1: 70.6})
    assert same is not None and equal is not None
    assert same.p is None and same.difference == pytest.approx(0.3)
    assert equal.p == 1.0
    first, second = corrected([same, equal])
    assert first.p_holm is None and first.seeds == UNKNOWN and not first.distinguishable
    assert second.p_holm == 1.0 and second.seeds == UNKNOWN


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


@pytest.mark.parametrize(("effect", "n", "alpha"), [(0.5, 20, 0.05), (1.2, 6, 0.05), (2.0, 5, 0.005), (0.0, 4, 0.05)])
def test_power_by_simulation(effect, n, alpha):
    draws = np.random.default_rng(1).normal(effect, 1, (40_000, n))
    found = (scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue < alpha).mean()
    assert power(effect, n, alpha) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 30])
def test_seeds_needed_is_the_smallest_number(effect, alpha):
    """By scipy.stats.nct, every number up to the answer tried."""
    needed = int(stats.seeds_needed(effect * 0.3, 0.3, alpha))

    def oracle(n: int) -> float:
        critical = scipy_stats.t.isf(alpha / 2, n - 1)
        shifted = scipy_stats.nct(n - 1, effect * n**0.5)
        return shifted.sf(critical)

    assert oracle(needed) >= 0.8
    assert needed == 2 or oracle(needed - 1) < 0.8 + 1e-6


def test_seeds_needed_at_the_edges():
    """Cohen's d = 0.5, two-sided 5 %, power 0.8, paired: 34 in G*Power's manual and textbook tables."""
    assert stats.seeds_needed(0.5, 1.0) == "34"
    assert stats.seeds_needed(-0.5, 1.0) == "34"
    assert stats.seeds_needed(0.0001, 1.0) == "over 1000"
    assert stats.seeds_needed(0.0, 1.0) == UNKNOWN
    assert stats.seeds_needed(EQUAL / 2, 1.0) == UNKNOWN
    assert stats.seeds_needed(0.5, None) == UNKNOWN
    assert stats.seeds_needed(0.5, 0.0) == UNKNOWN


def test_seeds_are_more_than_there_are_where_the_correction_holds_a_test_back():
    tests = [
        paired_test(f"m{k}", by_seed(RNG.normal(73 + k / 15, 0.2, 5)), "none", by_seed(RNG.normal(73, 0.2, 5)))
        for k in range(12)
    ]
    done = corrected([test for test in tests if test is not None])
    assert [test.p for test in done] == [test.p for test in tests if test is not None]
    kinds = {test.distinguishable for test in done}
    assert kinds == {True, False}, "the example should have both"
    for test in done:
        if test.distinguishable:
            assert test.seeds == SEPARATED
        else:
            assert test.seeds.startswith("over") or int(test.seeds) > test.n


@pytest.mark.parametrize(
    ("values", "published", "std", "verdict"),
    [
        ([73.5, 73.7, 73.6], 73.54, None, "reproduced"),
        ([74.5, 74.7, 74.6], 73.54, None, "above"),
        ([72.5, 72.7, 72.6], 73.54, None, "below"),
        ([72.5, 72.7, 72.6], 73.54, 1.0, "reproduced"),
        ([73.5, 73.7], 73.54, None, "too few seeds"),
        ([80.0], 73.54, 0.1, "too few seeds"),
        ([73.0, 73.0, 73.0], 73.0, 0.0, "reproduced"),
        ([73.1, 73.1, 73.1], 73.0, 0.0, "above"),
    ],
)
def test_verdicts(values, published, std, verdict):
    found = compare(values, published, std)
    assert found.verdict == verdict
    assert found.difference == pytest.approx(np.mean(values) - published)
    assert (found.z is None) == (len(values) < 3)


def test_z_by_hand():
    """mean 74.0, s = 0.5, n = 4, sigma 0.25: z = 0.7 / sqrt(0.0625 + 0.0625) = 1.9799; at 0.75 it is 2.12."""
    values = [73.5, 74.5, 73.5, 74.5]
    s = np.std(values, ddof=1)
    assert compare(values, 73.3, None).z == pytest.approx(0.7 / np.sqrt(s**2 / 4 + 0.0625))
    edge = 2 * np.sqrt(s**2 / 4 + 0.0625)
    assert compare(values, 74.0 - edge * 0.999, None).verdict == "reproduced"
    assert compare(values, 74.0 - edge * 1.001, None).verdict == "above"
