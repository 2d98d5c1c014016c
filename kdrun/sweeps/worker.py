"""One process of a sweep: takes tasks from the scheduler, trains their runs as lanes, and reports what happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.errors import DiskFull, Interrupted, KdrunError, LockedElsewhere, RunError, reason_of
from kdrun.models.own_import import pinned
from kdrun.training.build import Plan
from kdrun.training.threads import presence

if TYPE_CHECKING:
    from kdrun.training.signals import Stop
    from kdrun.training.trainer import Event


@dataclass
class Task:
    """kind: "rehearse" (can these run at all?), "teacher" (train the first plan's into the store) or "lanes"."""

    kind: str
    plans: list[Plan]
    label: str
    memory_share: float = 0.5


@dataclass(frozen=True)
class Advanced:
    """Training stands at `position` of `epochs`, with so many images per second through every lane. runs: the
    directories of those that train side by side, which may be a part of the task's."""

    what: str
    position: float
    epochs: int
    images_per_second: float
    runs: tuple[str, ...] = ()


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


Report = Callable[[Any], None]


def serve(connection: Connection, log: str) -> None:
    """Run tasks until None comes. Whatever is printed goes into `log`."""
    multiprocessing.current_process().daemon = False  # else it may not start what decodes and streams images
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # between tasks: the scheduler repeats what it wants
    file = Path(log).open("a", buffering=1)  # noqa: SIM115 (open as long as the process lives)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    from rich.console import Console

    from kdrun import console

    console.out = Console(file=file, highlight=False, width=160, no_color=True)
    try:
        with presence():
            while (task := connection.recv()) is not None:
                connection.send(run_task(task, connection.send))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the scheduler is gone; all runs can be resumed
        os._exit(1)


def run_task(task: Task, report: Report) -> Finished:
    """Never raises for a failure of the task's runs: it is reported for each of them."""
    from kdrun.training.signals import stop_on_signals

    work = {"rehearse": rehearse, "teacher": train_teacher, "lanes": train_lanes}[task.kind]
    over: set[str] = set()

    def told(message: Any) -> None:
        if isinstance(message, Ended):
            over.add(message.run)
        report(message)

    with stop_on_signals() as stop:
        try:
            with pinned(file for plan in task.plans for file in plan.code.files.values()):
                work(task, told, stop)
        except Interrupted:
            pass
        except Exception as error:
            if not isinstance(error, KdrunError):
                traceback.print_exc()
            full = isinstance(error, DiskFull)
            for plan in task.plans:
                if str(plan.run.path) not in over:  # a failed.txt may be there of an earlier try
                    end(plan, reason_of(error), report, record=not full and task.kind == "lanes")
            return Finished(reason_of(error) if full else "", full)
    return Finished(f"stopped by {stop.signal}; saved." if stop.signal else "")


def end(plan: Plan, reason: str, report: Report, record: bool = True) -> None:
    """Report a run's failure, and record it in its directory."""
    if record:
        with suppress(RunError):  # a disk that refuses this too
            plan.run.fail(reason)
    report(Ended(str(plan.run.path), None, reason))


def rehearse(task: Task, report: Report, stop: Stop) -> None:
    """A plan that cannot run ends with the reason; the others stay silent."""
    from kdrun.training.session import Session

    session = Session(task.plans[:1], stop, viewer(report), lambda *_: None)
    session.numerics.apply()
    for plan in task.plans:
        if stop.signal:
            return
        try:
            session.rehearse(plan)
        except Exception as error:
            if not isinstance(error, KdrunError):
                traceback.print_exc()
            end(plan, reason_of(error), report)


def train_teacher(task: Task, report: Report, stop: Stop) -> None:
    from kdrun.training.session import Session

    Session(task.plans[:1], stop, viewer(report), lambda *_: None).obtain_teacher()


def train_lanes(task: Task, report: Report, stop: Stop) -> None:
    """Lock what nobody else is at, and train it, as many at a time as memory holds."""
    from kdrun.training.session import Session

    def ended(plan: Plan, outcome: dict[str, Any] | KdrunError) -> None:
        if isinstance(outcome, KdrunError):
            report(Ended(str(plan.run.path), None, str(outcome)))
        else:
            report(Ended(str(plan.run.path), outcome))

    with ExitStack() as locks:
        plans = []
        for plan in task.plans:
            try:
                locks.enter_context(plan.run.lock())
            except DiskFull:
                raise
            except RunError as error:
                report(Ended(str(plan.run.path), None, str(error), elsewhere=isinstance(error, LockedElsewhere)))
                continue
            if plan.run.finished:  # by another machine, in the meantime
                report(Ended(str(plan.run.path), plan.run.result()))
            else:
                plans.append(plan)
        for group in by_compiled_needs(plans):
            while group:
                view = viewer(report, tuple(str(plan.run.path) for plan in group))
                session = Session(group, stop, view, ended, task.memory_share)
                session.run()
                group = session.left


def by_compiled_needs(plans: list[Plan]) -> Iterator[list[Plan]]:
    """What is compiled depends on the features that are asked for, down to its rounding: lanes of a compiled teacher
    ask for the same."""
    from kdrun.methods.factory import make_method

    groups: dict[tuple[str, ...], list[Plan]] = {}
    for plan in plans:
        needs = () if plan.config.compile == "false" else sorted(make_method(plan.config.method).teacher_needs)
        groups.setdefault(tuple(needs), []).append(plan)
    yield from groups.values()


def viewer(report: Report, runs: tuple[str, ...] = ()) -> Any:
    """A session's view that reports epochs, and steps now and then."""
    import time

    from kdrun.console import TrainingView

    @contextmanager
    def view(what: str, epochs: int, first: float) -> Iterator[Callable[[Event], None]]:
        last = 0.0
        with TrainingView(what, epochs, first, name_lanes=what == "student") as lines:  # into the log

            def show(event: Event) -> None:
                from kdrun.training.trainer import Epoch, Step

                nonlocal last
                lines.show(event)
                if isinstance(event, Step) and time.monotonic() - last > 0.5:
                    last = time.monotonic()
                    position = event.epoch - 1 + event.step / event.steps
                    report(Advanced(what, position, epochs, event.images_per_second, runs))
                elif isinstance(event, Epoch) and event.epoch == epochs:
                    report(Advanced(what, epochs, epochs, event.metrics["train"]["images_per_second"], runs))

            yield show

    return view
