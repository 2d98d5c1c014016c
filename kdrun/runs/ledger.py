"""What a sweep consists of and where each of its cells stands: outputs/sweeps/<name>/cells.json. No torch here.

The ledger only says which runs belong to which place of which table. Whether a run is done is said by its directory.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdrun.config.groups import choices
from kdrun.errors import CheckpointError, ConfigError, suggest
from kdrun.files import read_json, write_json
from kdrun.runs.directory import RunDirectory

# Where things are and how runs are started, watched and called: settings that change no run's numbers.
NO_NUMBERS = (
    "output_root",
    "dataset.root",
    "dataset.workers",
    "save_every_minutes",
    "logger",
    "name",
    "sweep",
    "launcher",
    "hydra",
)
STATES = ("done", "running", "failed", "unfinished", "missing")


def changes_numbers(key: str) -> bool:
    """Whether a setting (launcher.processes, hydra/launcher, dataset.root …) is part of what a run is."""
    key = key.lstrip("+~")
    return not {key, re.split("[./]", key)[0]} & set(NO_NUMBERS)


@dataclass
class TableShape:
    """value: a key of result.json; baseline: the row of independent students, which deltas are taken to; against: the
    row that paired tests compare with; teacher_row: the label under which the teachers' own accuracy is shown;
    benchmark: whose published figures stand beside ours; testsets: derived sets that `kdrun bias` measures."""

    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    value: str = "top1_last"
    baseline: str | None = None
    against: str | None = None
    teacher_row: str | None = None
    benchmark: str | None = None
    testsets: list[str] = field(default_factory=list)


@dataclass
class Cell:
    """One run's place in a table. run: its directory relative to the output root, or None where it cannot be made, for
    the `reason`. Several cells may share one run. published: whether a published figure may stand beside it.
    own_teacher: its teacher learned along with it, and is nobody else's."""

    row: str
    column: str
    seed: int
    overrides: list[str]
    run: str | None = None
    dataset: str = ""
    teacher: str | None = None
    student: str = ""
    method: str = ""
    benchmark: str | None = None
    published: bool = True
    own_teacher: bool = False
    reason: str = ""


@dataclass
class Ledger:
    """A sweep: its table's shape and its cells, in the table's order."""

    name: str
    title: str
    command: str
    shape: TableShape
    cells: list[Cell]
    schema: int = 1


def ledger_path(root: Path, name: str) -> Path:
    return root / "sweeps" / name / "cells.json"


def write_ledger(root: Path, ledger: Ledger) -> Path:
    place = ledger_path(root, ledger.name)
    write_json(place, dataclasses.asdict(ledger))
    return place


def known_ledgers(root: Path) -> list[str]:
    return sorted(path.parent.name for path in (root / "sweeps").glob("*/cells.json"))


def read_ledger(root: Path, name: str) -> Ledger:
    """Read the ledger of a sweep. Raise ConfigError where there is none of that name, CheckpointError where it is
    damaged."""
    place = ledger_path(root, name)
    if not place.is_file():
        trainable = choices("sweep")
        if name in trainable:
            raise ConfigError(f"{name} is not begun in {root}/sweeps: kdrun train -m sweep={name} trains it.")
        known = known_ledgers(root)
        there = f"There are: {', '.join(known)}." if known else f"{root}/sweeps holds none yet."
        raise ConfigError(f"{name}: no such sweep.{suggest(name, [*known, *trainable])} {there}")
    content = read_json(place)
    try:
        return Ledger(
            **{**content, "shape": TableShape(**content["shape"]), "cells": [Cell(**cell) for cell in content["cells"]]}
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); run the sweep's command again.") from error


def state_of(cell: Cell, root: Path) -> tuple[str, str]:
    """(one of STATES, the reason where it failed). A run is running while some process holds its lock."""
    if cell.run is None:
        return "failed", cell.reason
    run = RunDirectory(root / cell.run)
    if run.finished:
        return "done", ""
    if not run.path.is_dir():
        return "missing", ""
    if is_locked(run.path):
        return "running", ""
    if run.failed_path.is_file():
        return "failed", run.failure()
    return ("unfinished", "") if run.state_path.is_file() else ("missing", "")


def is_locked(run: Path) -> bool:
    """Whether another process is at a run. Asked only where an owner has signed, who has left without a word if the
    lock is free; for the moment of the question a starting run waits."""
    if not (run / ".owner").is_file():
        return False
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that is only to be read
        return False
    lock.release()
    return False


def result_of(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The finished run's result.json; None where there is none. Raises CheckpointError where it is damaged."""
    if cell.run is None:
        return None
    run = RunDirectory(root / cell.run)
    return run.result() if run.finished else None
