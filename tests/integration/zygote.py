"""Import everything once, then fork one `kdrun` per line on stdin: no start-up time, and it can die at a chosen moment.

A line is JSON: the arguments, the folder of outputs, whether to save after every step, and where to die: at the n-th moment
of a kind. Print the child's process id, and its wait status when it has ended.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

# torch.optim imports torch._dynamo at its first step; a child that did so would spend its short life on it.
USED = (
    "kdrun.training.session",
    "kdrun.training.trainer",
    "kdrun.models.zoo",
    "kdrun.runs.curves",
    "hydra",
    "safetensors.torch",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "torch._dynamo",
)


class Course:
    """The moments of a run, counted; the run dies at the chosen one. Kinds: start, teacher, stage and save."""

    def __init__(self, kind: str | None, number: int):
        self.kind, self.number = kind, number
        self.passed: Counter[str] = Counter()
        self.in_teacher = False
        self.writes = ""  # the file that is being written

    def reach(self, kind: str) -> None:
        self.passed[kind] += 1
        if kind == self.kind and self.passed[kind] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, *_: Any) -> str:
        return "teacher" if self.in_teacher else "stage"

    def file(self, *arguments: Any) -> str:
        """Return the kind of a written file: those written before training belong to the start.

        A synced folder counts as the file that was written there last."""
        place = Path(f"/proc/self/fd/{arguments[0]}").readlink() if isinstance(arguments[0], int) else arguments[0]
        self.writes = self.writes if Path(place).is_dir() else Path(place).name
        return "start" if any(name in self.writes for name in ("config", "provenance", "signature")) else "save"

    def around(self, owner: Any, name: str, kind: Callable[..., str]) -> None:
        """Count a moment before and one after each call."""
        real = getattr(owner, name)

        @wraps(real)
        def watched(*arguments: Any, **named: Any) -> Any:
            now = kind(*arguments)
            self.reach(now)
            found = real(*arguments, **named)
            self.reach(now)
            return found

        setattr(owner, name, watched)

    def watch(self) -> None:
        from kdrun.runs import directory
        from kdrun.training import session, trainer
        from kdrun.training.loop import Lane

        teach = session.Session.train_teacher

        def train_teacher(*arguments: Any) -> None:
            self.in_teacher = True
            teach(*arguments)
            self.in_teacher = False

        session.Session.train_teacher = train_teacher  # type: ignore[method-assign]
        for owner, name in (
            (session, "load_data"),
            (session, "make_loaders"),
            (session.TrainingRun, "resume"),
            (session.RunDirectory, "begin"),
            (session, "keep_outputs"),
        ):
            self.around(owner, name, lambda *_: "start")
        for owner, name in ((Lane, "step"), (Lane, "update"), (trainer, "close_epoch")):
            self.around(owner, name, self.step)
        # Inside write_atomically: before and after what is written is on the disk, and the renaming.
        self.around(os, "fsync", self.file)
        self.around(os, "replace", self.file)
        self.around(directory.RunDirectory, "append_metrics", lambda *_: "save")


def run(order: dict[str, Any]) -> int:
    """Run the command, in the child."""
    from kdrun.cli import main
    from kdrun.sweeps import scheduler
    from kdrun.training import trainer

    os.setsid()  # with its own children, a group that is killed at once
    os.environ["KDRUN_OUTPUTS"] = order["outputs"]
    scheduler.CONTEXT = multiprocessing.get_context("fork")  # type: ignore[assignment]
    log = os.open(order["outputs"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order.get("often"):
        trainer.SAVE_SECONDS = -1
    kind, number = order.get("die", (None, 0))
    Course(kind, number).watch()
    return main(order["words"])


def main() -> None:
    from matplotlib.figure import Figure

    from kdrun.config import compose
    from tests.conftest import remembering, save_blank

    for name in USED:
        importlib.import_module(name)
    Figure.savefig = save_blank  # type: ignore[assignment]
    compose.compose = remembering(compose.compose)
    for line in sys.stdin:
        order = json.loads(line)
        if "-m" not in order["words"]:
            compose.load(order["words"][1:])  # composed here, it is remembered in every child
        child = os.fork()
        if child == 0:
            os._exit(run(order))
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main()
