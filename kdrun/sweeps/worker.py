"""Worker process of a sweep: takes tasks from the scheduler, trains their runs as lanes, and reports progress."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kdrun.config.own_code import located
from kdrun.data.processes import ignore_signals
from kdrun.display import Display, EpochEnd, PlainDisplay, Show, Step
from kdrun.errors import DiskFull, Interrupted, KdrunError, LockedElsewhere, RunError
from kdrun.models.own_import import pinned
from kdrun.runs.plan import Plan
from kdrun.sweeps.messages import Advanced, Ended, Finished, Message, Report, Task
from kdrun.sweeps.several import run_on_several
from kdrun.training import ranks
from kdrun.training.signals import Stop, stop_on_signals
from kdrun.training.threads import presence


def serve(connection: Connection, log: str) -> None:
    """Run tasks until None arrives. All output goes into `log`."""
    multiprocessing.current_process().daemon = False  # daemons may not start processes, which decoding images needs
    ignore_signals()  # between tasks: the scheduler repeats its signals
    file = Path(log).open("a", buffering=1)  # noqa: SIM115 (open as long as the process lives)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    display = PlainDisplay(file, name_runs=True)
    try:
        with presence():
            while (task := connection.recv()) is not None:
                connection.send(run_task(task, connection.send, display))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the scheduler has died; all runs can be resumed
        os._exit(1)


def run_task(task: Task, report: Report, display: Display) -> Finished:
    """Run a task. A failure of its runs is reported for each of them, never raised."""
    if task.processes > 1 and task.kind != "rehearse":
        return run_on_several(task, report, run_task)
    work = {"rehearse": rehearse, "teacher": train_teacher, "lanes": train_lanes}[task.kind]
    over: set[str] = set()

    def told(message: Message) -> None:
        if isinstance(message, Ended):
            over.add(message.run)
        report(message)

    with stop_on_signals() as stop:
        try:
            with pinned(file for plan in task.plans for file in plan.code.files.values()):
                work(task, told, stop, display)
        except Interrupted as stopped:
            for plan in task.plans if not (stop.signal or stop.heard) else ():  # another process of the run has died
                if str(plan.run.path) not in over:
                    end(plan, str(stopped), told, record=False)
        except Exception as error:
            if not isinstance(error, KdrunError):
                traceback.print_exc()
                if stop.signal:  # a helper process died of the same signal, or the terminal was closed
                    return Finished(f"stopped by {stop.signal}.")
            full = isinstance(error, DiskFull)
            for plan in task.plans:
                if str(plan.run.path) not in over:  # failed.txt may be from an earlier attempt
                    end(plan, located(error), report, record=not full and task.kind == "lanes")
            return Finished(located(error) if full else "", full)
    name = stop.signal or stop.heard
    return Finished(f"stopped by {name}; saved." if name else "")


def end(plan: Plan, reason: str, report: Report, record: bool = True) -> None:
    """Report a run's failure, and record it in its directory."""
    if record:
        with suppress(RunError):  # the disk may be full
            plan.run.fail(reason)
    report(Ended(str(plan.run.path), None, reason))


def rehearse(task: Task, report: Report, stop: Stop, display: Display) -> None:
    """Do a dry run of each plan: report the reason for one that cannot train, and nothing for the others."""
    from kdrun.training.session import Session

    session = Session(task.plans[:1], stop, Reporting(display, report), lambda *_: None)
    session.numerics.apply()
    for plan in task.plans:
        try:
            session.rehearse(plan)
        except Exception as error:
            if not isinstance(error, KdrunError):
                traceback.print_exc()
            end(plan, located(error), report)


def train_teacher(task: Task, report: Report, stop: Stop, display: Display) -> None:
    from kdrun.training.session import Session

    Session(task.plans[:1], stop, Reporting(display, report), lambda *_: None).obtain_teacher()


def train_lanes(task: Task, report: Report, stop: Stop, display: Display) -> None:
    """Lock the runs that no other process has locked, and train them, as many at a time as memory allows."""
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
            if plan.run.pending:
                plans.append(plan)
            else:  # finished by another machine in the meantime
                report(Ended(str(plan.run.path), plan.run.result()))
        chosen = ranks.now.from_main(lambda: {str(plan.run.path) for plan in plans})
        plans = [plan for plan in plans if str(plan.run.path) in chosen]
        for group in by_compiled_needs(plans):
            while group:
                told = Reporting(display, report, tuple(str(plan.run.path) for plan in group))
                session = Session(group, stop, told, ended, task.memory_share)
                session.run()
                group = session.left


def by_compiled_needs(plans: list[Plan]) -> Iterator[list[Plan]]:
    """Split plans by the features that they compile. Compilation depends on the requested features, down to
    rounding, so lanes of a compiled teacher must request the same."""
    from kdrun.methods.factory import make_method

    groups: dict[tuple[str, ...], list[Plan]] = {}
    for plan in plans:
        needs = () if plan.config.compile == "false" else sorted(make_method(plan.config.method).teacher_needs)
        groups.setdefault(tuple(needs), []).append(plan)
    yield from groups.values()


def bounds_of(values: Collection[float]) -> tuple[float, float] | None:
    """Return the lowest and the highest value."""
    return (min(values), max(values)) if values else None


class Reporting:
    """Display that also reports to the scheduler: epochs, and steps now and then. runs: directories that train side
    by side."""

    def __init__(self, display: Display, report: Report, runs: tuple[str, ...] = ()):
        self.display, self.report, self.runs = display, report, runs

    def note(self, line: str) -> None:
        self.display.note(line)

    def fact(self, name: str, line: str) -> None:
        self.display.fact(name, line)

    def track(self, steps: Iterator[int], total: int, label: str) -> Iterator[int]:
        return self.display.track(steps, total, label)

    @contextmanager
    def training(self, what: str, epochs: int, first: float) -> Iterator[Show]:
        last = 0.0
        losses: dict[Path, float] = {}
        accuracies: dict[Path, float] = {}

        def advanced(position: float, images_per_second: float) -> Advanced:
            found = bounds_of(losses.values()), bounds_of(accuracies.values())
            return Advanced(what, position, epochs, images_per_second, self.runs, *found, first)

        with self.display.training(what, epochs, first) as shown:

            def show(event: Step | EpochEnd) -> None:
                nonlocal last
                shown(event)
                if isinstance(event, EpochEnd):
                    losses[event.run] = event.metrics["train"]["loss"]
                    if "test" in event.metrics:
                        accuracies[event.run] = event.metrics["test"]["top1"]
                if isinstance(event, Step) and time.monotonic() - last > 0.5:
                    last = time.monotonic()
                    position = event.epoch - 1 + event.step / event.steps
                    self.report(advanced(position, event.images_per_second))
                elif isinstance(event, EpochEnd) and event.epoch == epochs:
                    pace = event.metrics["train"]["images_per_second"]
                    self.report(advanced(epochs, pace))

            yield show
