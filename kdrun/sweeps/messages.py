"""Messages between the scheduler and its processes, and the display of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from kdrun.display import Display
from kdrun.runs.plan import Plan


@dataclass
class Task:
    """Task of a process. kind: "rehearse" (dry run: can these train at all?), "teacher" (train the first plan's
    teacher into the store) or "lanes"; again: True if the process that had it died; processes: number of processes
    that train each run together."""

    kind: str
    plans: list[Plan]
    label: str
    memory_share: float = 0.5
    again: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Advanced:
    """Progress report: training is at `position` of `epochs`, at a number of images per second through every lane.

    first: the epoch from which this process trains, above 0 if it resumed;
    runs: the directories that train side by side, possibly only some of the task's; loss, top1: lowest and highest
    values among them at the end of their last epoch, in training and on the test set; None before that.
    """

    what: str
    position: float
    epochs: int
    images_per_second: float
    runs: tuple[str, ...] = ()
    loss: tuple[float, float] | None = None
    top1: tuple[float, float] | None = None
    first: float = 0.0


@dataclass(frozen=True)
class Begun:
    """Start report: a process has a task, and is reading or building what it needs."""


@dataclass(frozen=True)
class Ended:
    """End of a run, with its result or the reason for having none. elsewhere: another process is training it."""

    run: str
    result: dict[str, Any] | None
    reason: str = ""
    elsewhere: bool = False


@dataclass(frozen=True)
class Finished:
    """End of a task. stopped: the reason if it ended early, with everything saved; disk_full: True if that was no
    signal."""

    stopped: str = ""
    disk_full: bool = False


Message = Begun | Advanced | Ended | Finished
Report = Callable[[Message], None]
ShowMessage = Callable[[int, Task, Message], None]  # number of the process, its task, its message


class SweepDisplay(Display, Protocol):
    """Display that can show a whole sweep."""

    def sweep(self, runs: int, places: dict[str, str]) -> AbstractContextManager[ShowMessage]:
        """Show a sweep of `runs` runs; places: run directory -> its name on the screen."""
        ...
