"""Terminal output: lines, tables and questions. No colour under NO_COLOR."""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdrun.display import duration, legible, plural, size
from kdrun.errors import printable
from kdrun.runs.directory import short_path
from kdrun.runs.plan import Plan, code_notes, image_notes


class Terminal(Console):
    """Console that shows control characters in names from files instead of sending them to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def on_broken_pipe(self) -> None:
        """Print nothing more, and go on: the reader, as in `kdrun table … | head`, has seen enough, but files that were
        asked for are still to be written."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


UNFOLDED = 10_000  # columns of a pipe or log file, which have no width: grep would miss a folded line

out = Terminal(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else UNFOLDED)


SHOWN = 20  # unreadable files listed by name
LONGEST_NAME = 30  # characters of a name up to which a table never folds it
NARROWEST = 10  # characters of a column of text


def say(line: str) -> None:
    """Print a line in rich markup (the caller must escape values). A terminal breaks it between words but never
    within a path; a pipe gets it whole."""
    whole = out.render_str(line)
    for part in whole.split("\n", allow_blank=True):
        out.print(between_words(part, out.width) if out.is_terminal else part, soft_wrap=True)


def between_words(line: Text, width: int) -> Text:
    """Return a line folded between words; a word longer than `width` stays whole, so that it can be copied."""
    pieces = textwrap.wrap(
        line.plain, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=False, expand_tabs=False
    )
    first, *others = line.divide(list(itertools.accumulate(map(len, pieces))))[: len(pieces)] or [line]
    folded = [first, *(piece[1:] if piece.plain.startswith(" ") else piece for piece in others)]
    for piece in folded:
        piece.rstrip()
    return Text("\n").join(folded)


def note(line: str) -> None:
    say(f"[dim]{escape(line)}[/]")


def fact(name: str, line: str) -> None:
    """Print a line that begins with the name of its subject."""
    say(f"[bold]{escape(name)}[/] {escape(line)}")


def to_run(what: str, words: str) -> None:
    """Print a command to run after a few words. It is never folded: half a command, copied, would run as one."""
    out.print(Text.assemble((f"{what} ", "dim"), printable(words)), soft_wrap=True)


def confirm(question: str) -> bool:
    """Ask a yes/no question on the terminal; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def track(steps: Iterator[int], total: int, label: str) -> Iterator[int]:
    """Yield `steps` with a progress bar and the time left; print one plain line if there is no terminal."""
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
    """Print a plain table. Columns of numbers are right-aligned."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    least = 0  # columns that the table needs even when folded
    for position, column in enumerate(columns):
        numeric = all(row[position][:1] in "0123456789-+.–" or not row[position] for row in rows) if rows else False
        figures = numeric and position > 0
        # Numbers, short names and leading paths stay whole: a folded path can be neither copied nor searched for.
        # If space is short, columns of text fold between words.
        named = all(" " not in row[position] for row in rows)
        name = named and (position == 0 or all(len(row[position]) <= LONGEST_NAME for row in rows))
        made.add_column(column, justify="right" if figures else "left", overflow="fold", no_wrap=figures or name)
        longest = max(len(text) for text in (column, *(row[position] for row in rows)))
        least += (longest if figures or name else min(longest, NARROWEST)) + 2
    for row in rows:
        made.add_row(*(escape(cell) for cell in row))
    width = out.width
    out.width = max(width, least)
    try:
        if out.is_terminal:
            out.print(made)
            return
        with out.capture() as lines:
            out.print(made)
    finally:
        out.width = width
    out.out("\n".join(line.rstrip() for line in lines.get().splitlines()), highlight=False)


def unreadable(found: Sequence[tuple[Path, str]], readable: int, so: str = "") -> None:
    """List the images that could not be read, and count the readable ones. so: what happens to them, or what to do;
    by default that they are left out."""
    for path, reason in found[:SHOWN]:
        say(f"[bold red]unreadable[/]  {escape(legible(path))}: {escape(reason)}")
    if found:
        more = f" (the first {SHOWN} are listed)" if len(found) > SHOWN else ""
        then = f"; {so}" if so else f" and {'is' if len(found) == 1 else 'are'} left out"
        count = f"{len(found):,} of {readable + len(found):,}"
        fact(count, f"images could not be read{more}{then}.")


def announce(plan: Plan) -> None:
    """Print the run that is about to start, and its directory."""
    config = plan.config
    pair = f"{plan.teacher_name} → {config.student.name}" if plan.teacher_name else config.student.name
    say(
        f"[bold]{plan.method.name}[/]  {pair}  {config.dataset.name}  seed {config.seed}  "
        f"{plural(config.epochs, 'epoch')}  [dim]{short_path(plan.run.path)}[/]"
    )
    for line in (*code_notes([plan]), *image_notes([plan])):
        note(line)


def show_result(how: str, plan: Plan, result: dict[str, Any]) -> None:
    """Print a run's result, and its directory."""
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
