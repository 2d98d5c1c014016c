"""A dry run says what runs will cost and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrun.config.compose import load
from kdrun.data.counts import counts_of
from kdrun.data.datasets import DataSource
from kdrun.runs.ledger import Cell
from kdrun.runs.plan import Plan, make_plan
from kdrun.sweeps.forecast import Forecast, RunCost, forecast
from kdrun.sweeps.forecast_lines import lines_of, short_of_room, table_of, total_in_words
from kdrun.training.costing import Costing
from kdrun.training.precision import Numerics
from tests.conftest import TINY


def plan_of(*words: str) -> Plan:
    return make_plan(load([*TINY, "epochs=4", *words]), list(words))


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=digits", "dataset.train_fraction=0.1"],
        ["dataset=digits", "dataset.val_fraction=0.25"],
        ["dataset=digits", "dataset.train_limit=100", "dataset.test_limit=50"],
        ["dataset=fake", "dataset.fake_train=72", "dataset.fake_test=40"],
        ["dataset=folder", "dataset.train_fraction=0.5", "dataset.image_size=16"],
    ],
)
def test_images_are_counted_without_decoding_them(words, tmp_path, image_folder):
    root = [f"dataset.root={image_folder('photos', classes=3, count=7)}"] if "dataset=folder" in words else []
    source = DataSource(load([*words, *root]).dataset)
    counted = counts_of(source)
    assert not list(tmp_path.glob("cache*"))
    splits = source.load(tmp_path / "cache")
    val = 0 if splits.val is None else len(splits.val)
    assert (counted.train, counted.test, counted.val) == (len(splits.train), len(splits.test), val)


def test_a_dry_run_names_what_differs_and_the_teacher_and_writes_nothing(kdrun, outputs):
    code, out, err = kdrun("train", "-m", *TINY, "epochs=2", "method=none,kd", "seed=0,1", "dry_run=true")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[:3] for line in lines if line[:1] in (["none"], ["kd"])] == [["none", "0,", "1"], ["kd", "0,", "1"]]
    assert "teacher to train: resnet8, 1 epoch, 7" in out
    assert "runs: 4, 0 done, 4 to train" in out
    for word in ("total time: about", "memory: about", "disk: about", "s/epoch", "params", "FLOPs"):
        assert word in out
    assert not outputs.exists()


def test_a_dry_run_measures_steps_whose_losses_overflow(kdrun, outputs):
    """CC's product of two differences grew to inf within five bf16 steps of an untrained teacher on blank images."""
    code, out, err = kdrun("train", *TINY, "method=cc", "method.cc_weight=1e6", "optimizer.lr=10", "dry_run=true")
    assert (code, err) == (0, "")
    assert "total time: about" in out


def test_a_dry_run_knows_what_is_done(kdrun, outputs):
    words = [*TINY, "epochs=1", "method=none"]
    assert kdrun("train", *words)[0] == 0
    before = sorted(path.stat().st_mtime_ns for path in outputs.rglob("*"))
    code, out, _ = kdrun("train", "-m", *words, "seed=0,1", "dry_run=true")
    assert (code, "runs: 2, 1 done, 1 to train" in out) == (0, True)
    code, out, _ = kdrun("train", *words, "dry_run=true")
    assert (code, "runs: 1, 1 done, 0 to train" in out) == (0, True)
    assert "total time" not in out
    assert sorted(path.stat().st_mtime_ns for path in outputs.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["dry_run=perhaps"], "error: dry_run=perhaps: choose true or false."),
        (["dry_run=true", "--cfg", "job"], "error: dry_run=true: leave out --cfg."),
        (["dry_run=true", "epoch=3"], "error: epoch: no such setting. Did you mean epochs?"),
    ],
)
def test_a_wrong_dry_run_ends_in_one_line(words, line, kdrun):
    code, _, err = kdrun("train", *words)
    assert (code, err.strip().splitlines()[0]) == (2, line)


def test_cells_that_cannot_be_made_are_named_and_the_others_measured(kdrun, outputs):
    code, out, err = kdrun("train", "-m", *TINY, "epochs=1", "method=none", "optimizer.lr=0.1,-1", "dry_run=true")
    assert code == 2
    assert err.count("error:") == 1
    assert "runs: 1, 0 done, 1 to train" in out


def test_each_network_and_each_kind_of_method_is_measured_once(monkeypatch):
    """Not each cell: weights and temperatures change no cost, and neither do seeds."""
    measured: list[str] = []
    network, method = Costing.network, Costing.method

    def of_network(self, options, *others):
        measured.append(options.name)
        return network(self, options, *others)

    def of_method(self, config, *others):
        measured.append(config.method["_name_"])
        return method(self, config, *others)

    monkeypatch.setattr(Costing, "network", of_network)
    monkeypatch.setattr(Costing, "method", of_method)
    words = ["method=none", "method=kd", "method=at"]
    plans = [
        plan_of(word, f"student={net}", f"seed={seed}")
        for word in words
        for net in ("resnet8", "resnet14")
        for seed in (0, 1)
    ]
    plans += [plan_of("method=kd", "method.temperature=9", "method.kd_weight=3")]
    found = forecast(plans, 2, 1)
    assert sorted(measured) == ["at", "kd", "none", "resnet14", "resnet8", "resnet8"]
    costs = [found.runs[str(plan.run.path)] for plan in plans]
    assert all(cost.epoch > 0 and cost.memory > 2**28 and cost.disk > 0 for cost in costs)
    assert costs[0].flops < costs[2].flops  # resnet8, then resnet14
    assert costs[0].disk > 2 * 4 * costs[0].params
    assert [teacher.name for teacher in found.teachers.values()] == ["resnet8"]
    alone = sum(found.runs[str(plan.run.path)].seconds for plan in plans) + sum(
        teacher.seconds for teacher in found.teachers.values()
    )
    assert found.seconds < found.work < alone + 1  # two processes; lanes share their teacher's pass
    assert not Path(plans[0].config.output_root).exists()


