"""Schema of result.json, of the rows of results.csv, and of the columns of `kdrun.results`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run, of a student or of a stored teacher. Accuracies in percent, times in seconds, memory
    in bytes."""

    schema: int
    dataset: str
    teacher: str | None
    student: str
    method: str
    benchmark: str | None
    seed: int
    digest: str
    epochs: int
    precision: str
    compile: bool
    threads: int
    device: str
    teacher_top1: float | None
    top1_last: float
    top1_best: float  # of the best epoch on the test set: optimistic
    top1_best_epoch: int
    top1_val_selected: float | None  # test accuracy of the best epoch on the validation split
    top5_last: float
    params: int  # of the deployed network
    extra_params: int  # of the method's modules, used in training only
    flops: int  # per image, forward pass; a multiply-add counts as two
    images_per_second: float
    train_seconds: float
    peak_memory: int
    finished_at: str  # ISO 8601, UTC
    overrides: list[str]  # settings given on the command line

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


NEEDED = ("seed", "dataset", "student", "method", "digest", "top1_last")  # keys that every display of a run needs


def problem_of(result: dict[str, Any]) -> str:
    """Describe what is wrong with the content of a result.json; an empty string if nothing is. Other keys may be
    missing."""
    lacking = [key for key in NEEDED if result.get(key) is None]
    if lacking:
        return f"no {', '.join(lacking)}"
    for key, kind in kinds_of_values().items():
        value = result.get(key)
        if value is not None and not isinstance(value, (int, float) if kind is float else kind):
            return f"{key} is {value!r}"
    return ""


RESULT_KEYS = [field.name for field in dataclasses.fields(RunResult)]


@cache
def kinds_of_values() -> dict[str, type]:
    """Return `value_types`, cached for thousands of files."""
    return value_types()


def value_types() -> dict[str, type]:
    """Return key -> type of its values: int, float, bool, str or list."""
    hints = get_type_hints(RunResult)
    return {
        key: get_origin(hint) if get_origin(hint) is list else (get_args(hint) or (hint,))[0]
        for key, hint in hints.items()
    }
