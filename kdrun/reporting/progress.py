"""Progress of a sweep, and the time left. No torch here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.display import plural
from kdrun.errors import CheckpointError
from kdrun.evaluation.stats import mean_std
from kdrun.files import read_json
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import STATES, Cell, Ledger, state_of


@dataclass(frozen=True)
class Progress:
    """Progress of a sweep. counts: state -> cells, of ledger.STATES; failed: (cell, reason); seconds: clock time
    left, None if unknown; basis: how that was estimated; running: runs in training now."""

    counts: dict[str, int]
    failed: list[tuple[Cell, str]]
    seconds: float | None
    basis: str
    running: int


def progress_of(ledger: Ledger, root: Path) -> Progress:
    """Return every cell's state, reading each run once. Failed cells are not part of the time left."""
    states: dict[str, tuple[str, str]] = {}
    for cell in ledger.cells:
        if cell.run is not None and cell.run not in states:
            states[cell.run] = state_of(cell, root)
    of_cell = [(cell, *(states[cell.run] if cell.run is not None else state_of(cell, root))) for cell in ledger.cells]
    counted = Counter(state for _, state, _ in of_cell)
    failed = [(cell, reason) for cell, state, reason in of_cell if state == "failed"]
    cells = {cell.run: cell for cell in reversed(ledger.cells) if cell.run is not None}
    running = sum(state == "running" for state, _ in states.values())
    state_of_run = {run: state for run, (state, _) in states.items()}
    seconds, basis = time_left([cells[run] for run in sorted(cells)], state_of_run, root)
    if seconds and running > 1:
        seconds /= running
        basis += f", {running} at a time as now"
    elif seconds:
        basis += ", one after another"
    return Progress({state: counted[state] for state in STATES}, failed, seconds, basis, running)


def time_left(cells: list[Cell], states: dict[str, str], root: Path) -> tuple[float | None, str]:
    """Return the seconds of training left over all runs, and the basis of the estimate; None if no run has been
    timed."""
    waiting = [cell for cell in cells if states[str(cell.run)] in ("running", "unfinished", "missing")]
    if not waiting:
        return 0.0, ""
    done = [cell for cell in cells if states[str(cell.run)] == "done"]
    timed = {str(cell.run): seconds for cell in done if (seconds := train_seconds(root / str(cell.run))) is not None}
    begun = [cell for cell in waiting if states[str(cell.run)] != "missing"]
    share = {str(cell.run): 1.0 for cell in waiting} | {
        str(cell.run): share_left(root / str(cell.run)) for cell in begun
    }
    if timed:
        nearest = averages([cell for cell in cells if str(cell.run) in timed], timed)
        left = sum(share[str(cell.run)] * nearest(cell) for cell in waiting)
        return (
            left,
            f"from the training time of {plural(len(timed), 'finished run')}, preferably of the same column and method",
        )
    paces = [seconds for cell in begun if (seconds := own_pace(root / str(cell.run))) is not None]
    mean, _ = mean_std(paces)
    if mean is None:
        return None, "no run has been timed yet"
    return mean * sum(share.values()), f"from the images/s of {plural(len(paces), 'started run')}, without evaluation"


def averages(cells: list[Cell], timed: dict[str, float]) -> Callable[[Cell], float]:
    """Return cell -> mean seconds of the most similar finished runs: of its column and method, else its column, else
    all."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        for key in ((cell.column, cell.method), (cell.column,), ()):
            groups.setdefault(key, []).append(timed[str(cell.run)])
    means = {key: sum(values) / len(values) for key, values in groups.items()}

    def nearest(cell: Cell) -> float:
        return next(means[key] for key in ((cell.column, cell.method), (cell.column,), ()) if key in means)

    return nearest


def train_seconds(path: Path) -> float | None:
    try:
        found: Any = RunDirectory(path).result().get("train_seconds")
    except CheckpointError:
        return None
    return float(found) if isinstance(found, int | float) else None


def epochs_of(path: Path) -> int | None:
    """Return the top-level `epochs` of config.yaml. Parsing the whole file would take longer than everything else
    here."""
    try:
        found = re.search(r"^epochs: (\d+)", (path / "config.yaml").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return int(found[1]) if found else None


def share_left(path: Path) -> float:
    """Return the fraction of a run's epochs that is still to be trained."""
    epochs = epochs_of(path)
    try:
        rows = RunDirectory(path).read_metrics()
    except (OSError, ValueError):
        rows = []
    return max(1 - rows[-1][0] / epochs, 0.0) if rows and epochs else 1.0


def own_pace(path: Path) -> float | None:
    """Return the seconds of a whole run at the mean pace of its epochs so far, without evaluation."""
    epochs = epochs_of(path)
    try:
        images = read_json(path / "provenance.json")["data"]["train"]
        speeds = [value for _, _, metric, value in RunDirectory(path).read_metrics() if metric == "images_per_second"]
        mean, _ = mean_std([images / speed for speed in speeds])
    except (CheckpointError, KeyError, TypeError, OSError, ValueError, ZeroDivisionError):
        return None
    return mean * epochs if mean is not None and epochs else None


def in_training(ledger: Ledger, root: Path) -> list[list[str]]:
    """Return (place, epoch of epochs, loss, accuracy, best accuracy) of the runs in training, as far as recorded; a
    run of several cells occurs once."""
    rows = []
    for run, cell in {str(cell.run): cell for cell in reversed(ledger.cells) if cell.run is not None}.items():
        if state_of(cell, root)[0] != "running":
            continue
        metrics = RunDirectory(root / run).read_metrics()
        losses = [value for _, split, metric, value in metrics if (split, metric) == ("train", "loss")]
        tests = [value for _, split, metric, value in metrics if (split, metric) == ("test", "top1")]
        epoch = f"{metrics[-1][0] if metrics else 0}/{epochs_of(root / run) or '?'}"
        figures = [f"{losses[-1]:.3f}" if losses else "–", f"{tests[-1]:.2f}" if tests else "–"]
        rows.append([cell.place, epoch, *figures, f"{max(tests):.2f}" if tests else "–"])
    return rows[::-1]
