"""Measurements of runs after training: evaluations, derived test sets, heat maps, exports, a diagnosis. Files in
evals/ and exports/ may be damaged or foreign. No torch here."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kdrun.errors import CheckpointError, one_line
from kdrun.evaluation.stats import mean_std
from kdrun.evaluation.targets import home_of, stored_teacher
from kdrun.files import read_json
from kdrun.runs.checkpoints import recorded_fingerprint

TEST = "test"  # the evaluation of the last epoch's weights on the test set
MAPS = "gradcam"


@dataclass(frozen=True)
class Sheet:
    """JSON file of results. source: its path for the reader, relative to the output root."""

    source: str
    content: dict[str, Any]

    def figure(self, *keys: str) -> float | None:
        """Return the number at nested keys, or None if there is no finite one."""
        node: Any = self.content
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return float(node) if isinstance(node, int | float) and math.isfinite(node) else None

    def rows(self, key: str) -> list[Sheet]:
        """Return the objects of a list as sheets with the same source."""
        found = self.content.get(key)
        return [Sheet(self.source, item) for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    def text(self, key: str) -> str:
        return str(self.content.get(key) or "")


@dataclass
class Measured:
    """Measurements of one run. evaluations: test, val, test_best …; derived: test set -> its evaluation; exports:
    one sheet for each float32 file, with all forms; skipped: lines on damaged files."""

    run: str
    folder: Path
    evaluations: dict[str, Sheet] = field(default_factory=dict)
    derived: dict[str, Sheet] = field(default_factory=dict)
    maps: dict[str, Sheet] = field(default_factory=dict)
    exports: list[Sheet] = field(default_factory=list)
    diagnosis: Sheet | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def test(self) -> Sheet | None:
        return self.evaluations.get(TEST)

    @property
    def gradcam(self) -> Sheet | None:
        return self.maps.get(MAPS)

    @property
    def anything(self) -> bool:
        return bool(self.evaluations or self.derived or self.maps or self.exports or self.diagnosis)


def read_measured(run: str, folder: Path) -> Measured:
    """Read all files of a run's evals/ and exports/, but not those on other images than the run's own; damaged files
    and links are left out and named."""
    found = Measured(run, folder)
    own = recorded_fingerprint(folder)
    for part in ("evals", "exports"):
        if (folder / part).is_symlink():
            continue  # a page may be passed on, so it must contain nothing from elsewhere
        for place in sorted((folder / part).glob("*.json")):
            source = f"{run}/{part}/{place.name}"
            try:
                sheet = Sheet(source, {} if place.is_symlink() else read_json(place))
            except CheckpointError as error:
                found.skipped.append(f"{source}: damaged ({one_line(error.__cause__ or error)}).")
                continue
            images = sheet.content.get("images")
            if own is None or not isinstance(images, dict) or images.get("fingerprint") == own:
                sort_in(found, place.stem, sheet)
    return found


def sort_in(found: Measured, stem: str, sheet: Sheet) -> None:
    """Assign a sheet to its kind, by its content."""
    if sheet.rows("forms"):
        found.exports.append(sheet)
    elif "gradients" in sheet.content and "findings" in sheet.content:
        found.diagnosis = sheet
    elif "iou" in sheet.content:
        found.maps[stem] = sheet
    elif sheet.figure("top1") is not None and isinstance(sheet.content.get("testset"), dict):
        if not stem.endswith(("_best", "_teacher")):
            found.derived[stem] = sheet
    elif sheet.figure("top1") is not None and "split" in sheet.content:
        found.evaluations[stem] = sheet


@dataclass(frozen=True)
class Mean:
    """Mean of a result over the runs that have it. sources: their files."""

    value: float
    count: int
    sources: list[str]


def mean_of(sheets: Iterable[Sheet | None], *keys: str) -> Mean | None:
    """Return the mean of a result over sheets; None if none has it."""
    return over_runs(sheets, lambda sheet: sheet.figure(*keys))


def over_runs(sheets: Iterable[Sheet | None], figure: Callable[[Sheet], float | None]) -> Mean | None:
    """Return the mean of `figure` over sheets; None if it is None for all."""
    found = [(value, sheet.source) for sheet in sheets if sheet and (value := figure(sheet)) is not None]
    mean, _ = mean_std([value for value, _ in found])
    return None if mean is None else Mean(mean, len(found), [source for _, source in found])


def related(sheet: Sheet) -> float | None:
    """Return the linear CKA of the pooled features of student and teacher, or of their deepest pair of stages."""
    cka = sheet.content.get("cka")
    if not isinstance(cka, dict):
        return None
    try:
        student, teacher = cka["pairs"][-1]
        value = cka["values"][cka["student"].index(student)][cka["teacher"].index(teacher)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def overconfidence(sheet: Sheet) -> float | None:
    """Return mean confidence minus accuracy, in points, from the bins of an evaluation."""
    bins = sheet.content.get("calibration")
    try:
        counts, confidences, accuracies = (bins[key] for key in ("count", "confidence", "accuracy"))  # type: ignore[index]
        filled = [
            (count, confidence - accuracy)
            for count, confidence, accuracy in zip(counts, confidences, accuracies, strict=True)
            if count
        ]
        return math.fsum(count * gap for count, gap in filled) / math.fsum(count for count, _ in filled)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Confusion:
    """Most frequent confusion of one class with another: `count` of its `images`."""

    taken: str
    instead: str
    count: int
    images: int
    source: str


def worst_confusion(measured: Measured) -> Confusion | None:
    """Return the largest count off the diagonal of test_confusion.csv; None if it cannot be read."""
    place = measured.folder / "evals" / f"{TEST}_confusion.csv"
    if measured.test is None or place.is_symlink() or place.parent.is_symlink():
        return None
    try:
        head, *lines = csv.reader(place.read_text().splitlines())
        counts = [[int(cell) for cell in line[1:]] for line in lines]
        wrong = [
            (count, row, column)
            for row, line in enumerate(counts)
            for column, count in enumerate(line)
            if row != column and count
        ]
        count, row, column = max(wrong, key=lambda one: (one[0], -one[1], -one[2]))
        source = f"{measured.run}/evals/{place.name}"
        return Confusion(lines[row][0], head[1 + column], count, sum(counts[row]), source)
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class TeacherFacts:
    """Size of a run's teacher, with the file that states it."""

    name: str
    params: float
    flops: float | None
    source: str


