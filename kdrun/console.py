"""Everything that is printed. Progress bars on a terminal, plain lines elsewhere, no colour under NO_COLOR."""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdrun.display import EpochEnd, Show, Step, TrainingLines, duration, legible, size
from kdrun.errors import printable
from kdrun.runs.directory import short_path
from kdrun.runs.plan import Plan, code_notes, image_notes
from kdrun.sweeps.messages import Advanced, Ended, Message, ShowMessage, Task


class Terminal(Console):
    """Shows control characters of names out of files instead of sending them."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


UNFOLDED = 10_000  # columns of a pipe or a log file, which have no width: a folded line is lost to grep

out = Terminal(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNFOLDED)


SHOWN = 20  # unreadable files that are named


def say(line: str) -> None:
    """A line in rich markup, of which values must be escaped by the caller: on a terminal it breaks between words and
    never within a path, a pipe gets it whole."""
    whole = out.render_str(line)
    for part in whole.split("\n", allow_blank=True):
        out.print(between_words(part, out.width) if out.is_terminal else part, soft_wrap=True)


def between_words(line: Text, width: int) -> Text:
    """Return a line folded between words; one that is longer than `width` stays whole, so that it can be copied."""
    pieces = textwrap.wrap(
        line.plain, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=False, expand_tabs=False
    )
    folded = line.divide(list(itertools.accumulate(map(len, pieces))))
    for piece in folded:
        piece.rstrip()
    return Text("\n").join(folded[: len(pieces)])


def note(line: str) -> None:
    say(f"[dim]{escape(line)}[/]")


def fact(name: str, line: str) -> None:
    """A line that begins with the name of what it is about."""
    say(f"[bold]{escape(name)}[/] {escape(line)}")


def confirm(question: str) -> bool:
    """Ask on the terminal; no without one."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def track(steps: Iterator[int], total: int, label: str) -> Iterator[int]:
    """A progress bar over `steps` with time left; one plain line where there is no terminal."""
    if not out.is_terminal:
        note(f"{label} …")
        yield from steps
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(escape(printable(label)), total=total)
        for step in steps:
            yield step
            progress.advance(task)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A plain table; columns whose cells are numbers align right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        numeric = all(row[position][:1] in "0123456789-+.–" or not row[position] for row in rows) if rows else False
        made.add_column(column, justify="right" if numeric and position else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    if out.is_terminal:
        out.print(made)
        return
    with out.capture() as lines:
        out.print(made)
    out.out("\n".join(line.rstrip() for line in lines.get().splitlines()), highlight=False)


def unreadable(found: Sequence[tuple[Path, str]], readable: int, so: str = "") -> None:
    """Name the images that could not be read, and say beside how many that could. so: what becomes of them, or is to be
    done; else that they are left out."""
    for path, reason in found[:SHOWN]:
        say(f"[bold red]unreadable[/]  {escape(legible(path))}: {escape(reason)}")
    if found:
        more = f" ({len(found) - SHOWN:,} more than are shown)" if len(found) > SHOWN else ""
        then = f"; {so}" if so else f" and {'is' if len(found) == 1 else 'are'} left out"
        count = f"{len(found):,} of {readable + len(found):,}"
        fact(count, f"images could not be read{more}{then}.")


class TrainingView(TrainingLines):
    """One training on the screen: a bar within the epoch, a line after each."""

    def __init__(self, what: str, epochs: int, first: float, name_runs: bool = False):
        super().__init__(what, epochs, first, note, name_runs)
        self.progress: Progress | None = None
        self.task: TaskID | None = None

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

    def show(self, event: Step | EpochEnd) -> None:
        if isinstance(event, EpochEnd):
            say(self.epoch_line(event, lambda text: f"[bold]{text}[/]", narrow=out.width < 100))
            self.last_line = time.monotonic()
        elif self.progress is None or self.task is None:
            self.step(event)
        else:
            self.progress.update(
                self.task,
                description=f"{self.what} epoch {event.epoch}/{self.epochs}",
                completed=event.step,
                total=event.steps,
                speed=f"{event.images_per_second:,.0f} images/s",
                left=self.time_left(event),
            )


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

    def show(self, slot: int, task: Task, report: Message) -> None:
        """One report of a process."""
        if isinstance(report, Advanced):
            self._advance(slot, task, report)
        elif isinstance(report, Ended):
            self._end(slot, task, report)
        else:
            self.positions.pop(slot, None)
            if self.progress is not None and slot in self.tasks:
                self.progress.update(self.tasks[slot], completed=0, text="", description="idle")

    def _advance(self, number: int, task: Task, report: Advanced) -> None:
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
            self.progress.update(
                self.tasks[number],
                description=f"  {escape(printable(task.label[:48]))}",
                completed=report.position,
                total=report.epochs,
                text=text,
            )
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

    def _end(self, number: int, task: Task, report: Ended) -> None:
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


class RichDisplay:
    """The terminal, as engines see it. name_runs: as of TrainingLines."""

    def __init__(self, name_runs: bool = False):
        self.name_runs = name_runs

    def note(self, line: str) -> None:
        note(line)

    def fact(self, name: str, line: str) -> None:
        fact(name, line)

    def track(self, steps: Iterator[int], total: int, label: str) -> Iterator[int]:
        return track(steps, total, label)

    @contextmanager
    def training(self, what: str, epochs: int, first: float) -> Iterator[Show]:
        with TrainingView(what, epochs, first, self.name_runs and what == "student") as view:
            yield view.show

    @contextmanager
    def sweep(self, runs: int, places: dict[str, str]) -> Iterator[ShowMessage]:
        with SweepView(runs, places) as view:
            yield view.show


def announce(plan: Plan) -> None:
    """Print what is about to run, and where."""
    config = plan.config
    pair = f"{plan.teacher_name} → {config.student.name}" if plan.teacher_name else config.student.name
    say(
        f"[bold]{plan.method.name}[/]  {pair}  {config.dataset.name}  seed {config.seed}  {config.epochs} epochs  "
        f"[dim]{short_path(plan.run.path)}[/]"
    )
    for line in (*code_notes([plan]), *image_notes([plan])):
        note(line)


def show_result(how: str, plan: Plan, result: dict[str, Any]) -> None:
    """Print a run's result, and where it lies."""
    teacher = f", teacher {result['teacher_top1']:.2f} %" if result["teacher_top1"] is not None else ""
    selected = result["top1_val_selected"]
    val = f", validation-selected {selected:.2f} %" if selected is not None else ""
    best = f"best on test {result['top1_best']:.2f} % at epoch {result['top1_best_epoch']}{val}{teacher}"
    arithmetic = result["precision"] + (" compiled" if result["compile"] else "")
    say(
        f"[bold green]{how}[/]  {plan.method.name}  {result['student']}: [bold]{result['top1_last']:.2f} %[/] top-1 at "
        f"the last epoch ({best}), {result['images_per_second']:,.0f} images/s, {arithmetic}, "
        f"{duration(result['train_seconds'])} of training, peak memory {size(result['peak_memory'])}"
    )
    say(f"      {short_path(plan.run.path)}/  (result.json, metrics.csv, curves.png, student.safetensors)")
