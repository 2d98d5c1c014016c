"""Run directories: those of before are still read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import kdrun as package
from kdrun.config.arguments import is_name
from kdrun.errors import KdrunError
from kdrun.models.zoo import create_model
from kdrun.runs.directory import find_runs
from tests.conftest import FIXTURES

NAME = "s0-b7bbaf17"


@pytest.fixture
def old_run(outputs) -> Path:
    """A run of the code before streams 2, before digests of own code and before the modules moved: its files as they
    were written, under weights made here. Its teacher is gone."""
    run = outputs / "runs" / "fake" / "resnet8-resnet8" / "dkd" / NAME
    shutil.copytree(FIXTURES / "old_run", run)
    torch.manual_seed(0)
    weights = create_model("resnet8", num_classes=4, image_size=16).state_dict()
    for name in ("student", "student_best"):
        save_file({key: value.contiguous() for key, value in weights.items()}, run / f"{name}.safetensors")
    return run


def test_an_old_run_is_read_by_every_command(kdrun, old_run, outputs):
    code, out, err = kdrun("eval", NAME.rpartition("-")[2])
    assert code == 0, err
    assert "top-1" in out and json.loads((old_run / "evals" / "test.json").read_text())["network"] == "resnet8"
    code, out, _ = kdrun("list", "runs")
    assert code == 0 and NAME in out and "done" in out
    code, out, err = kdrun("table", str(old_run))
    assert code == 0, err
    assert "dkd" in out
    code, out, err = kdrun("export", str(old_run), "images=8")
    assert code == 0, err
    code, out, err = kdrun("report", str(old_run))
    assert code == 0, err
    trained = package.load(old_run)
    assert trained.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert trained.config.method["nckd_weight"] == 8.0
    frame = package.results(outputs)
    assert list(frame["method"]) == ["dkd"] and frame["top1_last"].dtype == "Float64"


def test_a_word_that_is_no_run_says_what_it_is(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").touch()
    os.mkfifo(tmp_path / "pipe")
    for word, line in (
        ("folder", r"is not a run \(it has no config.yaml\): name a file in it, such as .*/model.safetensors"),
        ("pipe", "is a named pipe"),
        ("absent.pt", "absent.pt: no such file"),
        ("abcd", "no run directory, glob or digest matches"),
    ):
        with pytest.raises(KdrunError, match=line):
            find_runs(word if word == "abcd" else str(tmp_path / word), tmp_path)


def test_an_old_run_is_never_taken_for_a_new_one(kdrun, old_run, outputs):
    """The same words train a run of their own: its random streams are others."""
    command = json.loads((old_run / "provenance.json").read_text())["command"]
    code, _, err = kdrun(*command[1:])
    assert code == 0, err
    runs = {path.name for path in old_run.parent.iterdir()}
    assert NAME in runs and len(runs) == 2


@pytest.mark.parametrize("name", ["plain", "a [b] c", "x=1, y", "what?", "[!x]*"])
def test_a_folder_may_hold_the_signs_of_a_pattern(name, tmp_path):
    runs = [tmp_path / name / "runs" / "digits" / "pair" / "kd" / f"s{seed}-0123" for seed in (0, 1)]
    for run in runs:
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
    assert find_runs(str(tmp_path / name / "runs/*/*/*/*"), tmp_path) == runs
    assert find_runs(str(tmp_path / name / "runs/digits/pair/k?/s[1-9]-*"), tmp_path) == runs[1:]
    assert find_runs(str(tmp_path / "*/runs/*/*/*/s0-*"), tmp_path) == runs[:1]
    assert is_name(str(tmp_path / name / "runs/*"))
