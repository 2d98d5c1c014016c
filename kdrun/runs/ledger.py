"""What a sweep consists of and where each of its cells stands: outputs/sweeps/<name>/cells.json. No torch here.

The ledger only says which runs belong to which place of which table. Whether a run is done is said by its directory.
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

# Where things are and how runs are started, watched and called: settings that change no run's numbers.
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
    """Whether a setting (launcher.processes, hydra/launcher, dataset.root …) is part of what a run is."""
    key = key.lstrip("+~")
    return not {key, re.split("[./]", key)[0]} & set(NO_NUMBERS)


@dataclass
class TableShape:
    """value: a key of result.json; baseline: the row of independent students, which deltas are taken to; against: the
    row that tests compare with; teacher_row: the label under which the teachers' own accuracy is shown; benchmark:
    whose published figures stand beside ours; margin: points within which these count as reproduced; testsets:
    derived sets that `kdrun bias` measures."""

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

    @property
    def place(self) -> str:
        """The cell's name on the screen."""
        return ", ".join(part for part in (self.row, self.column, f"seed {self.seed}") if part)


@dataclass
class Ledger:
    """A sweep: its table's shape and its cells, in the table's order."""

    name: str
    title: str
    command: str
    shape: TableShape
    cells: list[Cell]
    schema: int = 1


def check_name(name: str) -> str:
    """A sweep's name, which is a folder's. Raises ConfigError for one that is none, or leads elsewhere."""
    if not name.strip(". ") or any(sign in "/\\" or not sign.isprintable() for sign in name):
        raise ConfigError(f"name={name}: it becomes a folder's: give one without slashes, such as first.")
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
        cells = [Cell(**cell) for cell in content["cells"]]
        ledger = Ledger(**{**content, "name": name, "shape": TableShape(**content["shape"]), "cells": cells})
        check_types(ledger)
        return ledger
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place} is damaged ({error}); run the sweep's command again.") from error


def check_types(ledger: Ledger) -> None:
    """Raise ValueError for a value of another type than its field's, and for a run that is not below the output
    folder."""
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
    """(one of STATES, the reason where it failed). A run is running while some process holds its lock."""
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
    """Whether another process is at a run. Asked only where an owner has signed, who has left without a word if the
    lock is free; for the moment of the question a starting run waits."""
    if not (run / ".owner").is_file() or (run / ".lock").is_symlink():  # opening a lock empties what it links to
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
