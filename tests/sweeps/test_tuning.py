"""kdrun tune: what is searched, how rounds grow, and that the test images decide nothing."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from kdrun.config.compose import load
from kdrun.data.counts import counts_of
from kdrun.data.datasets import DataSource
from kdrun.errors import ConfigError, DataError
from kdrun.sweeps.space import Dimension, candidates, split_searched, typed, usual
from kdrun.sweeps.tuning import Candidate, Search, choose, held_out, last_sweep, round_of, rounds, shortened
from tests.conftest import TINY


def test_rounds_end_with_three_candidates_at_full_length():
    assert rounds(27, 240) == [(27, 27), (9, 80), (3, 240)]
    assert rounds(10, 120) == [(10, 13), (4, 40), (2, 120)]
    assert rounds(3, 7) == [(3, 7)] and rounds(2, 1) == [(2, 1)]
    assert rounds(27, 10) == [(27, 5), (3, 10)]  # no round is so short that chance ranks, and none comes twice
    assert rounds(27, 2) == [(27, 2)]


def test_what_is_counted_in_epochs_shrinks_with_the_length():
    words = ["method=dkd", "optimizer.schedule=multistep", "optimizer.milestones=[150,180,210]", "epochs=240"]
    config = load([*words, "optimizer.warmup_epochs=12"])
    assert shortened(config, 240) == []
    short = load([*words, *shortened(config, 80)])
    assert (short.epochs, short.optimizer.milestones, short.optimizer.warmup_epochs) == (80, [50, 60, 70], 4)
    assert short.method["warmup_epochs"] == 7  # dkd's own 20
    ctkd = load(["method=ctkd", "epochs=240"])
    assert load(["method=ctkd", *shortened(ctkd, 2)]).method["ramp_epochs"] == 1


def test_intervals_lists_and_plain_settings_are_told_apart():
    searched, rest = split_searched(
        ["method=kd", "method.temperature=interval(1,16)", "method.kd_weight=0.5,1", "epochs=3"], None
    )
    assert searched == [
        Dimension("method.temperature", low=1, high=16),
        Dimension("method.kd_weight", values=("0.5", "1")),
    ]
    assert rest == ["method=kd", "epochs=3"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method=kd,dkd", "settings of one method"),
        ("teacher=resnet20,resnet56", "one teacher"),
        ("method.temperature=interval(4,1)", "the first bound must be the smaller one"),
        ("method.temperature=interval(4", "method.temperature"),
    ],
)
def test_what_cannot_be_searched_is_refused(word, said):
    with pytest.raises(ConfigError, match=said):
        split_searched([word], None)


def test_temperature_and_weights_are_searched_unasked_and_the_label_term_is_not():
    found = {one.key: (one.low, one.high) for one in usual(load(["method=kd"]))}
    assert found == {"method.temperature": (1, 16), "method.kd_weight": pytest.approx((0.1125, 7.2))}
    with pytest.raises(ConfigError, match=r"method\.smoothing=interval"):
        usual(load(["method=ls"]))


def test_candidates_are_spread_repeatable_and_begin_with_the_defaults():
    dimensions = [Dimension("method.temperature", low=1, high=16), Dimension("optimizer.lr", low=0.01, high=1)]
    found = candidates(dimensions, 27, 0)
    assert found[0] == [] and len(found) == 27 and found == candidates(dimensions, 27, 0)
    assert found != candidates(dimensions, 27, 1)
    shares = np.log([float(words[0].partition("=")[2]) for words in found[1:]]) / np.log(16)
    assert shares.min() >= 0 and shares.max() < 1
    assert np.histogram(shares, 4, (0, 1))[0].min() >= 5  # 26 of them over four equal parts


def test_few_combinations_are_all_tried():
    dimensions = [Dimension("method.temperature", ("2", "4")), Dimension("method.kd_weight", ("1", "2", "3"))]
    assert len(candidates(dimensions, 27, 0)) == 7
    assert len(candidates(dimensions, 4, 0)) <= 4


def test_whole_numbers_stay_whole():
    (one,) = typed([Dimension("method.ramp_epochs", low=1, high=30)], load(["method=ctkd"]))
    assert one.at(0.5) == "method.ramp_epochs=5"  # the middle of a logarithmic scale


def test_rounds_hold_images_out_and_the_last_runs_do_not():
    words = ["method=kd", "epochs=9"]
    search = Search("t", load(words), words, [0, 1])
    seen = load(round_of(search, [Candidate(["method.temperature=2"])], 3).specs[0].overrides)
    assert (seen.dataset.evaluate_on, seen.dataset.val_fraction, seen.epochs, seen.seed) == ("val", 0.2, 3, 2)
    last = last_sweep(search, Candidate(["method.temperature=2"]))
    assert [spec.row for spec in last.specs] == ["Student"] * 2 + ["Default settings"] * 2 + ["Tuned"] * 2
    for spec in last.specs:
        dataset = load(spec.overrides).dataset
        assert (dataset.evaluate_on, dataset.val_fraction) == ("test", 0)
    assert len(last_sweep(search, Candidate([])).specs) == 4  # the default settings were best
    held = Search("t", load([*words, "dataset.val_fraction=0.4"]), [*words, "dataset.val_fraction=0.4"], [0])
    assert load(round_of(held, [Candidate([])], 9).specs[0].overrides).dataset.val_fraction == 0.4
    assert load(last_sweep(held, Candidate([])).specs[-1].overrides).dataset.val_fraction == 0


def test_the_default_settings_stay_unless_the_images_can_tell():
    best, default = Candidate(["method.temperature=2"], {9: (90.0, -0.3)}), Candidate([], {9: (88.0, -0.4)})
    assert choose([best, default], 39) is default  # a standard error of 4.8 points
    assert choose([best, default], 10_000) is best  # of 0.3 points
    assert choose([default, best], 10_000) is default
    assert choose([best], 39) is best  # the default settings have failed
    words = ["method=kd", "experiment=digits_10"]
    assert held_out(Search("t", load(words), words, [0])) == 39


def test_validation_images_stand_in_for_the_test_images(tmp_path):
    words = ["dataset=digits", "dataset.image_size=8", "dataset.val_fraction=0.25"]
    before = DataSource(load(words).dataset).load(tmp_path)
    source = DataSource(load([*words, "dataset.evaluate_on=val"]).dataset)
    after = source.load(tmp_path)
    assert before.val is not None and after.val is None
    assert np.array_equal(after.test.images, before.val.images) and np.array_equal(after.test.labels, before.val.labels)
    assert np.array_equal(after.train.images, before.train.images)
    counts = counts_of(source)
    assert (counts.train, counts.test, counts.val) == (len(after.train), len(after.test), 0)
    with pytest.raises(DataError, match=r"dataset\.val_fraction=0\.2"):
        DataSource(load(["dataset=digits", "dataset.evaluate_on=val"]).dataset)


def test_a_search_ends_with_a_tested_answer_and_is_shown_again(kdrun, outputs):
    command = ["tune", *TINY, "method=kd", "epochs=1", "candidates=2", "seed=0", "name=mine", "launcher.processes=0"]
    code, out, err = kdrun(*command, "method.temperature=2")
    assert (code, err) == (0, ""), out
    assert "validation top-1, %" in out and "Default settings:" in out and "Student:" in out
    rows = list(csv.DictReader((outputs / "sweeps" / "mine" / "search.csv").open()))
    assert len(rows) == 2 and {"default"} < {row["method.kd_weight"] for row in rows}
    assert all(0 <= float(row["top1_1_epochs"]) <= 100 for row in rows)
    trained = len(list(outputs.glob("runs/*/*/*/*/result.json")))
    code, again, err = kdrun(*command, "method.temperature=2")
    assert (code, err) == (0, "") and "done already" in again
    assert len(list(outputs.glob("runs/*/*/*/*/result.json"))) == trained


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=none"], "no weight and no temperature"),
        (["method=kd", "candidates=1"], "candidates=1: must be at least 2"),
        (["method=kd", "seed=a"], "seed=a: seeds are whole numbers"),
        (["method=kd", "method.nothing=interval(1,2)"], "nothing"),
        (["method=kd", "candidate=9"], "Did you mean candidates?"),
    ],
)
def test_mistakes_are_told_in_one_line(kdrun, words, said):
    code, _, err = kdrun("tune", *TINY, *words)
    assert code == 2 and said in err and len(err.splitlines()) == 1, err
