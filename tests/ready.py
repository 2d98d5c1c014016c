"""Runs that many tests start from: trained once, copied for each."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from kdrun.cli import main
from kdrun.config.compose import load
from kdrun.files import read_json, write_json
from kdrun.runs.plan import make_plan
from tests.conftest import TINY


@cache
def store() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kdrun_ready_")


def train(kdrun, *words: str) -> None:
    """A run of one epoch, and its teacher, below the test's outputs; trained here if `words` name files of their own."""
    if not any("/" in word for word in words):
        return provide(Path(os.environ["KDRUN_OUTPUTS"]), *words)
    code, _, err = kdrun("train", *TINY, "epochs=1", *words)
    assert (code, err) == (0, "")
    return None


def provide(outputs: Path, *words: str) -> None:
    root = store().name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRUN_OUTPUTS", root)
        words = (*TINY, "epochs=1", *words)
        plan = make_plan(load(words), list(words))
        if not plan.run.finished:
            assert main(["train", *words]) == 0
    for place in (plan.run.path, plan.teacher_run and plan.teacher_run.path):
        if place is not None and place.is_dir():
            copy = shutil.copytree(place, outputs / place.relative_to(root), dirs_exist_ok=True)
            config, record = copy / "config.yaml", copy / "provenance.json"
            config.write_text(config.read_text().replace(root, str(outputs)))
            write_json(record, json.loads(json.dumps(read_json(record)).replace(root, str(outputs))))
