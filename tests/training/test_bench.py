"""kdrun bench on a network so small that only the plumbing is tested; timings are reported, never asserted."""

from __future__ import annotations

import csv

import pytest

from kdrun.cli import main
from tests.conftest import TINY

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
        (["train", "method=kdd"], "kd"),
    ],
)
def test_mistakes_get_one_line(words, expected, capsys):
    assert main(["bench", *words]) == 2
    printed = capsys.readouterr()
    assert expected in printed.err + printed.out
    assert len((printed.err + printed.out).strip().splitlines()) == 1


def test_lanes_beside_runs_alone(tmp_path):
    """A peer that learns along leaves the teacher of its neighbours alone."""
    place = tmp_path / "lanes.csv"
    words = [*SMALL, "rows=fp32", "methods=kd,dml", f"save={place}"]
    assert main(["bench", "lanes", "sharing", *words]) == 0
    rows = list(csv.DictReader(place.open()))
    assert [(row["what"], row["row"]) for row in rows] == [("sharing", "one after the other"), ("sharing", "lanes")]
    assert all(float(row["images/s"].replace(",", "")) > 0 for row in rows)


def test_methods_beside_kd(tmp_path):
    """A method that refuses the pair is a note, not an end."""
    place = tmp_path / "methods.csv"
    words = [*TINY, "dataset.fake_train=64", "batch_size=16", "rounds=2", "steps=1", "rows=fp32", f"save={place}"]
    assert main(["bench", "methods", *words, "methods=dkd,crd,deit"]) == 0
    rows = list(csv.DictReader(place.open()))
    assert [row["method"] for row in rows] == ["kd", "dkd", "crd"]
    assert rows[0]["over kd"] == "1.00"
    assert int(rows[2]["more parameters"].replace(",", "")) == 2 * (64 * 128 + 128)
