"""Tests between rows, against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdrun.evaluation.differences import SAME, Estimate, Pair, Sample, Spread, estimate, family, log_likelihood
from kdrun.evaluation.stats import ALPHA

RNG = np.random.default_rng(5)


def certain(freedom: float, variance: float) -> Spread:
    """A table that says for certain what its cells' variances come from."""
    return Spread(np.ones(1), np.array([freedom]), np.array([variance]))


def test_without_a_prior_it_is_welchs_test():
    one, other = RNG.normal(1, 0.5, 6), RNG.normal(0, 0.2, 4)
    found = estimate(one, other, certain(1e-9, 1.0))
    oracle = scipy_stats.ttest_ind(one, other, equal_var=False)
    assert found is not None
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-6)
    assert found.interval() == pytest.approx(tuple(oracle.confidence_interval(0.95)), rel=1e-6)


def test_with_one_variance_for_all_it_is_the_z_test():
    found = estimate([1.0, 1.2, 1.4], [0.0, 0.4], certain(SAME, 0.09))
    assert found is not None
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(1.0 / (0.09 / 3 + 0.09 / 2) ** 0.5), rel=1e-6)


def test_a_large_table_of_equal_spread_is_pooled():
    """200 cells of three seeds: p is that of a t-test on the pooled variance, as in scipy's Dunnett before its
    correction."""
    cells = RNG.normal(0, 0.25, (200, 3))
    found = estimate(cells[0] + 0.5, cells[1], Spread.of(Sample.of(list(cell)) for cell in cells))
    pooled = np.mean(cells.var(1, ddof=1))
    t = (cells[0].mean() + 0.5 - cells[1].mean()) / (pooled * 2 / 3) ** 0.5
    assert found is not None and found.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), 400), rel=0.25)


@pytest.mark.parametrize("prior", [0.5, 4.0, 40.0])
def test_the_likelihood_is_of_scipys_f(prior):
    variances, freedom, scales = RNG.gamma(1, 0.1, 5), np.array([2.0, 2, 4, 1, 2]), np.array([0.03, 0.2])
    ours = log_likelihood(variances, freedom, prior, np.log(scales))
    theirs = [scipy_stats.f(freedom, prior, scale=scale).logpdf(variances).sum() for scale in scales]
    assert ours[0] - ours[1] == pytest.approx(theirs[0] - theirs[1])
    assert log_likelihood(variances, freedom, SAME, np.log(scales)) == pytest.approx(
        log_likelihood(variances, freedom, SAME / 10, np.log(scales)), rel=1e-5
    )


def test_weights_find_whether_cells_are_alike():
    def most_likely(sds: np.ndarray) -> float:
        spread = Spread.of(Sample.of(list(RNG.normal(0, sd, 5))) for sd in sds)
        assert spread is not None and spread.weights.sum() == pytest.approx(1)
        return float(np.exp(spread.weights @ np.log(spread.freedoms)))

    assert most_likely(np.full(60, 0.25)) > 50 > 10 > most_likely(RNG.choice([0.1, 0.25, 0.6], 60))


@pytest.mark.parametrize("alpha", [0.3, 0.05, 1e-4])
def test_intervals_leave_out_what_they_should(alpha):
    spread = Spread.of(Sample.of(list(RNG.normal(0, 0.3, 3))) for _ in range(7))
    found = estimate([0.1, 0.5, 0.3], [0.0, 0.2], spread)
    assert found is not None
    assert found.tail(found.half(alpha)) == pytest.approx(alpha, rel=1e-6)
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(found.difference)
    assert (found.p < ALPHA) == (low > 0 or high < 0)


@pytest.mark.parametrize(("sds", "least"), [((0.25,), 0.94), ((0.1, 0.25, 0.6), 0.91)])
def test_intervals_cover(sds, least):
    """Nominally 95 %; less where cells differ sixfold in spread, which is the price of three seeds."""
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(150):
        cells = rng.normal(0, rng.choice(sds, (7, 1)), (7, 3))
        spread = Spread.of(Sample.of(list(cell)) for cell in cells)
        for row in range(1, 7):
            low, high = estimate(cells[row], cells[0], spread).interval()
            covered.append(low < 0 < high)
    assert np.mean(covered) >= least - 0.01


def test_two_cells_alone():
    """A table of one comparison knows no more than its own six figures: no bolder than the t-test at 5 %."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(500):
        one, other = rng.normal(0, 0.25, (2, 3))
        spread = Spread.of([Sample.of(list(one)), Sample.of(list(other))])
        hits += estimate(one, other, spread).p < ALPHA
    assert hits / 500 <= 0.05 + 0.02


def test_what_cannot_be_judged():
    assert Spread.of([]) is None
    equal = [Sample.of([70.3, 70.3]), Sample.of([71.0, 71.0 + 1e-12])]
    assert Spread.of(equal) is None
    (test,) = family([Pair("kd", [70.3, 70.3], "none", [71.0, 71.0])], None)
    assert (test.difference, test.p, test.low, test.seeds) == (pytest.approx(-0.7), None, None, None)
    spread = Spread.of([Sample.of([1.0, 2.0])])
    one, two = family([Pair("a", [3.0], "b", [1.0, 2.0]), Pair("c", [3.0, 3.0], "b", [1.0, 2.0])], spread)
    assert (one.p, one.n, two.n_against) == (None, 1, 2) and not one.distinguishable
    assert 0 < two.p_holm == two.p < 1, "a cell without spread borrows the table's"


def test_seeds_needed_are_more_than_there_are():
    rows = [RNG.normal(73 + place / 15, 0.2, 5) for place in range(13)]
    spread = Spread.of(Sample.of(list(row)) for row in rows)
    tests = family([Pair(str(place), rows[place], "0", rows[0]) for place in range(1, 13)], spread)
    assert {test.distinguishable for test in tests} == {True, False}, "the example should have both"
    for test in tests:
        assert (test.seeds is None) == test.distinguishable
        if test.seeds is not None and test.seeds.number is not None:
            assert test.seeds.number > 5 and test.seeds.low <= test.seeds.number
            assert test.seeds.high is None or test.seeds.high >= test.seeds.number


def test_seeds_needed_by_hand():
    """Known variance 0.0625, difference 0.3, one test: n = 2 · 0.0625 (1.95996 + 0.84162)² / 0.09 = 10.9."""
    values = [0.3 + step for step in (-0.25, 0, 0.25)]
    (test,) = family([Pair("kd", values, "none", [-0.25, 0.0, 0.25])], certain(SAME, 0.0625))
    assert test.seeds is not None and test.seeds.number == 11
    assert (test.seeds.low == 4 and test.seeds.high == 265) or test.seeds.high is not None


def test_the_range_of_seeds_holds_the_true_number_in_four_of_five_cases():
    rng = np.random.default_rng(4)
    truth, held, asked = 11, 0, 0
    for _ in range(200):
        cells = rng.normal(0, 0.25, (6, 5))
        cells[0] += 0.3
        spread = Spread.of(Sample.of(list(cell)) for cell in cells)
        found = Estimate.of(Sample.of(list(cells[0])), Sample.of(list(cells[1])), spread)
        reach = found.half(0.05) + 0.8416 * found.half(0.3173)
        ends = [(reach / (abs(found.difference) + sign * found.half(0.2))) ** 2 * 5 for sign in (1, -1)]
        asked += 1
        held += ends[0] <= truth and (abs(found.difference) <= found.half(0.2) or truth <= ends[1])
    assert 0.7 <= held / asked <= 0.93
