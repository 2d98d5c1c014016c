"""Published numbers, each with its source: kdrun/runs/published/*.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

COLUMNS = (
    "benchmark",
    "dataset",
    "testset",
    "metric",
    "teacher",
    "student",
    "method",
    "value",
    "std",
    "n",
    "selection",
    "source",
)


@dataclass(frozen=True)
class Published:
    """Published value. value and std in the metric's unit (accuracies: percent); std and n are None if not printed;
    selection: last (epoch) or best (epoch on the test set)."""

    benchmark: str
    dataset: str
    testset: str
    metric: str
    teacher: str
    student: str
    method: str
    value: float
    std: float | None
    n: int | None
    selection: str
    source: str


@lru_cache(maxsize=1)
def published() -> list[Published]:
    """Return every row of every file, in file order."""
    rows = []
    for path in sorted((Path(__file__).parent / "published").glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                std = float(row["std"]) if row["std"] else None
                n = int(row["n"]) if row["n"] else None
                rows.append(Published(**{**row, "value": float(row["value"]), "std": std, "n": n}))  # type: ignore[arg-type]
    return rows
