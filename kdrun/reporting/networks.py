"""Table of the networks that `kdrun eval` measured: a row for each, ranked by their distance to the teacher."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdrun.display import count
from kdrun.errors import ConfigError
from kdrun.files import spreadsheet_safe
from kdrun.reporting.labels import short_labels

if TYPE_CHECKING:
    from kdrun.evaluation.measure import Measured

RANKS = {"kl": "kl_teacher", "agreement": "agreement"}
COLUMNS = (  # key, title, format
    ("top1", "top-1", "{:.2f}"),
    ("nll", "NLL", "{:.4f}"),
    ("ece", "ECE", "{:.2f}"),
    ("f1", "F1", "{:.2f}"),
    ("kl_teacher", "KL", "{:.4f}"),
    ("agreement", "agree", "{:.2f}"),
    ("params", "params", ""),
    ("flops", "FLOPs", ""),
    ("images_per_second", "images/s", "{:,.0f}"),
)


class NetworkTable:
    """Measured networks in the order of their rank, those without a teacher last; unranked ones as they were given."""

    def __init__(self, every: list[Measured], rank: str | None):
        self.compared = [done for done in every if is_compared(done)]
        self.places: dict[str, dict[int, int]] = {}  # measure -> id of a network -> its rank
        self.order = every
        if rank is not None:
            if not self.compared:
                raise ConfigError(f"rank={rank}: no teacher of these could be loaded.")
            self.places = {name: ranking(self.compared, key) for name, key in RANKS.items()}
            self.order = sorted(self.compared, key=lambda done: self.places[rank][id(done)])
            self.order += [done for done in every if not is_compared(done)]
        self.derived = any(done.testset for done in every)
        self.teachers = {teacher_of(done) for done in self.compared} - {""}

    def shown(self) -> tuple[list[str], list[list[str]], str]:
        """Return headings, rows and the line below them."""
        folder, names = short_labels([done.target.label for done in self.order])
        several = len(self.teachers) > 1
        heads = [*(["test set"] if self.derived else []), *(["rank KL", "agr."] if self.places else [])]
        heads = ["run", *heads, *(title for _, title, _ in COLUMNS), *(["teacher"] if several else [])]
        rows = []
        for name, done in zip(names, self.order, strict=True):
            first = [name, *([done.testset or "clean"] if self.derived else []), *map(words, self.places_of(done))]
            rows.append([*first, *cells_of(done), *([teacher_of(done) or "–"] if several else [])])
        below = f"run paths are relative to {folder}; " if folder else ""
        below += f"teacher {min(self.teachers)}; " if len(self.teachers) == 1 else ""
        return heads, rows, f"{below}top-1, ECE, macro F1 and agreement in %, NLL and KL(teacher ‖ student) in nats"

    @property
    def number_of_teachers(self) -> int:
        """Return the number of different teachers' weights that the networks were compared with."""
        return len({str(done.target.teacher.weights) for done in self.compared if done.target.teacher})

    def places_of(self, done: Measured) -> list[int | None]:
        """Return the ranks of a network by each measure, None without a teacher; an empty list if nothing is ranked."""
        return [places.get(id(done)) for places in self.places.values()]

    def to_csv(self) -> str:
        """Return the table with all digits: accuracies in percent, divergences in nats."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        keys = list(dict.fromkeys(key for done in self.order for key in values_of(done)))
        writer.writerow(["run", "network", "teacher", "images", *(f"rank_{name}" for name in self.places), *keys])
        for done in self.order:
            about = [done.target.label, done.target.options.name, teacher_of(done), done.place]
            numbers = [values_of(done).get(key) for key in keys]
            writer.writerow(spreadsheet_safe([*about, *self.places_of(done), *numbers]))
        return text.getvalue()


def is_compared(done: Measured) -> bool:
    """Return True if a network was compared with its teacher."""
    return done.score("kl_teacher") is not None


def teacher_of(done: Measured) -> str:
    """Return the name of the teacher that a network was compared with; an empty string if none."""
    return done.target.teacher.options.name if done.target.teacher and is_compared(done) else ""


def values_of(done: Measured) -> Mapping[str, float | None]:
    """Return all numbers of a network by their keys."""
    return done.found.scores | done.found.cost | {"f1": done.found.classification.macro["f1"]}


def cells_of(done: Measured) -> list[str]:
    """Return the texts of a network's numbers, in the order of COLUMNS."""
    values = values_of(done)
    cells = []
    for key, _, form in COLUMNS:
        value = values.get(key)
        known = "–" if value is None else form.format(value)
        cells.append(count(value) if value is not None and key in ("params", "flops") else known)
    return cells


def words(rank: int | None) -> str:
    """Return a rank as text."""
    return "–" if rank is None else str(rank)


def ranking(every: list[Measured], key: str) -> dict[int, int]:
    """Return id of each network -> its rank from 1, the closest to its teacher first; ties share a rank."""
    sign = -1 if key == "agreement" else 1
    values = {id(done): sign * (done.score(key) or 0.0) for done in every}
    return {name: 1 + sum(other < value for other in values.values()) for name, value in values.items()}
