"""Comparison of runs side by side: the settings that differ, and all known results. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdrun.config.method_schema import yaml_name
from kdrun.errors import CheckpointError, ConfigError, listed, one_line
from kdrun.files import read_json
from kdrun.runs.code_record import method_of_run, recorded
from kdrun.runs.directory import RunDirectory, short_path
from kdrun.runs.identity import digest_of
from kdrun.runs.recorded import edits

UNLIKE = (
    "output_root",
    "logger",
    "save_every_minutes",
    "device",
    "threads",
    "eval_batch_size",
    "dataset.workers",
    "method._name_",
)
NAMES = {"teacher.name": "teacher", "student.name": "student", "dataset.name": "dataset", "method._target_": "method"}
ABOUT = (
    "schema",
    "dataset",
    "teacher",
    "student",
    "method",
    "benchmark",
    "seed",
    "digest",
    "epochs",
    "finished_at",
    "overrides",
    "device",
    "compile",
    "precision",
    "threads",
    "split",
    "network",
    "numerics",
    "measured_at",
    "samples",
)
HIGHER = (
    "top1",
    "top5",
    "f1_macro",
    "precision_macro",
    "recall_macro",
    "agreement",
    "images_per_second",
    "iou",
    "pearson",
    "spearman",
)
LOWER = ("nll", "ece", "kl_teacher", "params", "extra_params", "flops", "train_seconds", "peak_memory")
MISSING = "–"


@dataclass(frozen=True)
class Side:
    """Run in a comparison: settings and results by key, and a description of its state."""

    path: Path
    state: str
    settings: dict[str, Any]
    figures: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Row of a comparison: one key over all runs. best: positions of the best value, if "better" is defined and they
    differ."""

    key: str
    values: list[Any]
    best: tuple[int, ...] = ()


def read_side(path: Path) -> Side:
    """Read settings, state and results of a run directory, finished or not. Raises ConfigError for a damaged one."""
    settings = read_settings(path)
    teacher = any(parent.name == "teachers" for parent in path.absolute().parents)
    run = RunDirectory(path, "teacher" if teacher else "student")
    if teacher:
        settings = {key: value for key, value in settings.items() if key.partition(".")[0] in ("teacher", "dataset")}
    figures: dict[str, Any] = {}
    if run.finished:
        state = "done"
        figures |= scalars(run.result())
    else:
        state, figures = unfinished(run, settings)
    for place in sorted((path / "evals").glob("*.json")):
        try:
            figures |= {f"{place.stem}/{key}": value for key, value in scalars(read_json(place)).items()}
        except CheckpointError as error:
            state += f"; skipped: {str(error).rstrip('.')}: measure it again"
    if edited := edits(path):
        state += f"; config.yaml was edited since: {listed(key for key, _, _ in edited)}"
    return Side(path, state, settings, figures)


def read_settings(path: Path) -> dict[str, Any]:
    """Return a run's config.yaml flattened to the keys used on the command line, without the teacher's if the method
    has none."""
    place = path / "config.yaml"
    try:
        content = yaml.safe_load(place.read_text())
        resolved = content.pop("resolved")
        method = method_of_run(path, content["method"])
    except Exception as error:  # yaml raises types of its own
        raise ConfigError(f"{place} cannot be read ({one_line(error)}).") from error
    flat = {key: value for key, value in flattened(content).items() if key not in UNLIKE}
    flat["method._target_"] = yaml_name(content["method"])
    if not method.needs_teacher:
        flat = {key: value for key, value in flat.items() if not key.startswith("teacher")}
    flat |= {key: resolved[key] for key in ("precision", "compile") if key in resolved}
    settings = {NAMES.get(key, key): value for key, value in flat.items()}
    code = recorded(path).files
    return settings | ({"method._target_": method.target, "own code": digest_of(code)[:8]} if code else {})


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted keys; lists and empty mappings count as values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def scalars(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among a JSON object's values."""
    return {
        key: value
        for key, value in content.items()
        if key not in ABOUT and isinstance(value, int | float) and not isinstance(value, bool)
    }


def unfinished(run: RunDirectory, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the state of a run without result.json, and its last recorded accuracy."""
    rows = run.read_metrics()
    epoch = max((row[0] for row in rows), default=0)
    of = settings.get("teacher.recipe.epochs" if run.role == "teacher" else "epochs")
    state = f"unfinished, epoch {epoch} of {of}"
    if run.failed_path.is_file():
        state = f"failed: {run.failure()}"
    known = [(row[0], row[3]) for row in rows if row[1:3] == ("test", "top1")]
    return state, {"top1_so_far": known[-1][1]} if known else {}


def differing(sides: Sequence[Side]) -> list[Row]:
    """Return the settings that differ between runs, in the order of config.yaml. A run without a teacher differs
    only in the row `teacher`; the teacher's settings are compared among the others."""
    rows = table_of([side.settings for side in sides])
    return [
        row
        for row in rows
        if differs(
            [value for value in row.values if value is not MISSING or not row.key.startswith(("teacher.", "teacher_"))]
        )
    ]


def differs(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def figures(sides: Sequence[Side]) -> list[Row]:
    """Return every result that any of the runs has; evaluations after training results."""
    rows = table_of([side.figures for side in sides])
    rows.sort(key=lambda row: "/" in row.key)
    return [Row(row.key, row.values, best_of(row)) for row in rows]


def table_of(columns: Sequence[Mapping[str, Any]]) -> list[Row]:
    keys = list(dict.fromkeys(key for column in columns for key in column))
    return [Row(key, [column.get(key, MISSING) for column in columns]) for key in keys]


def best_of(row: Row) -> tuple[int, ...]:
    """Return the positions of the best value: the highest accuracy, the lowest loss or cost; empty if all are equal,
    one is missing, or neither direction is better."""
    name = row.key.rpartition("/")[2]
    numbers = [value for value in row.values if isinstance(value, int | float)]
    sign = 1 if name in HIGHER or name.startswith("top1_") else -1 if name in LOWER else 0
    if not sign or len(numbers) < len(row.values) or len(set(numbers)) == 1 or name == "top1_best_epoch":
        return ()
    best = max(sign * value for value in numbers)
    return tuple(place for place, value in enumerate(row.values) if sign * value == best)


def label_of(side: Side) -> str:
    return short_path(side.path)
