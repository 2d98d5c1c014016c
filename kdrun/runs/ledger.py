"""Ledger of a sweep: its cells and their runs, in outputs/sweeps/<name>/cells.json. No torch here.

The ledger only maps the cells of a table to runs. The state of a run is read from its directory.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from filelock import FileLock, Timeout

from kdrun.config.groups import choices
from kdrun.errors import CheckpointError, ConfigError, suggest
from kdrun.files import read_json, write_json
from kdrun.runs.directory import RunDirectory

# Settings of location, start, display and naming, which change no run's numbers.
NO_NUMBERS = (
    "output_root",
    "dataset.root",
    "dataset.workers",
    "save_every_minutes",
    "logger",
    "figures",
    "name",
    "sweep",
    "launcher",
    "hydra",
)
STATES = ("done", "running", "failed", "unfinished", "missing")


def changes_numbers(key: str) -> bool:
    """Return True if a setting can change a run's numbers (not launcher.processes, hydra/launcher, dataset.root …)."""
    key = key.lstrip("+~")
    return not {key, re.split("[./]", key)[0]} & set(NO_NUMBERS)


@dataclass
class TableShape:
    """Shape of a sweep's table. value: a key of result.json; baseline: the row of independent students from which
    differences are taken; against: the row that tests compare with; teacher_row: the label of the row of the
    teachers' own accuracy; benchmark: the one whose published values are shown; margin: points within which these
    count as reproduced; testsets: derived test sets that `kdrun bias` measures."""

    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    value: str = "top1_last"
    baseline: str | None = None
    against: str | None = None
    teacher_row: str | None = None
    benchmark: str | None = None
    margin: float = 0.5
    testsets: list[str] = field(default_factory=list)


@dataclass
class Cell:
    """Cell of a table (one row, one column, one seed) and its run. run: its directory relative to the output root,
    or None if it cannot run, for the given `reason`. Several cells may share a run. published: True if a published
    value may be shown next to it. own_teacher: its teacher is trained together with it and belongs to no other run."""

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

    @property
    def place(self) -> str:
        """Return the cell's name for the screen."""
        return ", ".join(part for part in (self.row, self.column, f"seed {self.seed}") if part)


@dataclass
class Ledger:
    """Ledger of a sweep: the shape of its table and its cells, in the table's order."""

    name: str
    title: str
    command: str
    shape: TableShape
    cells: list[Cell]
    schema: int = 1


def check_name(name: str) -> str:
    """Return a sweep's name. Raises ConfigError unless it can be the name of a folder."""
    if not name.strip(". ") or any(sign in "/\\" or not sign.isprintable() for sign in name):
        raise ConfigError(f"name={name}: the name of a folder is needed: give one without slashes, such as first.")
    return name


def ledger_path(root: Path, name: str) -> Path:
    check_name(name)
    return root / "sweeps" / name / "cells.json"


def write_ledger(root: Path, ledger: Ledger) -> Path:
    place = ledger_path(root, ledger.name)
    write_json(place, dataclasses.asdict(ledger))
    return place


def known_ledgers(root: Path) -> list[str]:
    names = (path.parent.name for path in (root / "sweeps").glob("*/cells.json"))
    return sorted(name for name in names if name.isprintable())


def read_ledger(root: Path, name: str) -> Ledger:
    """Read the ledger of a sweep. Raises ConfigError if there is none of that name, CheckpointError if it is
    damaged."""
    place = ledger_path(root, name)
    if not place.is_file():
        trainable = choices("sweep")
        if name in trainable:
            raise ConfigError(f"{name} has not begun in {root}/sweeps: start it with kdrun train -m sweep={name}.")
        known = known_ledgers(root)
        there = f"Available: {', '.join(known)}." if known else f"{root}/sweeps has none yet."
        raise ConfigError(f"{name}: no such sweep.{suggest(name, [*known, *trainable])} {there}")
    content = read_json(place)
    try:
        cells = [Cell(**cell) for cell in content["cells"]]
        ledger = Ledger(**{**content, "name": name, "shape": TableShape(**content["shape"]), "cells": cells})
        check_types(ledger)
        return ledger
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); run the sweep's command again.") from error


def check_types(ledger: Ledger) -> None:
    """Raise ValueError for a value of the wrong type, and for a run outside the output folder."""
    for part in (ledger, ledger.shape, *ledger.cells):
        for name, hint in hints_of(type(part)).items():
            value, kinds = getattr(part, name), get_args(hint) if type(None) in get_args(hint) else (hint,)
            if not any(
                isinstance(value, (int, float) if kind is float else get_origin(kind) or kind) for kind in kinds
            ):
                raise ValueError(f"{name} is {value!r}")
            if list[str] in kinds and not all(isinstance(item, str) for item in value):
                raise ValueError(f"{name} is {value!r}")
    for cell in ledger.cells:
        if cell.run is not None and (Path(cell.run).is_absolute() or ".." in Path(cell.run).parts or "\0" in cell.run):
            raise ValueError(f"the run {cell.run!r} is not below the output folder")


hints_of = cache(get_type_hints)


def state_of(cell: Cell, root: Path) -> tuple[str, str]:
    """Return (one of STATES, the reason if it failed). A run is running while some process holds its lock."""
    if cell.run is None:
        return "failed", cell.reason
    run = RunDirectory(root / cell.run)
    if run.finished:
        try:
            run.result()
        except CheckpointError as error:
            return "failed", str(error)
        return "done", ""
    if not run.path.is_dir():
        return "missing", ""
    if is_locked(run.path):
        return "running", ""
    if run.failed_path.is_file():
        return "failed", run.failure()
    return ("unfinished", "") if run.state_path.is_file() else ("missing", "")


def is_locked(run: Path) -> bool:
    """Return True if another process holds the run's lock. Only tried if an .owner file exists; with a free lock,
    that owner has crashed. The lock is held for an instant while testing, so a run that is just starting waits
    briefly."""
    if not (run / ".owner").is_file() or (run / ".lock").is_symlink():  # opening a lock truncates its target
        return False
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a read-only folder
        return False
    lock.release()
    return False


def result_of(cell: Cell, root: Path) -> dict[str, Any] | None:
    """Return the finished run's result.json; None if there is none. Raises CheckpointError if it is damaged."""
    if cell.run is None:
        return None
    run = RunDirectory(root / cell.run)
    return run.result() if run.finished else None
