"""Contents of the run directories of a ledger, read for a report. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.errors import CheckpointError
from kdrun.evaluation.stats import mean_std
from kdrun.files import read_json
from kdrun.reporting.html.charts import Point
from kdrun.reporting.table import Table
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import Ledger

CURVES = re.compile(r"^(\d+),(train|val|test),(top1|loss),([^,\n]+)\n", re.MULTILINE)


@dataclass
class RunFiles:
    """Run directory as read for a report. run: relative to the output root; number: its anchor on the page; row,
    column: its first place in the table; state: done, failed, skipped or unfinished; curves: (split, metric) ->
    (epoch, value) points."""

    run: str
    number: int
    row: str
    column: str
    seed: int
    state: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    curves: dict[tuple[str, str], list[Point]] = field(default_factory=dict)
    config: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.state == "done"


Places = dict[tuple[str, str], list[RunFiles]]


def read_runs(ledger: Ledger, table: Table, root: Path) -> Places:
    """Return (row, column) -> its runs by seed, as far as they have a directory. A run in several places is read
    once, and is the same object in each."""
    known: dict[str, RunFiles] = {}
    places: Places = {}
    finished = {run for entry in table.entries.values() for run in entry.runs}
    for cell in sorted(ledger.cells, key=lambda cell: cell.seed):
        if cell.run is None or not (root / cell.run).is_dir():
            continue
        if cell.run not in known:
            files = RunFiles(cell.run, len(known), cell.row, cell.column, cell.seed, "unfinished")
            known[cell.run] = read_files(files, root / cell.run, cell.run in finished)
        here = places.setdefault((cell.row, cell.column), [])
        if known[cell.run] not in here:
            here.append(known[cell.run])
    return places


def read_files(files: RunFiles, folder: Path, finished: bool) -> RunFiles:
    """Read all readable files of a directory; fields of the others stay empty."""
    if finished:
        files.state, files.result = "done", read_object(folder / "result.json")
    elif (folder / "result.json").is_file():
        files.state = "skipped"
    elif (folder / "failed.txt").is_file():
        files.state = "failed"
        files.reason = RunDirectory(folder).failure()
    files.config = read_words(folder / "config.yaml")
    files.provenance = read_object(folder / "provenance.json")
    files.provenance.pop("config", None)  # config.yaml is shown separately
    files.curves = read_curves(read_words(folder / "metrics.csv"))
    return files


def read_words(path: Path) -> str:
    try:
        if path.is_symlink():  # a page may be passed on, so it must contain nothing from elsewhere
            return ""
        return path.read_text(errors="replace")
    except OSError:
        return ""


def read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError:
        return {}


def read_curves(text: str) -> dict[tuple[str, str], list[Point]]:
    """Return accuracy and loss from the complete lines of metrics.csv; values that are not finite are left out."""
    curves: dict[tuple[str, str], list[Point]] = {}
    for epoch, split, metric, word in CURVES.findall(text):
        try:
            value = float(word)
        except ValueError:
            continue
        if math.isfinite(value):
            curves.setdefault((split, metric), []).append((float(epoch), value))
    return curves


def band_of(runs: Sequence[RunFiles], key: tuple[str, str]) -> list[tuple[float, float, float]]:
    """Return (epoch, mean over runs, standard deviation) at every epoch common to the runs that have such a curve;
    the deviation of a single run is 0."""
    found = [dict(run.curves[key]) for run in runs if key in run.curves]
    shared = sorted(set.intersection(*(set(points) for points in found))) if found else []
    band = []
    for epoch in shared:
        mean, deviation = mean_std([points[epoch] for points in found])
        band.append((epoch, mean or 0.0, deviation or 0.0))
    return band


def settings_of(text: str) -> dict[str, str]:
    """Return config.yaml as dotted key -> value, read by its indentation: parsing a thousand files as YAML would
    take seconds."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in text.splitlines():
        words = line.strip()
        if not words:
            continue
        depth = len(line) - len(line.lstrip())
        key, colon, value = words.partition(":")
        if words.startswith("- ") or not colon:  # list items belong to the key above
            path = ".".join(name for _, name in stack)
            found[path] = f"{found.get(path, '')} {words.removeprefix('- ')}".strip()
            continue
        while stack and stack[-1][0] >= depth:
            stack.pop()
        stack.append((depth, key))
        path = ".".join(name for _, name in stack)
        found[path] = f"{found[path]} {value.strip()}" if path in found else value.strip()
    return found


def facts_of(node: Any, prefix: str = "") -> dict[str, str]:
    """Return provenance.json as dotted key -> value; lists as one line."""
    if isinstance(node, dict):
        return {
            path: value for key, child in node.items() for path, value in facts_of(child, f"{prefix}{key}.").items()
        }
    text = " ".join(map(str, node)) if isinstance(node, list) else node if isinstance(node, str) else json.dumps(node)
    return {prefix[:-1]: str(text)}


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return (key, ours, theirs) for all differences; a missing value, or one with nested keys, is empty."""
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [(key, ours.get(key, ""), theirs.get(key, "")) for key in keys if ours.get(key, "") != theirs.get(key, "")]
