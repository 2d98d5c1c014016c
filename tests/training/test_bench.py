"""kdrun bench on a network so small that only the plumbing is tested; timings are reported, never asserted."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

from kdrun.cli import main
from kdrun.config.compose import load
from kdrun.display import PlainDisplay
from kdrun.errors import RunError
from kdrun.training.bench import rows as bench_rows
from kdrun.training.bench.engine_steps import EngineSteps
from kdrun.training.bench.rows import precision_of
from kdrun.training.bench.setup import prepare
from tests.conftest import TINY
from tests.simulated_cuda import simulated_cuda

SMALL = [*TINY, "dataset.fake_train=128", "batch_size=16", "rounds=2", "steps=1"]


def test_every_kind_and_row(tmp_path, capsys):
    place = tmp_path / "bench.csv"
    assert main(["bench", *SMALL, "rows=fp32,bf16", f"save={place}"]) == 0
    rows = list(csv.DictReader(place.open()))
    assert [(row["what"], row["row"]) for row in rows] == [
        ("train", "plain loop"),
        ("train", "plain, tuned malloc"),
        ("train", "fp32"),
        ("train", "bf16"),
        ("eval", "plain loop"),
        ("eval", "plain, tuned malloc"),
        ("eval", "fp32"),
        ("eval", "bf16"),
        ("input", "plain loop"),
        ("input", "resident"),
    ]
    assert all(float(row["images/s"].replace(",", "")) > 0 for row in rows)
    assert all(float(row["least"]) <= float(row["ratio"]) <= float(row["greatest"]) for row in rows)
    assert rows[0]["ratio"] == "1.00"
    assert rows[2]["of floor"].endswith("%")
    assert "convolution floor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "train"),
        (["rows=fp64"], "fp32"),
        (["rounds=0"], "rounds=0"),
        (["rows=fp32,bf16-graphs"], "rows=bf16-graphs: needs a GPU, but this runs on cpu; leave it out."),
        (["rows=tf32"], "rows=tf32: needs a GPU"),
        (["train", "method=kdd"], "kd"),
        (["methods", "methods=kdd"], "error: methods=kdd: no such method. Did you mean kd?"),
        (["lanes", "methods=kd,kdd"], "error: methods=kdd: no such method."),
        (["lanes", "methods=kd"], "methods=kd: lanes need at least two methods."),
        (["train", "methods=kd,at"], "methods= applies to bench methods and bench lanes only"),
        (["sharing", "eval"], "bench lanes runs alone"),
        (["train", "methods"], "bench methods runs alone"),
    ],
)
def test_mistakes_get_one_line(words, expected, capsys):
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err + printed.out
    assert len((printed.err + printed.out).strip().splitlines()) == 1


def test_a_graph_is_replayed_in_its_row():
    """Alone and as lanes, since each has steps of its own; a step that cannot be recorded is an error, not a row."""
    nodes = [load([f"method={name}"]).method for name in ("kd", "at")]
    with simulated_cuda() as gpu:
        bench = prepare(load([*SMALL[:-2], "device=cuda"]), 1, 1, ["fp32-graphs"], PlainDisplay())
        for way, replays in (("step_lanes", 3), ("step_alone", 6)):
            step, before = getattr(EngineSteps(bench, "fp32-graphs", nodes), way), gpu.replays
            assert [step() for _ in range(6)] == [2 * 16] * 6
            assert gpu.replays - before == replays
        bench.config = replace(bench.config, optimizer=replace(bench.config.optimizer, accumulate_steps=2))
        steps = EngineSteps(bench, "fp32-graphs", nodes[:1])
        with pytest.raises(RunError, match="kernel by kernel"):
            [steps.step_lanes() for _ in range(6)]


def test_a_row_has_its_own_arithmetic():
    """TF32 is a setting of the process: a row sets it, and the next one does not have it."""
    with simulated_cuda():
        bench = prepare(load([*SMALL[:-2], "device=cuda"]), 1, 1, ["tf32"], PlainDisplay())
        with bench.arithmetic(bench.numerics_of("tf32")):
            assert torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert precision_of(bench, "plain loop") == "fp32, convolutions tf32"


def test_lanes_beside_runs_alone(tmp_path):
    """A peer that learns along leaves the teacher of its neighbours alone."""
    place = tmp_path / "lanes.csv"
    words = [*SMALL, "rows=fp32", "methods=kd,dml", f"save={place}"]
    assert main(["bench", "lanes", "sharing", *words]) == 0
    rows = list(csv.DictReader(place.open()))
    assert [(row["what"], row["row"]) for row in rows] == [("sharing", "one after the other"), ("sharing", "lanes")]
    assert all(float(row["images/s"].replace(",", "")) > 0 for row in rows)


def test_the_machine_trains_the_chosen_pair(tmp_path, capsys):
    """Its own default pair is for those who choose none; the methods include the user's own."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "warmer.yaml").write_text("defaults: [kd, _self_]\ntemperature: 8\n")
    words = [*SMALL, "rows=fp32", "rounds=1", "methods=kd,warmer", "--config-dir", str(tmp_path)]
    assert main(["bench", "machine", *words]) == 0
    out = capsys.readouterr().out
    assert "resnet8 → resnet8" in out
    assert "processes with lanes" in out


def test_a_row_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    """On a rented GPU a table that one row ends is an hour lost."""

    class Failing(EngineSteps):
        def __init__(self, bench, row, methods):
            super().__init__(bench, row, methods)
            self.row = row

        def step_lanes(self):
            if self.row == "bf16":
                raise ValueError("cannot be compiled\nand more")
            return super().step_lanes()

    place = tmp_path / "bench.csv"
    monkeypatch.setattr(bench_rows, "EngineSteps", Failing)
    assert main(["bench", "train", *SMALL, "rows=bf16,fp32", f"save={place}"]) == 1
    printed = capsys.readouterr()
    assert [row["row"] for row in csv.DictReader(place.open())] == ["plain loop", "plain, tuned malloc", "fp32"]
    assert "bf16: not measured: ValueError: cannot be compiled" in printed.out + printed.err
    assert printed.err.splitlines()[-1] == "error: not measured: bf16; the notes above say why."


def test_methods_beside_kd(tmp_path, capsys):
    """A method that refuses the pair is a note, not an end."""
    place = tmp_path / "methods.csv"
    words = [*TINY, "dataset.fake_train=64", "batch_size=16", "rounds=2", "steps=1", "rows=fp32", f"save={place}"]
    assert main(["bench", "methods", *words, "methods=dkd,crd,deit,ls"]) == 0
    assert "ls: left out: it has no teacher." in capsys.readouterr().out
    rows = list(csv.DictReader(place.open()))
    assert [row["method"] for row in rows] == ["kd", "dkd", "crd"]
    assert rows[0]["over kd"] == "1.00"
    assert int(rows[2]["more parameters"].replace(",", "")) == 2 * (64 * 128 + 128)
