"""SIGKILL at random moments, inside saves too: the final weights are the uninterrupted run's, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.integration.test_runs import numbers, only_run, only_teacher

KILLS = 16
WORDS = ["train", *TINY, "epochs=40", "teacher.recipe.epochs=10", "save_every_minutes=1e-9"]


class Zygote:
    """A process that forks trainings into one output folder."""

    def __init__(self, outputs: Path):
        environment = {**os.environ, "KDRUN_OUTPUTS": str(outputs)}
        command = [sys.executable, "-m", "tests.integration.zygote"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )

    def start(self) -> int:
        assert self.process.stdin
        self.process.stdin.write(" ".join(WORDS) + "\n")
        self.process.stdin.flush()
        return self.number()

    def number(self) -> int:
        """The next number that the zygote itself prints; the children's own lines are passed over."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip().isdigit():
                return int(line)
        raise AssertionError("the training process could not be started")


def saves(outputs: Path) -> dict[Path, int]:
    """What every checkpoint under `outputs` looks like from outside; different after each save."""
    return {path: path.stat().st_mtime_ns for path in outputs.rglob("last.pt")}


def live_a_while(outputs: Path, child: int) -> None:
    """Return at a random moment: one time in four soon after the start, else after the first new save."""
    if random.random() < 0.25:
        time.sleep(random.uniform(0, 0.5))
        return
    before = saves(outputs)
    while saves(outputs) == before and Path(f"/proc/{child}").exists():
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.14))  # about two saves long


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path):
    whole = Zygote(tmp_path / "whole")
    whole.start()
    assert whole.number() == 0
    expected = numbers(only_run(tmp_path / "whole"))
    teacher = (only_teacher(tmp_path / "whole") / "teacher.safetensors").read_bytes()

    random.seed(0)
    broken = Zygote(tmp_path / "broken")
    kills = in_save = 0
    while True:
        child = broken.start()
        if kills < KILLS:
            live_a_while(tmp_path / "broken", child)
            os.kill(child, signal.SIGKILL)
        status = broken.number()
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, f"ended by itself with {status}"
        kills += 1
        in_save += bool(list((tmp_path / "broken").rglob("*.tmp")))
    print(f"{kills} kills, {in_save} of them inside a save")
    assert kills >= 14
    assert in_save >= 1
    assert not list((tmp_path / "broken").rglob("*.tmp"))
    assert numbers(only_run(tmp_path / "broken")) == expected
    assert (only_teacher(tmp_path / "broken") / "teacher.safetensors").read_bytes() == teacher
