"""Runs or stored teachers of an output folder as rows that can be filtered and sorted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.config.settings import method_settings, settings, unknown
from kdrun.errors import CheckpointError, ConfigError
from kdrun.reporting.labels import short_labels
from kdrun.runs.differing import plain, settings_of
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import is_locked
from kdrun.runs.marks import Marks, read_marks
from kdrun.runs.result import RESULT_KEYS

STATE_WIDTH = 12  # characters, for a state of several words
STATES = ("done", "running", "failed", "unfinished")
# sort=… -> (sort key, True if the largest comes first)
ORDERS: dict[str, tuple[Callable[[ListedRun], Any], bool]] = {
    "path": (lambda run: run.path, False),
    "top1": (lambda run: run.result.get("top1_last"), True),
    "finished": (lambda run: run.result.get("finished_at"), True),
    "seed": (lambda run: run.result.get("seed"), False),
    "params": (lambda run: run.result.get("params"), False),
    "time": (lambda run: run.result.get("train_seconds"), True),
}


@dataclass
class ListedRun:
    """Directory in the list. state: one of STATES; said: its description; result: of result.json, empty if
    unfinished."""

    path: Path
    state: str
    said: str
    result: dict[str, Any] = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)


def listed_runs(root: Path, teachers: bool) -> list[ListedRun]:
    """Return all runs, or all stored teachers, sorted by path."""
    folders = sorted(root.glob("teachers/*/*/*" if teachers else "runs/*/*/*/*"))
    return [listed(RunDirectory(folder, "teacher" if teachers else "student")) for folder in folders]


def listed(run: RunDirectory) -> ListedRun:
    found = ListedRun(run.path, "unfinished", "unfinished", marks=read_marks(run.path))
    if run.finished:
        damage = run.damage()
        found.state, found.said = "done", f"done, {damage}" if damage else "done"
        try:
            found.result = run.result()
        except CheckpointError as error:
            found.said = f"damaged: {error}"
    elif is_locked(run.path):
        found.state = found.said = "running"
    elif run.failed_path.is_file():
        found.state, found.said = "failed", f"failed: {run.failure()}"
    elif not run.begun:
        found.said = "never started (kdrun clean)"
    return found


def chosen(runs: list[ListedRun], filters: Mapping[str, str], state: str | None, tag: str | None) -> list[ListedRun]:
    """Return the runs with the given settings (several values separated by commas), state and tags. Raises
    ConfigError for an unknown setting."""
    known = {*settings(), *method_settings(), *RESULT_KEYS}
    for key in filters:
        if key not in known:
            raise ConfigError(unknown(key))
    kept = [run for run in runs if state in (None, run.state) and (tag is None or tag in run.marks.tags)]
    return [run for run in kept if all(matches(run, key, value) for key, value in filters.items())] if filters else kept


def matches(run: ListedRun, key: str, value: str) -> bool:
    own = settings_of(run.path)
    group = {"method": "method._name_"}.get(key, f"{key}.name" if key in ("dataset", "teacher", "student") else key)
    there = run.result[key] if run.result.get(key) is not None else own.get(group)
    if key == "teacher" and run.result and run.result.get("teacher") is None:
        there = None
    return any(same(there, word) for word in value.split(","))


def same(value: Any, word: str) -> bool:
    """Return True if a value equals what was typed: 0.10 is 0.1."""
    if value is None:
        return word == "null"
    try:
        return float(value) == float(word)
    except (TypeError, ValueError):
        return str(plain(value)).lower() == word.lower()


def in_order(runs: list[ListedRun], order: str) -> list[ListedRun]:
    """Return the runs ordered by `order`; those without such a value come last."""
    key, largest = ORDERS[order]
    having = [run for run in runs if key(run) is not None]
    return [*sorted(having, key=key, reverse=largest), *(run for run in runs if key(run) is None)]


def table_of_runs(
    runs: list[ListedRun], root: Path, name: str, width: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """Return header, rows and notes; marks have a column if there are any. If `width` is too small, lines are shortened
    instead of broken: times are left out, states are single words explained in the notes, and paths are relative to the
    common folder."""
    heads, rows = every_column(runs, root, name)
    longest = sum(max(map(len, (head, *(row[place] for row in rows)))) + 2 for place, head in enumerate(heads[:3]))
    if longest + STATE_WIDTH <= width:
        return heads, rows, []
    folder, paths = short_labels([row[0] for row in rows])
    notes = [f"paths are relative to {folder}/"] if folder else []
    notes += [f"{path}: {run.said}" for path, run in zip(paths, runs, strict=True) if run.said != run.state]
    short = [[path, row[1], run.state, *row[4:]] for path, row, run in zip(paths, rows, runs, strict=True)]
    return [*heads[:2], *heads[3:]], short, notes


def every_column(runs: list[ListedRun], root: Path, name: str) -> tuple[list[str], list[list[str]]]:
    marked = any(run.marks != Marks() for run in runs)
    rows = []
    for run in runs:
        top1 = run.result.get("top1_last")
        finished = str(run.result.get("finished_at") or "")[:16].replace("T", " ")
        path = str(run.path.relative_to(root))
        rows.append(
            [path, "" if top1 is None else f"{top1:.2f}", finished, run.said, *([str(run.marks)] if marked else [])]
        )
    return [name, "top-1, %", "finished, UTC", "state", *(["tags, note"] if marked else [])], rows
