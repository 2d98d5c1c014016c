"""What the scheduler and its processes say to each other, and how a sweep is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from kdrun.display import Display
from kdrun.runs.plan import Plan


@dataclass
class Task:
    """kind: "rehearse" (can these run at all?), "teacher" (train the first plan's into the store) or "lanes"; again:
    after the process that was at it died; processes: how many train each run together."""

    kind: str
    plans: list[Plan]
    label: str
    memory_share: float = 0.5
    again: bool = False
    processes: int = 1


@dataclass(frozen=True)
class Advanced:
    """Training stands at `position` of `epochs`, with so many images per second through every lane. runs: the
    directories of those that train side by side, which may be a part of the task's; loss, top1: the lowest and the
    highest among them at their last epoch's end, of training and on the test set; None before it."""

    what: str
    position: float
    epochs: int
    images_per_second: float
    runs: tuple[str, ...] = ()
    loss: tuple[float, float] | None = None
    top1: tuple[float, float] | None = None


@dataclass(frozen=True)
class Begun:
    """A process was given a task, and is reading or building what it needs."""


@dataclass(frozen=True)
class Ended:
    """A run has its result, or why it has none. elsewhere: another process is at it."""

    run: str
    result: dict[str, Any] | None
    reason: str = ""
    elsewhere: bool = False


@dataclass(frozen=True)
class Finished:
    """The task is over; stopped: what ended it early, with everything saved; disk_full: that was no signal."""

    stopped: str = ""
    disk_full: bool = False


Message = Begun | Advanced | Ended | Finished
Report = Callable[[Message], None]
ShowMessage = Callable[[int, Task, Message], None]  # number of the process, its task, what it says


class SweepDisplay(Display, Protocol):
    """A display that can show a whole sweep."""

    def sweep(self, runs: int, places: dict[str, str]) -> AbstractContextManager[ShowMessage]:
        """Show a sweep of `runs` runs; places: run directory -> its name on the screen."""
        ...
