"""A process that has everything imported, and forks runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


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
        """What the zygote prints next: after a process id that run's wait status."""
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
