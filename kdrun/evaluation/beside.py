"""Finished runs to compare a run with: the same settings with other seeds, and the independent student."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdrun.errors import CheckpointError
from kdrun.evaluation.stats import mean_std
from kdrun.runs.differing import settings_of
from kdrun.runs.directory import RunDirectory

# Settings in which an independent student may differ from a distilled one, and in which two seeds may differ.
OF_ANY_SEED = ("seed", "output_root", "logger", "figures", "save_every_minutes", "dataset.root", "dataset.workers")
OF_TEACHING = ("teacher.", "method.", "pair.", "benchmark", "experiment", "teacher_view", "teacher_cache")
TRAINED = ("train", "top1")
OF_TAPS = ("student.preact_last_map",)


def same_settings(run: Path) -> dict[int, float]:
    """Return seed -> top-1 of the finished runs that differ from `run` only in their seed, including itself."""
    return accuracies(alike(run, run.parent.glob("s*-*"), OF_ANY_SEED, ()))


def independent(run: Path) -> list[Path]:
    """Return the runs of the same student, settings and images that are trained on the labels alone."""
    learned_alone = run.parent.parent.parent.glob("none-*/none/s*-*")
    return alike(run, learned_alone, (*OF_ANY_SEED, *OF_TAPS), OF_TEACHING)


def alike(run: Path, folders: Iterable[Path], left_out: tuple[str, ...], without: tuple[str, ...]) -> list[Path]:
    """Return the runs in `folders` that agree with `run` in every setting except those in `left_out` (by name) and
    `without` (by prefix)."""

    def kept(folder: Path) -> dict[str, Any]:
        settings = settings_of(folder).items()
        return {key: value for key, value in settings if key not in left_out and not key.startswith(without)}

    wanted = kept(run)
    return [folder for folder in sorted(folders) if kept(folder) == wanted]


def accuracies(runs: Iterable[Path]) -> dict[int, float]:
    """Return seed -> top-1 of the finished ones."""
    found = {}
    for folder in runs:
        with suppress(CheckpointError):
            result = RunDirectory(folder).result()
            found[int(result["seed"])] = float(result["top1_last"])
    return found


def trained_accuracy(run: Path) -> float | None:
    """Return the training accuracy at a run's last epoch."""
    values = [value for _, split, metric, value in RunDirectory(run).read_metrics() if (split, metric) == TRAINED]
    return values[-1] if values else None


def mean_trained_accuracy(runs: Iterable[Path]) -> float | None:
    """Return the mean training accuracy over the runs that have it."""
    return mean_std([value for run in runs if (value := trained_accuracy(run)) is not None])[0]
