"""Ledger of any finished or unfinished runs: a row per method, a column per data set and pair. No torch here."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.display import plural
from kdrun.errors import CheckpointError
from kdrun.files import read_json
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import Cell, Ledger, TableShape, changes_numbers

OWN_PLACE = ("seed", "method", "teacher", "student", "dataset")  # already shown by a run's row, column and seed
BASELINE = "none"


@dataclass
class Found:
    """Run as described by its files. settings: the overrides not already shown by its place or row; certain: True if
    they are known."""

    run: str
    dataset: str
    teacher: str | None
    student: str
    method: str
    benchmark: str | None
    seed: int
    settings: frozenset[str]
    certain: bool
    path: Path

    @property
    def pair(self) -> tuple[str, str | None, str]:
        return self.dataset, self.teacher, self.student


def ledger_of_runs(paths: list[Path], root: Path) -> Ledger:
    """Return a ledger whose rows are methods; runs of the same method and pair with other settings get separate
    rows. Networks trained without a teacher appear in every column of their student. Tests and differences are
    against the row `none`."""
    runs = [describe(path, root) for path in dict.fromkeys(path.absolute() for path in paths)]
    labels = row_labels(runs)
    pairs = list(dict.fromkeys(run.pair for run in runs))
    cells = []
    for pair in sorted(pairs, key=lambda pair: (pair[0], pair[1] is None, pair[1] or "", pair[2])):
        taught = [other for other in pairs if other[1] is not None and (other[0], other[2]) == (pair[0], pair[2])]
        if pair[1] is None and taught:
            continue  # shown in the columns of its pairs
        for run in runs:
            if run.pair in (pair, (pair[0], None, pair[2])):
                cells.append(
                    Cell(
                        labels[run.run],
                        column_label(pair),
                        run.seed,
                        [],
                        run.run,
                        run.dataset,
                        run.teacher,
                        run.student,
                        run.method,
                        run.benchmark,
                    )
                )
    rows = sorted({cell.row for cell in cells}, key=lambda row: (row.partition(" ")[0] != BASELINE, row))
    shape = TableShape(rows, list(dict.fromkeys(cell.column for cell in cells)))
    if BASELINE in rows:
        shape.baseline = shape.against = BASELINE
    cells.sort(key=lambda cell: (shape.columns.index(cell.column), rows.index(cell.row), cell.seed))
    title = plural(len(runs), "run")
    if len(runs) == 1:  # its name, instead of a number
        title = f"{labels[runs[0].run]}, {shape.columns[0]}, seed {runs[0].seed}"
    return Ledger("runs", title, "", shape, cells)


def column_label(pair: tuple[str, str | None, str]) -> str:
    dataset, teacher, student = pair
    return f"{dataset} · {teacher} → {student}" if teacher else f"{dataset} · {student}"


def describe(path: Path, root: Path) -> Found:
    """Describe a run from result.json, else from config.yaml, else from its path."""
    home = root.absolute()
    run = str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
    try:
        result = RunDirectory(path).result()
        told = {key: result[key] for key in ("dataset", "teacher", "student", "method", "benchmark", "seed")}
        overrides = [str(word) for word in result["overrides"] or []]
        if not isinstance(told["seed"], int) or not isinstance(told["method"], str):
            raise TypeError
        finished = True
    except (CheckpointError, KeyError, TypeError):
        finished = False
        told, overrides = from_config(path)
    keys = [word.lstrip("+").partition("=")[0] for word in overrides]
    words = [word for word, key in zip(overrides, keys, strict=True) if key not in OWN_PLACE and changes_numbers(key)]
    # A multirun's command contains lists of values, so this run's own values are unknown.
    certain = finished or not any("," in word for word in words)
    return Found(run, **told, settings=frozenset(map(canonical, words)), certain=certain, path=path)


def canonical(word: str) -> str:
    """Return one canonical spelling of a number: a command line may have 1e-3, and a finished run's overrides 0.001."""
    key, equals, value = word.partition("=")
    try:
        return f"{key}{equals}{float(value):g}"
    except ValueError:
        return word


def from_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return dataset, networks, method and seed of an unfinished run, with the command that started it."""
    config = read_config(path)
    pair = path.parent.parent.name
    named: dict[str, dict[str, Any]] = {}
    for key in ("dataset", "teacher", "student"):
        named[key] = config[key] if isinstance(config.get(key), dict) else {}
    seed = re.match(r"s(\d+)-", path.name)
    benchmark, number = config.get("benchmark"), config.get("seed")
    told = {
        "dataset": str(named["dataset"].get("name", path.parent.parent.parent.name)),
        "teacher": None if pair.startswith("none-") else str(named["teacher"].get("name", pair.partition("-")[0])),
        "student": str(named["student"].get("name", pair.partition("-")[2])),
        "method": path.parent.name,
        "benchmark": None if benchmark is None else str(benchmark),
        "seed": number if isinstance(number, int) else int(seed[1]) if seed else 0,
    }
    try:
        command = read_json(path / "provenance.json")["command"]
    except (CheckpointError, KeyError):
        command = []
    command = command if isinstance(command, list) else []
    return told, [str(word) for word in command if "=" in str(word)]


def read_config(path: Path) -> dict[str, Any]:
    """Return config.yaml; empty if it cannot be read."""
    import yaml

    try:
        content = yaml.load((path / "config.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def row_labels(runs: list[Found]) -> dict[str, str]:
    """Return run -> method, with the settings that distinguish it from the others of its method and pair."""
    groups: dict[tuple[Any, ...], list[Found]] = defaultdict(list)
    for run in runs:
        groups[(*run.pair, run.method)].append(run)
    labels = {}
    for group in groups.values():
        settings = {run.run: run.settings for run in group}
        if not all(run.certain for run in group) or doubled(group, settings):  # the overrides do not distinguish them
            settings = {run.run: frozenset(flat(read_config(run.path))) for run in group}
        shared = frozenset.intersection(*settings.values())
        own = {run.run: " ".join([run.method, *sorted(settings[run.run] - shared)]) for run in group}
        if doubled(group, own):  # other data under the same settings: only the digests differ
            own = {run.run: f"{own[run.run]} {run.path.name.rpartition('-')[2]}" for run in group}
        labels |= own
    return labels


def doubled(group: list[Found], settings: dict[str, Any]) -> bool:
    """Return True if two runs of one seed would share a row."""
    keys = [(run.seed, settings[run.run]) for run in group]
    return len(set(keys)) < len(keys)


def flat(node: Any, prefix: str = "") -> list[str]:
    """Return the key=value settings of a configuration that affect numbers."""
    if isinstance(node, dict):
        return [
            word
            for key, value in node.items()
            if f"{prefix}{key}" not in (*OWN_PLACE[:1], "resolved", "experiment", "pair", "method._name_")
            if changes_numbers(f"{prefix}{key}")
            for word in flat(value, f"{prefix}{key}.")
        ]
    return [f"{prefix[:-1]}={node}"]
