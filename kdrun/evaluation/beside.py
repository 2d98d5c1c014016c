"""The finished runs that stand beside one: of the same settings with other seeds, and of the independent student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdrun.errors import CheckpointError
from kdrun.runs.differing import settings_of
from kdrun.runs.directory import RunDirectory

# What a student that learns alone need not share with one that is taught, and what no two seeds share.
OF_ANY_SEED = ("seed", "output_root", "logger", "figures", "save_every_minutes", "dataset.root", "dataset.workers")
OF_TEACHING = ("teacher.", "method.", "pair.", "benchmark", "experiment", "teacher_view", "teacher_cache")
TRAINED = ("train", "top1")
OF_TAPS = ("student.preact_last_map",)


def same_settings(run: Path) -> dict[int, float]:
    """Return seed -> top-1 of the finished runs that differ from `run` in their seed alone, itself among them."""
    return accuracies(run, sorted(run.parent.glob("s*-*")), OF_ANY_SEED, ())


def independent(run: Path) -> dict[int, float]:
    """Return seed -> top-1 of the finished runs of the same student on the labels alone."""
    return accuracies(run, learned_alone(run), (*OF_ANY_SEED, *OF_TAPS), OF_TEACHING)


def learned_alone(run: Path) -> list[Path]:
    """Return the runs on the labels alone of the same data set."""
    return sorted(run.parent.parent.parent.glob("none-*/none/s*-*"))


def trained_accuracy(run: Path) -> float | None:
    """Return the accuracy in training at a run's last epoch."""
    values = [value for _, split, metric, value in RunDirectory(run).read_metrics() if (split, metric) == TRAINED]
    return values[-1] if values else None


def independents_training(run: Path) -> float | None:
    """Return the mean of that of the independent students of the same settings."""
    wanted = kept(run, (*OF_ANY_SEED, *OF_TAPS), OF_TEACHING)
    same = [folder for folder in learned_alone(run) if kept(folder, (*OF_ANY_SEED, *OF_TAPS), OF_TEACHING) == wanted]
    found = [value for folder in same if (value := trained_accuracy(folder)) is not None]
    return sum(found) / len(found) if found else None


def accuracies(run: Path, folders: list[Path], left_out: tuple[str, ...], without: tuple[str, ...]) -> dict[int, float]:
    wanted, found = kept(run, left_out, without), {}
    for folder in folders:
        if kept(folder, left_out, without) == wanted:
            try:
                result = RunDirectory(folder).result()
            except CheckpointError:
                continue
            found[int(result["seed"])] = float(result["top1_last"])
    return found


def kept(run: Path, left_out: tuple[str, ...], without: tuple[str, ...]) -> dict[str, Any]:
    settings = settings_of(run).items()
    return {key: value for key, value in settings if key not in left_out and not key.startswith(without)}
