"""kdrun status: show the progress of sweeps, failures with their reasons, and the time left."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import output_root_setting, parse
from kdrun.config.options import setting
from kdrun.display import duration
from kdrun.errors import CheckpointError
from kdrun.reporting.progress import Progress, in_training, progress_of
from kdrun.runs.directory import outputs_folder
from kdrun.runs.ledger import STATES, Ledger, known_ledgers, read_ledger

HELP = """
usage: kdrun status [NAME …] [watch=true] [output_root=FOLDER]

For all sweeps, or those given by name: how many cells are done, running, unfinished (stopped half-way), failed and
missing (not started), the reasons of failures, and the time left. Running the sweep's own command again skips what is
done, resumes what is unfinished and retries what failed. For runs in training it shows epoch, loss and accuracy.
watch=true refreshes the display every few seconds, until nothing is left to do or Ctrl-C.
"""


EVERY = 5.0  # seconds


@dataclass
class Options:
    watch: bool = setting(False, help="refresh every few seconds")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("status", words, Options)
    root = outputs_folder(parsed.options.output_root)
    if not parsed.options.watch:
        report(parsed.names, root)
        return 0
    try:
        while True:
            if console.out.is_terminal:
                console.out.clear()
            found = report(parsed.names, root)
            if found and not any(left_to_do(progress) for _, progress in found):
                return 0
            time.sleep(EVERY)
    except KeyboardInterrupt:
        return 0


def left_to_do(progress: Progress) -> int:
    return sum(progress.counts[state] for state in ("running", "unfinished", "missing"))


def report(names: list[str], root: Path) -> list[tuple[Ledger, Progress]]:
    """Print the progress of sweeps, and return it."""
    known = names or known_ledgers(root)
    if not known:
        console.note(f"{root}/sweeps has no sweep yet: kdrun train -m method=none,kd seed=0,1,2 starts one.")
        return []
    found: list[tuple[Ledger, Progress]] = []
    damaged: list[str] = []
    for name in known:
        try:
            ledger = read_ledger(root, name)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        found.append((ledger, progress_of(ledger, root)))
    if found:
        show(found, root)
    for line in damaged:
        console.note(f"skipped: {line}")
    return found


def show(found: list[tuple[Ledger, Progress]], root: Path) -> None:
    rows = []
    for ledger, progress in found:
        counts = [f"{progress.counts[state]:,}" if progress.counts[state] else "–" for state in STATES]
        rows.append([ledger.name, f"{len(ledger.cells):,}", *counts, time_words(progress)])
    console.table("", ["sweep", "cells", *STATES, "time left"], rows)
    training = [row for ledger, progress in found if progress.running for row in in_training(ledger, root)]
    if training:
        console.say("")
        console.table("", ["in training", "epoch", "loss", "test, %", "best, %"], training)
    for ledger, progress in found:
        name = f"{ledger.name}: " if len(found) > 1 else ""
        for cell, reason in progress.failed:
            console.note(f"{name}failed  {place(cell.row, cell.column)}, seed {cell.seed}: {reason}")
        if progress.seconds != 0:
            console.note(f"{name}time left: {progress.basis}.")
        if progress.counts["done"] < len(ledger.cells) and ledger.command and not progress.running:
            console.to_run(f"{name}to continue:", ledger.command)
            if part := [word for word in shlex.split(ledger.command) if word.startswith(("row=", "column=", "seed="))]:
                console.note(f"{name}this command trains only {' '.join(part)}; without, it trains the whole sweep.")


def place(row: str, column: str) -> str:
    return f"{row}, {column}" if column else row


def time_words(progress: Progress) -> str:
    """Return the time left, as in "about 2 h 10 min"; an empty string if everything is done."""
    if progress.seconds is None:
        return "unknown"
    return f"about {duration(progress.seconds)}" if progress.seconds else ""