def teacher_of(provenance: dict[str, Any], folder: Path, dataset: str, measured: Measured) -> TeacherFacts | None:
    """Return the size of a run's teacher: of the stored network that it was trained with, else as measured with the
    run; None if neither is known."""
    told = provenance.get("teacher")
    name, sha256 = (str(told.get(key) or "") for key in ("name", "sha256")) if isinstance(told, dict) else ("", "")
    root = home_of(folder)
    sheet = stored_result(root, dataset, name, sha256) if root and name and sha256 else None
    if sheet is not None and (params := sheet.figure("params")):
        return TeacherFacts(name, params, sheet.figure("flops"), sheet.source)
    if (beside := measured.evaluations.get(f"{TEST}_teacher")) and (params := beside.figure("params")):
        return TeacherFacts(beside.text("network") or name, params, beside.figure("flops"), beside.source)
    diagnosis = measured.diagnosis
    if diagnosis is not None and (params := diagnosis.figure("teacher", "params")):
        named = str(diagnosis.content["teacher"].get("name") or name)
        return TeacherFacts(named, params, diagnosis.figure("teacher", "flops"), diagnosis.source)
    return None


@cache
def stored_result(root: Path, dataset: str, name: str, sha256: str) -> Sheet | None:
    """Return the result of a teacher in the store of an output root; None if it is not there."""
    stored = stored_teacher(root, dataset, name, sha256)
    if stored is None:
        return None
    try:
        return Sheet(str(stored.result_path.relative_to(root)), read_json(stored.result_path))
    except (CheckpointError, ValueError):
        return None
