"""Output interface of the engines: the events and lines that an engine may show, and a plain-text display. No rich,
no torch."""

from __future__ import annotations

import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from kdrun.errors import printable

Track = Callable[[Iterator[int], int, str], Iterator[int]]  # (steps, total, label) -> the same steps


@dataclass(frozen=True)
class Step:
    """End of a training step. step counts from 1."""

    epoch: int
    step: int
    steps: int
    images_per_second: float


@dataclass(frozen=True)
class EpochEnd:
    """End of one run's epoch, after saving. epoch counts from 1; metrics: by split; best: best top-1 on the test set
    so far."""

    run: Path
    epoch: int
    metrics: dict[str, dict[str, float]]
    best: float


Show = Callable[[Step | EpochEnd], None]


class Display(Protocol):
    """Output of an engine. Lines are plain text; each display decides how to render them."""

    def note(self, line: str) -> None:
        """Print a line of minor importance."""
        ...

    def fact(self, name: str, line: str) -> None:
        """Print a line that begins with the name of its subject."""
        ...

    def track(self, steps: Iterator[int], total: int, label: str) -> Iterator[int]:
        """Yield `steps` unchanged and show how many of `total` are done."""
        ...

    def training(self, what: str, epochs: int, first: float) -> AbstractContextManager[Show]:
        """Show the training of `what` from epoch `first` on."""
        ...


def fitted(text: str, width: int) -> str:
    """Return help text folded between words to `width` columns: paragraphs as a whole, tables within their last
    column."""
    lines: list[str] = []
    open_paragraph = False
    for line in text.splitlines():
        plain = bool(line) and not line.startswith((" ", "usage:")) and "  " not in line
        if plain and open_paragraph:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        open_paragraph = plain
    return "\n".join(folded for line in lines for folded in _folded(line, width))


def _folded(line: str, width: int) -> list[str]:
    usage = re.match(r"(?:usage:| {6}) kdrun \S+ ", line)
    table = re.match(r" *(?:\S+ )*?\S+ {2,}", line)
    head = len((usage or table or [""])[0])
    indent = head if 0 < head < width // 2 else len(line) - len(line.lstrip())
    folded = textwrap.wrap(line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return folded or [""]


def untracked(steps: Iterator[int], total: int, label: str) -> Iterator[int]:
    """Yield `steps` unchanged and show nothing."""
    yield from steps


def legible(name: str | os.PathLike[str]) -> str:
    """Return a file name as text for the screen and for tables.

    Bytes that are not UTF-8 are shown as Latin-1; control characters, which a terminal would obey, as escapes.
    """
    text = os.fspath(name)
    if text.isprintable():
        return text
    decoded = "".join(chr(ord(sign) - 0xDC00) if "\udc80" <= sign <= "\udcff" else sign for sign in text)
    return printable(decoded).replace("\n", "\\x0a").replace("\t", "\\x09")


def duration(seconds: float) -> str:
    """Return a duration as 3 s, 4 min 05 s or 2 h 10 min."""
    seconds = max(round(seconds), 0)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def count(number: float) -> str:
    """Return a large number in short form: 278,324 as 0.28M."""
    if number >= 1e9:
        return f"{number / 1e9:.2f}G"
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number:,.0f}"


def plural(number: int, noun: str, many: str = "") -> str:
    """Return a count with its noun: 1 run, 2 runs, 1,000 runs. many: the plural of a noun that does not just take an
    s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def size(number: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


class TrainingLines:
    """Training progress as plain lines: one after each epoch, and one per minute within long epochs.

    name_runs: begin each line with the run's method and seed, for several runs that train together.
    """

    def __init__(self, what: str, epochs: int, first: float, write: Callable[[str], None], name_runs: bool = False):
        self.what, self.epochs, self.write, self.name_runs = what, epochs, write, name_runs
        self.begun, self.first = time.monotonic(), first
        self.last_line = 0.0

    def show(self, event: Step | EpochEnd) -> None:
        if isinstance(event, Step):
            self.step(event)
        else:
            self.write(self.epoch_line(event))
            self.last_line = time.monotonic()

    def step(self, event: Step) -> None:
        if time.monotonic() - self.last_line <= 60:
            return
        if self.last_line:
            self.write(
                f"{self.what} epoch {event.epoch}/{self.epochs} step {event.step}/{event.steps} "
                f"{event.images_per_second:,.0f} images/s {self.time_left(event)}"
            )
        self.last_line = time.monotonic()

    def epoch_line(self, event: EpochEnd, strong: Callable[[str], str] = str, narrow: bool = False) -> str:
        """Return an epoch's line. strong: highlights the test accuracy; narrow: leaves out what does not fit into 80
        columns."""
        train, test = event.metrics["train"], event.metrics.get("test")
        width = len(str(self.epochs))
        what = f"{event.run.parent.name} {event.run.name.partition('-')[0]}" if self.name_runs else self.what
        cells = [f"{what} epoch {event.epoch:{width}d}/{self.epochs}", f"loss {train['loss']:.3f}"]
        if "top1" in train and not narrow:
            cells.append(f"train {train['top1']:6.2f} %")
        if test is not None:
            shown = f"test {test['top1']:6.2f} %"
            cells.append(f"{strong(shown)} best {event.best:.2f}")
        if "val" in event.metrics:
            cells.append(f"val {event.metrics['val']['top1']:.2f} %")
        if not narrow:
            cells.append(f"{train['images_per_second']:,.0f} images/s")
        if event.epoch < self.epochs and (left := self.time_left(event)):
            cells.append(left)
        return "  ".join(cells)

    def time_left(self, event: Step | EpochEnd) -> str:
        """Return the estimated time left, from the pace since this process started."""
        position = event.epoch - 1 + event.step / event.steps if isinstance(event, Step) else event.epoch
        if position <= self.first:
            return ""
        pace = (time.monotonic() - self.begun) / (position - self.first)
        return f"{duration(pace * (self.epochs - position))} left"


class PlainDisplay:
    """Plain lines, written to a file or discarded."""

    def __init__(self, file: TextIO | None = None, name_runs: bool = False):
        self.file, self.name_runs = file, name_runs

    def note(self, line: str) -> None:
        if self.file is not None:
            print(line, file=self.file, flush=True)

    def fact(self, name: str, line: str) -> None:
        self.note(f"{name} {line}")

    def track(self, steps: Iterator[int], total: int, label: str) -> Iterator[int]:
        self.note(f"{label} …")
        yield from steps

    @contextmanager
    def training(self, what: str, epochs: int, first: float) -> Iterator[Show]:
        yield TrainingLines(what, epochs, first, self.note, self.name_runs and what == "student").show
