"""Everything that is printed. Progress bars on a terminal, plain lines elsewhere, no colour under NO_COLOR."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from kdrun.training.trainer import Epoch, Event, Step

# A pipe or a log file has no width of its own; 80 columns would fold every table.
out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)


def note(line: str) -> None:
    out.print(f"[dim]{escape(line)}[/]", soft_wrap=True)


def say(line: str) -> None:
    """A line in rich markup; values must be escaped by the caller."""
    out.print(line, soft_wrap=True)


def track(steps: Iterator[int], total: int, label: str) -> Iterator[int]:
    """A progress bar over `steps` with time left; one plain line where there is no terminal."""
    if not out.is_terminal:
        note(f"{label} …")
        yield from steps
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(label, total=total)
        for step in steps:
            yield step
            progress.advance(task)


def duration(seconds: float) -> str:
    """3 s, 4 min 05 s, 2 h 10 min."""
    seconds = max(round(seconds), 0)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def count(number: float) -> str:
    """278,324 as 0.28M."""
    if number >= 1e9:
        return f"{number / 1e9:.2f}G"
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in words."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A plain table; columns whose cells are numbers align right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        numeric = all(row[position][:1] in "0123456789-+.–" or not row[position] for row in rows) if rows else False
        made.add_column(column, justify="right" if numeric and position else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    out.print(made)


class TrainingView:
    """One training run on the screen: a bar within the epoch, a line after each."""

    def __init__(self, what: str, epochs: int, first_epoch: float, name_lanes: bool = False):
        """name_lanes: begin each line with the run's method and seed, where several train side by side."""
        self.what, self.epochs, self.name_lanes = what, epochs, name_lanes
        self.begun, self.first, self.done = time.monotonic(), first_epoch, first_epoch
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.last_line = 0.0

    def __enter__(self) -> TrainingView:
        if out.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("step {task.completed:.0f}/{task.total:.0f} · {task.fields[speed]}"),
                TextColumn("· {task.fields[left]}"),
            )
            self.progress = Progress(*columns, console=out, transient=True)
            self.task = self.progress.add_task(self.what, total=1, speed="", left="")
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, event: Event) -> None:
        """Step and Epoch events; a failure is the caller's to report."""
        from kdrun.training.trainer import Epoch, Step

        if isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Epoch):
            self._epoch(event)

    def time_left(self, position: float) -> str:
        """From this process's own pace; position in epochs."""
        progressed = position - self.first
        if progressed <= 0:
            return ""
        return f"{duration((time.monotonic() - self.begun) / progressed * (self.epochs - position))} left"

    def _step(self, event: Step) -> None:
        position = event.epoch - 1 + event.step / event.steps
        if self.progress is not None and self.task is not None:
            self.progress.update(
                self.task,
                description=f"{self.what} epoch {event.epoch}/{self.epochs}",
                completed=event.step,
                total=event.steps,
                speed=f"{event.images_per_second:,.0f} images/s",
                left=self.time_left(position),
            )
        elif time.monotonic() - self.last_line > 60:  # long epochs: a sign of life in a log file
            if self.last_line:
                note(f"{self.what} epoch {event.epoch}/{self.epochs} step {event.step}/{event.steps} "
                     f"{event.images_per_second:,.0f} images/s {self.time_left(position)}")  # fmt: skip
            self.last_line = time.monotonic()

    def _epoch(self, event: Epoch) -> None:
        train, test = event.metrics["train"], event.metrics.get("test")
        width = len(str(self.epochs))
        place = event.job.run.path
        what = f"{place.parent.name} {place.name.partition('-')[0]}" if self.name_lanes else self.what
        cells = [f"{what} epoch {event.epoch:{width}d}/{self.epochs}", f"loss {train['loss']:.3f}"]
        if "top1" in train:
            cells.append(f"train {train['top1']:6.2f} %")
        if test is not None:
            cells.append(f"[bold]test {test['top1']:6.2f} %[/] best {event.job.score.top1_best:.2f}")
        if "val" in event.metrics:
            cells.append(f"val {event.metrics['val']['top1']:.2f} %")
        cells.append(f"{train['images_per_second']:,.0f} images/s")
        left = self.time_left(event.epoch)
        if left and event.epoch < self.epochs:
            cells.append(left)
        say("  ".join(cells))
        self.last_line = time.monotonic()