COST = RunCost(2.0, 60.0, 0.0, 1000, 2_000_000, 0, 2**30, 2**20, 3 * 2**20)


def test_totals_say_what_they_rest_on():
    found = Forecast(seconds=3600, processes=2, threads=1, numerics="cpu, fp32", slowdown=2.0, disk=10, free=100)
    line = total_in_words(found)
    assert line == (
        "about 1 h 00 min (cpu, fp32, 2 processes with 1 thread); 2 h 00 min if other programs stay as busy as now"
    )
    assert short_of_room(found) == ""
    found.disk, found.free = 3 * 2**30, 2**30
    assert short_of_room(found).startswith("about 3.00 GiB needed but only 1.00 GiB free")


def test_rows_hold_all_seeds_and_what_is_done():
    plans = [plan_of("method=none", f"seed={seed}") for seed in (0, 1, 2)]
    cells = [(Cell("Student", "pair", plan.config.seed, []), plan) for plan in plans]
    found = Forecast({str(plan.run.path): COST for plan in plans[1:]})
    heads, rows = table_of(found, cells)
    assert dict(zip(heads, rows[0], strict=True)) == {
        "run": "Student",
        "seeds": "0–2",
        "done": "1",
        "epochs": "4",
        "s/epoch": "2.00",
        "time each": "1 min 00 s",
        "params": "1,000",
        "FLOPs": "2.00M",
        "memory": "1.00 GiB",
        "disk": "3 MiB",
    }
    assert ("runs:", "3, 1 done, 2 to train") in lines_of(found, cells)


def test_a_sweep_that_has_not_begun_shows_what_is_published(kdrun, outputs):
    code, out, _ = kdrun("table", "consistent_teaching")
    assert code == 0
    assert "0 of 30 cells done" in out
    assert "78.65" in out
    assert "not started: kdrun train -m sweep=consistent_teaching trains it" in out
    assert not outputs.exists()


def test_sweeps_are_listed_with_cells_data_and_cost(kdrun):
    code, out, _ = kdrun("list", "sweeps")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert code == 0
    assert "129" in lines["cifar100_table"]
    assert "CIFAR-100" in lines["cifar100_table"]
    assert "about 80 GPU-hours" in lines["cifar100_table"]
    assert "digits (built in)" in lines["digits_table"]
    assert "16 minutes" in lines["digits_table"]
    assert "dataset.root=FOLDER" in lines["vit_to_resnet"]
    assert "CIFAR-100" in lines["colour_invariance"]  # an experiment of a benchmark


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["teacher_view=clean"], True),
        (["teacher_view=fixed"], True),
        ([], False),
        (["dataset.augment.crop=none", "dataset.augment.flip=0", "teacher.flip=0.5"], True),
        (["dataset.augment.crop=none", "dataset.augment.flip=0", "dataset.augment.mixup=0.8"], False),
        (["teacher_view=clean", "teacher_cache=false"], False),
    ],
    ids=["clean", "fixed", "augmented", "still", "mixed", "not kept"],
)
def test_outputs_are_kept_where_the_students_images_stay_the_same(words, same):
    """The teacher may have been trained on any images."""
    from kdrun.sweeps.forecast import sees_the_same

    typed = ["dataset=fake", "method=kd", *words]
    assert sees_the_same(make_plan(load(typed), typed)) is same


@pytest.mark.parametrize(
    ("fixed", "each", "batch_size", "shown"),
    [(0.0, 2.0, 64, 64), (90.0, 2.0, 64, 64), (90.0, 2.0, 8, 64), (90.0, 2.0, 4, 64), (90.0, 2.0, 64, 6)],
)
def test_what_a_step_spends_on_weights_is_shared_by_the_whole_batch(fixed, each, batch_size, shown):
    """VGG's nine million weights cost as much as a dozen images: timed with six, a dry run foretold three times the
    hours that its training took."""
    asked: list[int] = []

    def seconds(images: int) -> float:
        asked.append(images)
        return fixed + each * images

    costing = object.__new__(Costing)
    costing.shown, costing.numerics = shown, Numerics("cpu", "fp32", False, 1, False)
    assert costing.each(seconds, 10**9, batch_size, 4) == pytest.approx(fixed / batch_size + each)
    assert len(set(asked)) == len(asked)
    assert max(asked) <= min(batch_size, shown)
