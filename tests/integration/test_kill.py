"""SIGKILL wherever a run can be: what it ends with is the uninterrupted run's, bit for bit.

A moment is chosen by what the run is at, not by the clock, so that every kill hits. KDRUN_KILLS=20 gives each method that
many; a few, of methods with unlike states, are the usual sample.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.integration.conftest import Zygote
from tests.integration.test_runs import numbers, only_run, only_teacher, steady_result

KILLS = int(os.environ.get("KDRUN_KILLS", "4"))

SHORT = ("start", "teacher", "save", "stage")
LONG = ("start", "teacher", "save", "teacher", "start", "stage", "save", "stage")

# How many moments of a kind a run may pass before it dies: a step has four, a file six.
FURTHEST = {"start": 20, "teacher": 30, "save": 24, "stage": 24 if KILLS < 10 else 60}

# Those with state of their own between steps, epochs or stages.
METHODS = {
    "fitnet": ["method.hint_epochs=3"],
    "crd": [],
    "dml": [],
    "ctkd": [],
    "simkd": ["teacher=resnet14"],
    "ofa": [],
    "capd": ["teacher=vit_cifar_tiny"],
    "sskd": ["method.prepare_epochs=2"],
    "kd": ["optimizer.ema_decay=0.9", "optimizer.accumulate_steps=2"],
    "combine": ["method.parts=[crd,ctkd]"],
    "srd": [],
    "vid": [],
}
# FitNet's stages, two peers, a queue of averages, two methods in one.
TRIED = METHODS if KILLS > 4 else ("fitnet", "dml", "kd", "combine")


def everything(outputs: Path) -> dict[str, object]:
    """Return what must repeat, of the run and of its teacher."""
    found: dict[str, object] = {"run": numbers(only_run(outputs))}
    if (outputs / "teachers").exists():
        teacher = only_teacher(outputs)
        found["teacher"] = (teacher / "teacher.safetensors").read_bytes(), steady_result(teacher)
    return found


class Broken:
    """Runs of one method that are killed again and again."""

    def __init__(self, zygote: Zygote, folder: Path, words: list[str], seed: str):
        self.zygote, self.folder, self.words = zygote, folder, words
        self.random = random.Random(seed)
        self.hits: Counter[str] = Counter()
        self.runs = 0

    @property
    def outputs(self) -> Path:
        return self.folder / f"run{self.runs}"

    def complete(self, kinds: Sequence[str]) -> None:
        """Train a run to its end, through a kill of each kind; those behind which it has come are left out."""
        self.runs += 1
        if not any(self.killed(kind) is None for kind in kinds):
            assert self.killed(None) is None

    def killed(self, kind: str | None) -> str | None:
        """The kind where it hit, None where the run came to its end."""
        often = self.random.random() < 0.7
        words = [*self.words, *(["save_every_minutes=1e-9"] if often else [])]
        die = {} if kind is None else {"die": [kind, self.random.randint(1, FURTHEST[kind])]}
        self.zygote.start(self.outputs, words, often=often, **die)
        status = self.zygote.number()
        if status == 0:
            return None
        assert status == signal.SIGKILL, f"{status}: {Path(f'{self.outputs}.log').read_text()}"
        assert kind is not None
        self.hits[kind] += 1
        return kind


@pytest.mark.slow
@pytest.mark.parametrize("method", TRIED)
def test_a_killed_run_ends_as_if_never_killed(zygote, tmp_path, method):
    epochs = 3 if KILLS < 10 else 8
    words = ["train", *TINY, f"method={method}", f"epochs={epochs}", "teacher.recipe.epochs=3", *METHODS[method]]
    zygote.start(tmp_path / "whole", words)
    assert zygote.number() == 0, (tmp_path / "whole.log").read_text()
    expected = everything(tmp_path / "whole")
    broken = Broken(zygote, tmp_path, words, method)
    wanted = {kind for kind in SHORT if method != "dml" or kind != "teacher"}
    while (left := KILLS - broken.hits.total()) > 0:
        kinds = SHORT if left < len(LONG) else LONG
        broken.complete([kind for kind in kinds if kind in wanted][:left])
        assert everything(broken.outputs) == expected, f"{method}, {broken.outputs}"
        assert not list(broken.outputs.rglob("*.tmp"))
    print(method, dict(broken.hits), f"{broken.runs} runs")
    assert set(broken.hits) == wanted  # every kind of moment came
