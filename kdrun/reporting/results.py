"""Results of a ledger's runs. Damaged and foreign files are reported and skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.errors import CheckpointError, one_line
from kdrun.files import read_json
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import Cell, Ledger, state_of
from kdrun.runs.recorded import changed_since
from kdrun.runs.result import problem_of

SELECTIONS = {
    "top1_last": "top-1, %, of the last epoch",
    "top1_best": "top-1, %, of the best epoch on the test set (optimistic)",
    "top1_val_selected": "top-1, %, of the epoch chosen on the validation split",
}
NEEDED = ("seed", "dataset", "student", "method", "digest", "precision", "device", "teacher_top1", *SELECTIONS)


@dataclass
class Place:
    """Place of the table: the cells of one row and column while they are gathered. results: seed -> result.json."""

    cells: list[Cell] = field(default_factory=list)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)
    missing: int = 0
    failed: list[str] = field(default_factory=list)


def gather(ledger: Ledger, root: Path, skipped: list[str]) -> dict[tuple[str, str], Place]:
    """Return (row, column) -> its results; damaged and foreign ones are named in `skipped`."""
    places: dict[tuple[str, str], Place] = {}
    read: dict[str, dict[str, Any] | str | None] = {}
    for cell in ledger.cells:
        place = places.setdefault((cell.row, cell.column), Place())
        place.cells.append(cell)
        if cell.run is None:
            place.failed.append(f"seed {cell.seed}: {cell.reason}")
            continue
        if cell.run not in read:
            read[cell.run] = read_result(cell, root)
            if isinstance(read[cell.run], str):
                skipped.append(str(read[cell.run]))
        result = read[cell.run]
        if isinstance(result, dict):
            if cell.seed not in place.results:
                place.results[cell.seed], place.runs[cell.seed] = result, cell.run
            elif place.runs[cell.seed] != cell.run:
                skipped.append(f"{cell.run}: a second run of {cell.row}, {cell.column}, seed {cell.seed}.")
        elif result is None and (reason := failure(cell, root)):
            place.failed.append(f"seed {cell.seed}: {reason}")
        else:
            place.missing += 1
    return places


def read_result(cell: Cell, root: Path) -> dict[str, Any] | str | None:
    """Return a finished run's result, None if it is not finished, or a line with the reason why it cannot be used."""
    run = RunDirectory(root / str(cell.run))
    try:
        result = read_json(run.result_path)
    except CheckpointError as error:
        if not run.finished:
            return None
        return (
            f"{cell.run}/result.json: damaged ({one_line(error.__cause__) if error.__cause__ else 'no JSON object'})."
        )
    lacking = [key for key in NEEDED if key not in result]
    if lacking:
        return f"{cell.run}/result.json: not a result of kdrun (no {', '.join(lacking[:3])})."
    for key in SELECTIONS:
        if not isinstance(result[key], int | float) and (key != "top1_val_selected" or result[key] is not None):
            return f"{cell.run}/result.json: {key} is {result[key]!r}, not a number."
    try:
        problem = problem_of(result) or changed_since(run.result_path)
    except CheckpointError as error:
        return str(error)
    if problem:
        return f"{cell.run}/result.json: damaged ({problem})."
    belongs = run.path.name == f"s{result['seed']}-{str(result['digest'])[:8]}"
    if not belongs or result["seed"] != cell.seed:
        return f"{cell.run}/result.json: of another run (seed {result['seed']}, digest {str(result['digest'])[:8]})."
    return result


def failure(cell: Cell, root: Path) -> str:
    """Return why a run failed, or an empty string. Its lock is only tried if failed.txt exists, so that a table
    disturbs no training."""
    if not (root / str(cell.run) / "failed.txt").is_file():
        return ""
    state, reason = state_of(cell, root)
    return reason if state == "failed" else ""