class SweepView:
    """A sweep on the screen: a bar for everything and one for each process, a line for each run that ends."""

    def __init__(self, runs: int, places: dict[str, str]):
        self.runs, self.places = runs, places
        self.over: set[str] = set()
        self.ended, self.failed, self.begun, self.last_line = 0, 0, time.monotonic(), time.monotonic()
        self.positions: dict[int, tuple[float, int, int]] = {}  # slot -> (epoch, epochs, lanes)
        self.tasks: dict[int, TaskID] = {}
        self.progress: Progress | None = None

    def __enter__(self) -> SweepView:
        if out.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
            self.progress = Progress(*columns, console=out, transient=True)
            self.total = self.progress.add_task("all runs", total=self.runs, text="")
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def show(self, slot: Any, task: Any, report: Any) -> None:
        """One report of a process."""
        from kdrun.sweeps.worker import Advanced, Ended

        if isinstance(report, Advanced):
            self._advance(slot.number, task, report)
        elif isinstance(report, Ended):
            self._end(slot.number, task, report)
        else:
            self.positions.pop(slot.number, None)
            if self.progress is not None and slot.number in self.tasks:
                self.progress.update(self.tasks[slot.number], completed=0, text="", description="idle")

    def _advance(self, number: int, task: Any, report: Any) -> None:
        lanes = sum(run not in self.over for run in report.runs)
        # A preparation, or a teacher that these lanes still have to train, is no part of any run's epochs.
        counted = lanes if report.what == "student" else 0
        self.positions[number] = (report.position, report.epochs, counted)
        text = f"epoch {report.position:.1f}/{report.epochs} · {report.images_per_second:,.0f} images/s"
        if counted > 1:
            text += f" × {counted} lanes"
        if self.progress is not None:
            if number not in self.tasks:
                self.tasks[number] = self.progress.add_task("", total=1, text="")
            self.progress.update(self.tasks[number], description=f"  {task.label[:48]}", completed=report.position,
                                 total=report.epochs, text=text)  # fmt: skip
            self.progress.update(self.total, completed=self._done(), text=self._summary())
        elif time.monotonic() - self.last_line > 60:
            self.last_line = time.monotonic()
            note(f"{task.label}: {text}; {self._summary()}")

    def _done(self) -> float:
        """Runs, counting the trained part of those under way."""
        return self.ended + sum(lanes * epoch / epochs for epoch, epochs, lanes in self.positions.values())

    def _summary(self) -> str:
        done, spent = self._done(), time.monotonic() - self.begun
        left = f", about {duration(spent / done * (self.runs - done))} left" if done > 0.02 * self.runs else ""
        return f"{self.ended}/{self.runs} runs" + (f", {self.failed} failed" if self.failed else "") + left

    def _end(self, number: int, task: Any, report: Any) -> None:
        place = escape(str(self.places.get(report.run, report.run)))
        if task.kind == "teacher":
            say(f"[bold red]failed[/]  teacher of {place}: {escape(report.reason)}")
            return
        if report.elsewhere:
            note(f"elsewhere  {place}: {report.reason}")
            return
        self.ended += 1
        self.over.add(report.run)
        self.last_line = time.monotonic()
        if number in self.positions:
            epoch, epochs, lanes = self.positions[number]
            self.positions[number] = (epoch, epochs, max(lanes - 1, 0))
        if report.result is None:
            self.failed += 1
            say(f"[bold red]failed[/]  {place}: {escape(report.reason)}  [dim]{self._summary()}[/]")
        else:
            teacher = report.result["teacher_top1"]
            beside = f" (teacher {teacher:.2f} %)" if teacher is not None else ""
            top1 = report.result["top1_last"]
            say(f"[bold green]done[/]  {place}: [bold]{top1:.2f} %[/]{beside}  [dim]{self._summary()}[/]")


def run_facts(facts: dict[str, Any]) -> None:
    """name: value lines, aligned."""
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        say(f"[bold]{name:<{width}}[/]  {escape(str(value))}")
