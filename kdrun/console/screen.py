"""Live training display: a bar within each epoch and a line after it, or a bar for each process of a sweep; plain
lines if there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from kdrun import console
from kdrun.display import EpochEnd, Show, Step, TrainingLines, duration
from kdrun.errors import printable
from kdrun.sweeps.messages import Advanced, Begun, Ended, Message, ShowMessage, Task

WIDE = 100  # columns; below this, bars and lines are shortened
VERY_WIDE = 160  # columns from which a sweep's bars have room for long names


def standing(report: Advanced, lanes: int, narrow: bool) -> str:
    """Return the progress of a process: epoch, speed, and the loss and accuracy of its runs so far."""
    parts = [f"epoch {report.position:.1f}/{report.epochs}"]
    if not narrow:
        speed = f"{report.images_per_second:,.0f} images/s"
        parts.append(f"{speed} × {lanes} lanes" if lanes > 1 else speed)
    if report.loss is not None:
        parts.append(f"loss {between(report.loss, 2)}")
    if report.top1 is not None:
        parts.append(f"test {between(report.top1, 1)} %")
    return " · ".join(parts)


def between(bounds: tuple[float, float], digits: int) -> str:
    """Return a range such as 88.1–92.0, or one number if both ends are equal."""
    low, high = (f"{bound:.{digits}f}" for bound in bounds)
    return low if low == high else f"{low}–{high}"


class TrainingView(TrainingLines):
    """Display of one training: a bar within the epoch, a line after each."""

    def __init__(self, what: str, epochs: int, first: float, name_runs: bool = False):
        super().__init__(what, epochs, first, console.note, name_runs)
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> TrainingView:
        if console.out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=28 if console.out.width >= WIDE else 8),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}{task.fields[speed]}"),
                TextColumn("· {task.fields[left]}"),
            )
            self.progress = Progress(*columns, console=console.out, transient=True)
            self.task = self.progress.add_task(self.what, total=1, speed="", left="")
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, event: Step | EpochEnd) -> None:
        if isinstance(event, EpochEnd):
            console.say(self.epoch_line(event, lambda text: f"[bold]{text}[/]", narrow=console.out.width < WIDE))
            self.last_line = time.monotonic()
        elif self.progress is None or self.task is None:
            self.step(event)
        else:
            self.progress.update(
                self.task,
                description=f"{self.what} epoch {event.epoch}/{self.epochs}",
                completed=event.step,
                total=event.steps,
                speed=f" · {event.images_per_second:,.0f} images/s" if console.out.width >= WIDE else "",
                left=self.time_left(event),
            )


class Position(NamedTuple):
    """Position of a process in its task: the fraction of its epochs that is trained, the fraction that it found
    trained when it began, and the number of its runs that still train."""

    trained: float
    found: float
    lanes: int


class SweepView:
    """Display of a sweep: one bar for all runs, one for each process, and a line for each run that ends."""

    def __init__(self, runs: int, places: dict[str, str]):
        self.runs, self.places = runs, places
        self.over: set[str] = set()
        self.ended, self.failed, self.last_line = 0, 0, time.monotonic()
        self.begun: float | None = None  # start of the first run; checks and teachers do not count for the pace
        self.positions: dict[int, Position] = {}  # slot -> its task's
        self.resumed = 0.0  # runs that an earlier command trained, of those that ended: fractions of a run each
        self.tasks: dict[int, TaskID] = {}
        self.progress: Progress | None = None

    def __enter__(self) -> SweepView:
        if console.out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24 if console.out.width >= VERY_WIDE else 8),
                TextColumn("{task.fields[text]}"),
            )
            self.progress = Progress(*columns, console=console.out, transient=True)
            self.total = self.progress.add_task("all runs", total=self.runs, text="")
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, slot: int, task: Task, report: Message) -> None:
        """Show one message of a process."""
        if isinstance(report, Begun):
            self._bar(slot, task, 0, 1, "starting")
        elif isinstance(report, Advanced):
            self._advance(slot, task, report)
        elif isinstance(report, Ended):
            self._end(slot, task, report)
        else:
            self.positions.pop(slot, None)
            if self.progress is not None and slot in self.tasks:
                self.progress.update(self.tasks[slot], completed=0, text="", description="idle")

    def _advance(self, number: int, task: Task, report: Advanced) -> None:
        lanes = sum(run not in self.over for run in report.runs)
        # Preparing data, or training the lanes' teacher first, does not count towards any run's epochs.
        counted = lanes if report.what == "student" else 0
        if counted and self.begun is None:
            self.begun = time.monotonic()
        self.positions[number] = Position(report.position / report.epochs, report.first / report.epochs, counted)
        text = standing(report, counted, narrow=console.out.width < WIDE)
        if self.progress is not None:
            self._bar(number, task, report.position, report.epochs, text)
            self.progress.update(self.total, completed=self._done(), text=self._summary())
        elif time.monotonic() - self.last_line > 60:
            self.last_line = time.monotonic()
            console.note(f"{task.label}: {text}; {self._summary()}")

    def _bar(self, number: int, task: Task, completed: float, total: float, text: str) -> None:
        """Show one process's task, on a terminal."""
        if self.progress is None:
            return
        if number not in self.tasks:
            self.tasks[number] = self.progress.add_task("", total=1, text="")
        width = console.out.width
        room = 14 if width < WIDE else 20 if width < VERY_WIDE else 48
        name = task.label if len(task.label) <= room else f"{task.label[: room - 1]}…"
        self.progress.update(
            self.tasks[number],
            description=f"  {escape(printable(name))}",
            completed=completed,
            total=total,
            text=text,
        )

    def _done(self) -> float:
        """Return the number of finished runs, plus the finished fractions of those in progress."""
        return self.ended + sum(at.lanes * at.trained for at in self.positions.values())

    def _summary(self) -> str:
        done, spent = self._done(), time.monotonic() - (self.begun or time.monotonic())
        trained = done - self.resumed - sum(at.lanes * at.found for at in self.positions.values())
        left = f", about {duration(spent / trained * (self.runs - done))} left" if trained > 0.02 * self.runs else ""
        return f"{self.ended}/{self.runs} runs" + (f", {self.failed} failed" if self.failed else "") + left

    def _end(self, number: int, task: Task, report: Ended) -> None:
        place = escape(str(self.places.get(report.run, report.run)))
        if task.kind == "teacher":
            console.say(f"[bold red]failed[/]  teacher of {place}: {escape(report.reason)}")
            return
        if report.elsewhere:
            console.note(f"elsewhere  {place}: {report.reason}")
            return
        self.ended += 1
        self.over.add(report.run)
        self.last_line = time.monotonic()
        at = self.positions.get(number)
        if at is not None and at.lanes:
            self.resumed += at.found
            self.positions[number] = at._replace(lanes=at.lanes - 1)
        if report.result is None:
            self.failed += 1
            console.say(f"[bold red]failed[/]  {place}: {escape(report.reason)}  [dim]{self._summary()}[/]")
        else:
            teacher = report.result["teacher_top1"]
            beside = f" (teacher {teacher:.2f} %)" if teacher is not None else ""
            top1 = report.result["top1_last"]
            console.say(f"[bold green]done[/]  {place}: [bold]{top1:.2f} %[/]{beside}  [dim]{self._summary()}[/]")


class RichDisplay:
    """Terminal output for engines. name_runs: as in TrainingLines."""

    def __init__(self, name_runs: bool = False):
        self.name_runs = name_runs

    def note(self, line: str) -> None:
        console.note(line)

    def fact(self, name: str, line: str) -> None:
        console.fact(name, line)

    def track(self, steps: Iterator[int], total: int, label: str) -> Iterator[int]:
        return console.track(steps, total, label)

    @contextmanager
    def training(self, what: str, epochs: int, first: float) -> Iterator[Show]:
        with TrainingView(what, epochs, first, self.name_runs and what == "student") as view:
            yield view.show

    @contextmanager
    def sweep(self, runs: int, places: dict[str, str]) -> Iterator[ShowMessage]:
        with SweepView(runs, places) as view:
            yield view.show
