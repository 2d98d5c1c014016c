"""Runs that several files damage, and a process that has everything imported and forks runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdrun.cli import main
from kdrun.training.loop import Lane
from tests.conftest import TINY

WORDS = [*TINY, "epochs=2", "method=kd", "save_every_minutes=1e-9", "dataset.normalize=measure"]


class Killed(BaseException):
    """The process is gone."""


def killed_at(patch: pytest.MonkeyPatch, step: int) -> None:
    taken, original = [], Lane.step

    def counted(self, *arguments):
        original(self, *arguments)
        taken.append(1)
        if len(taken) == step:
            raise Killed

    patch.setattr(Lane, "step", counted)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """Outputs with two finished runs of a sweep (seeds 0 and 1), the first one measured, and one that was killed in its
    second epoch."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRUN_OUTPUTS", str(home))
        patch.setenv("KDRUN_CACHE", str(home / "cache"))
        patch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
        assert main(["train", "-m", *WORDS, "seed=0,1", "name=mine", "launcher.processes=0"]) == 0
        with pytest.MonkeyPatch.context() as inner:
            killed_at(inner, 5)
            with pytest.raises(Killed):
                main(["train", *WORDS, "seed=2"])
        assert main(["eval", str(next(home.glob("runs/*/*/*/s0-*")))]) == 0
    return home


class Zygote:
    """A process that forks runs."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def start(self, outputs: Path, words: list[str], **order: object) -> int:
        """The process id of a run."""
        outputs.mkdir(exist_ok=True)
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"words": words, "outputs": str(outputs), **order}) + "\n")
        self.process.stdin.flush()
        return self.number()

    def number(self) -> int:
        """Return what the zygote prints next: after a process id, that run's wait status."""
        assert self.process.stdout
        for line in self.process.stdout:
            return int(line)
        raise AssertionError("the process that forks the runs is gone")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    assert made.process.stdin
    made.process.stdin.close()
    made.process.wait()
