"""The share of a bias that students keep, and how far it was shifted: the measure, its variances and its intervals, computed in other ways."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from kdrun.evaluation.bias_grid import CLEAN, TEACHER, Column, Row, column_entries, interval_count, kept_by, shifts
from kdrun.evaluation.predictions import Answers
from kdrun.evaluation.transfer import (
    LIMITS,
    NO_GAP,
    NO_SPREAD,
    Interval,
    Kept,
    Shift,
    image_covariance,
    kept_of,
    moderated,
    prior_df,
    quantile,
    shift_of,
)

N, K = 2000, 10
SCORES = np.zeros((N, K), dtype=np.float16)
LABELS = np.random.default_rng(0).integers(K, size=N)


def of_right(right: np.ndarray, labels: np.ndarray = LABELS) -> Answers:
    return Answers(SCORES[: len(right)], np.where(right, labels, (labels + 1) % K), labels)


def network(seed: int, clean: float, derived: float) -> dict[str, Answers]:
    generator = np.random.default_rng(seed)
    return {CLEAN: of_right(generator.random(N) < clean), "noise": of_right(generator.random(N) < derived)}


def guessing(answers: Answers, share: float, seed: int) -> Answers:
    """With `share` of the answers drawn at random."""
    generator = np.random.default_rng(seed)
    guessed = generator.integers(K, size=N)
    return Answers(SCORES, np.where(generator.random(N) < share, guessed, answers.predicted), LABELS)


def values(*numbers: float) -> Kept:
    """Of seeds alone."""
    return Kept(np.array(numbers), [np.zeros((len(numbers), 4))])


def grid(rows: dict[str, list[dict[str, Answers]]], teacher: dict[str, Answers] | None, **students: str) -> Column:
    made = [
        Row(label, dict(enumerate(seeds)), method="none" if "ndependent" in label else "kd", student=students[label])
        if students
        else Row(label, dict(enumerate(seeds)))
        for label, seeds in rows.items()
    ]
    names = {CLEAN: "", "noise": "noise"}
    return Column("a → b", "digits", "a", teacher, made, list(names), names, "Independent")


# --- the measure ----------------------------------------------------------------------------------------------------


def test_kept_is_accuracy_above_chance_by_hand():
    labels = np.arange(100) % K
    clean, derived = of_right(np.arange(100) < 90, labels), of_right(np.arange(100) < 50, labels)
    assert kept_of([(derived, clean)]).mean == pytest.approx((0.5 - 0.1) / (0.9 - 0.1))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_random_answers_mixed_in_are_no_transfer(share):
    """A student that is merely worse: its raw accuracies would put it far beyond the independent one."""
    independent = [network(seed, 0.95, 0.85) for seed in range(3)]
    worse = [
        {name: guessing(one, share, 1000 + 100 * seed + place) for place, (name, one) in enumerate(answers.items())}
        for seed, answers in enumerate(independent)
    ]
    entries = column_entries(grid({"Worse": worse, "Independent": independent}, network(9, 0.95, 0.75)))
    found = {(entry.row, entry.testset): entry for entry in entries}
    one = found["Worse", "noise"]
    assert one.accuracy.mean < found["Independent", "noise"].accuracy.mean - 7
    assert abs(one.shift.value) < 3.5
    assert one.shift.low < 0 < one.shift.high
    assert one.transfer.value is None or one.transfer.low < 0 < one.transfer.high


def test_effects_of_images_are_the_derivative_of_what_is_kept():
    """An image left out changes kept by its effect / (N - 1): the jackknife."""
    answers = network(1, 0.9, 0.6)
    right, clean = answers["noise"].right, answers[CLEAN].right
    whole = kept_of([(answers["noise"], answers[CLEAN])])
    for image in range(20):
        rest = np.arange(N) != image
        without = kept_of([(of_right(right[rest], LABELS[rest]), of_right(clean[rest], LABELS[rest]))]).mean
        assert (whole.mean - without) * (N - 1) == pytest.approx(whole.effects[0][0, image], abs=2e-3)


def test_variance_over_images_is_that_of_the_bootstrap():
    ours, base = network(1, 0.9, 0.6), network(2, 0.9, 0.5)
    one, control = (kept_of([(each["noise"], each[CLEAN])]) for each in (ours, base))
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        places = generator.integers(N, size=N)
        both = [
            kept_of(
                [
                    (
                        of_right(each["noise"].right[places], LABELS[places]),
                        of_right(each[CLEAN].right[places], LABELS[places]),
                    )
                ]
            )
            for each in (ours, base)
        ]
        drawn.append(both[0].mean - both[1].mean)
    assert image_covariance(one, one, control) == pytest.approx(np.var(drawn), rel=0.12)


def test_other_images_than_the_clean_ones_add_their_own_noise():
    clean, derived = network(1, 0.9, 0.6)[CLEAN], of_right(np.arange(500) < 300, LABELS[:500])
    assert [part.shape for part in kept_of([(derived, clean)]).effects] == [(1, 500), (1, N)]


# --- variances ------------------------------------------------------------------------------------------------------


def test_variances_of_like_rows_are_pooled():
    rows = [values(centre - spread, centre, centre + spread) for centre in (0.4, 0.5, 0.6) for spread in (0.019, 0.021)]
    assert math.isinf(prior_df([rows]))
    (found,) = moderated([rows])
    assert {one.df for one in found} == {12}
    assert min(one.value for one in found) == pytest.approx(np.mean([row.variance for row in rows]))


def test_the_prior_of_unlike_rows_is_found_again():
    """Variances drawn from a scaled inverse chi-square of 4 degrees of freedom."""
    generator = np.random.default_rng(2)
    sets = [
        [values(*generator.normal(0, math.sqrt(4 / generator.chisquare(4)), size=4)) for _ in range(40)]
        for _ in range(20)
    ]
    assert prior_df(sets) == pytest.approx(4, rel=0.25)


def test_a_row_that_varies_more_everywhere_keeps_its_variance():
    generator = np.random.default_rng(3)
    sets = [[values(*generator.normal(0, 5 if row == 0 else 1, size=3)) for row in range(10)] for _ in range(12)]
    found = [rows[0].value for rows in moderated(sets)]
    assert np.mean(found) > 15
    assert np.mean([rows[1].value for rows in moderated(sets)]) < 4


def test_one_seed_beside_rows_of_more_has_their_variance_and_alone_none():
    (found,) = moderated([[values(0.5), values(0.4, 0.44), values(0.41, 0.5, 0.45)]])
    assert found[0] is not None
    (alone,) = moderated([[values(0.5), values(0.4)]])
    assert alone == [None, None]
    shift = shift_of(values(0.5), values(0.4), values(0.9), None, None)
    assert shift.interval(1) == Interval(pytest.approx(10), reason=NO_SPREAD)
    assert shift.ratio(1).value is None


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_correction_is_bonferronis():
    from scipy.stats import t

    assert quantile(7, 1) == pytest.approx(t.ppf(0.975, 7))
    assert quantile(7, 72) == pytest.approx(t.ppf(1 - 0.025 / 72, 7))
    shift = Shift(0.10, 0.2, 0.03**2, 0.02**2, 0.0, 20, 20)
    alone, together = shift.interval(1), shift.interval(72)
    assert alone.high - alone.value == pytest.approx(100 * 0.03 * t.ppf(0.975, 20))
    assert alone.beyond
    assert not together.beyond


def test_fiellers_interval_holds_the_ratios_that_the_data_do_not_refute():
    shift = Shift(0.05, 0.2, 0.02**2, 0.03**2, 0.0003, 12, 30)
    found, t = shift.ratio(1), quantile(12, 1)
    for ratio in np.linspace(-1, 1.5, 251):
        error = math.sqrt(0.02**2 - 2 * ratio * 0.0003 + ratio**2 * 0.03**2)
        refuted = abs(0.05 - ratio * 0.2) > t * error
        if min(abs(ratio - found.low), abs(ratio - found.high)) > 0.006:
            assert refuted == (not found.low <= ratio <= found.high)
    assert found.beyond == shift.interval(1).beyond


def test_no_ratio_where_the_gap_may_be_none_and_none_out_of_bounds():
    assert Shift(0.3, 0.03, 0.02**2, 0.02**2, 0.0, 20, 20).ratio(1).reason == NO_GAP
    assert Shift(0.3, -0.03, 0.001**2, 0.001**2, 0.0, 20, 20).ratio(1) == Interval(LIMITS[0], LIMITS[0], LIMITS[0])
    for moved in (-0.9, -0.2, 0.1, 0.9):
        found = Shift(moved, 0.1, 0.02**2, 0.01**2, 0.0, 20, 20).ratio(1)
        assert LIMITS[0] <= found.low <= found.value <= found.high <= LIMITS[1]


def test_a_student_beside_the_independent_one_of_its_own_network():
    rows = {
        "KD": [network(seed, 0.95, 0.7) for seed in range(3)],
        "DeiT": [network(10 + seed, 0.95, 0.7) for seed in range(3)],
        "Alone": [network(30 + seed, 0.95, 0.7) for seed in range(3)],
        "Independent": [network(20 + seed, 0.95, 0.6) for seed in range(3)],
        "Independent distilled": [network(40 + seed, 0.95, 0.8) for seed in range(3)],
    }
    students = {"KD": "vit", "DeiT": "dist", "Alone": "cnn", "Independent": "vit", "Independent distilled": "dist"}
    column = grid(rows, network(99, 0.95, 0.9), **students)
    found = {entry.row: entry for entry in column_entries(column) if entry.testset == "noise"}
    assert (found["KD"].against, found["DeiT"].against) == ("Independent", "Independent distilled")
    assert found["KD"].shift.value == pytest.approx(found["KD"].kept.mean - found["Independent"].kept.mean)
    assert found["DeiT"].shift.value < 0 < found["KD"].shift.value
    assert found["Alone"].shift.reason.startswith("no independent student of cnn")
    assert found["Independent distilled"].shift.reason == "it is the independent student"
    assert interval_count(column, shifts(column, kept_by(column))) == 2  # methods × sets, not the controls
    assert found[TEACHER].shift.value == pytest.approx(found[TEACHER].kept.mean - found["Independent"].kept.mean)


# --- simulated grids ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("images", "grids"), [(900, 40), (10_000, 8)])
@pytest.mark.parametrize("sd", [2.0, 4.0])
def test_intervals_cover_and_grids_of_null_methods_find_nothing(images, grids, sd):
    """scripts/simulate_bias.py does it with more grids, and with rows that vary unequally."""
    place = Path(__file__).parents[2] / "scripts" / "simulate_bias.py"
    spec = importlib.util.spec_from_file_location("simulate_bias", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = module.simulate(grids, images, sd)
    assert found.covered / found.intervals >= 0.93
    assert found.wrong_grids <= 0.05 * grids + 2 * math.sqrt(0.05 * grids)
