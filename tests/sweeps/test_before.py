"""Runs that a sweep's cells start from are trained first, once, and their directories stand in the cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdrun.files import read_json
from tests.conftest import TINY

CHAIN = {
    "title": "Chain",
    "before": {
        "assistant": ["method=kd", "student=resnet14"],
        "tuned": ["method=none", "student=resnet20", "student.checkpoint=<assistant.teacher>"],
    },
    "base": ["method=kd"],
    "columns": {"assistant": ["teacher=resnet14", "teacher.checkpoint=<assistant>"]},
    "rows": {"KD": []},
    "cells": [{"row": "KD", "column": "tuned", "overrides": ["teacher=resnet20", "teacher.checkpoint=<tuned>"]}],
}


@pytest.fixture
def own_sweep(tmp_path) -> Path:
    """A folder of settings with sweep=chain."""
    (tmp_path / "own" / "sweep").mkdir(parents=True)
    (tmp_path / "own" / "sweep" / "chain.yaml").write_text(yaml.safe_dump(CHAIN))
    return tmp_path / "own"


def test_a_chain_is_trained_in_order_and_once(kdrun, outputs, own_sweep):
    tiny = [word for word in TINY if not word.startswith(("student=", "teacher="))]
    command = [
        "train",
        "-m",
        "--config-dir",
        str(own_sweep),
        "sweep=chain",
        *tiny,
        "launcher.processes=0",
        "name=chain",
    ]
    code, out, err = kdrun("table", "chain", "--config-dir", str(own_sweep))
    assert (code, err) == (0, "") and "failed" not in out, out
    code, out, err = kdrun(*command, "dry_run=true")
    assert (code, err) == (0, "") and "runs: 4, 0 done, 4 to train" in out and not (outputs / "runs").exists()
    code, out, err = kdrun(*command)
    assert (code, err) == (0, ""), out
    results = list(outputs.glob("runs/*/*/*/*/result.json"))
    assert len(results) == 4 and out.count("1 run done") == 2 and "2 runs done" in out
    provenance = [read_json(path.parent / "provenance.json") for path in results]
    starts = [str(one["teacher"]["from"]) for one in provenance if one["teacher"] and one["teacher"]["from"]]
    assert any("-resnet14/kd" in place for place in starts) and any("none-resnet20/none" in place for place in starts)
    code, out, err = kdrun(*command)
    assert (code, err) == (0, "") and out.count("1 of them done already") == 2 and "2 of them done already" in out
    assert len(list(outputs.glob("runs/*/*/*/*/result.json"))) == 4
    code, out, err = kdrun(*command, "dry_run=true")
    assert (code, err) == (0, "") and "runs: 4, 4 done, 0 to train" in out
    code, out, err = kdrun("table", "chain")
    assert (code, err) == (0, "") and "assistant" in out and "tuned" in out


def test_a_run_that_fails_ends_the_sweep_before_its_cells(kdrun, outputs, own_sweep, diverging):
    command = ["train", "-m", "--config-dir", str(own_sweep), "sweep=chain", *TINY, "launcher.processes=0"]
    code, _, err = kdrun(*command, "optimizer.lr=77")
    assert code == 1 and "1 run failed" in err
    assert not list(outputs.glob("runs/*/*/*/*/result.json"))
