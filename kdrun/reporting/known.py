"""The places of a table with everything known about their runs, and what has not been measured yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.display import plural
from kdrun.reporting.html.run_files import Places
from kdrun.reporting.measured import Measured, TeacherFacts, read_measured, teacher_of
from kdrun.reporting.table import Entry, Table


@dataclass
class Known:
    """Place of the table with the content of its runs. results: run -> result.json; measured: of each run, by seed;
    teacher: its size, if known."""

    entry: Entry
    results: dict[str, dict[str, Any]]
    measured: list[Measured]
    teacher: TeacherFacts | None = None

    @property
    def unlooked(self) -> bool:
        """Return True if heat maps could be compared with a pretrained teacher's, and none have been."""
        taught = any(result.get("teacher_top1") is not None for result in self.results.values())
        return taught and not any(run.gradcam for run in self.measured)


KnownPlaces = dict[tuple[str, str], Known]


def known_places(table: Table, places: Places, root: Path) -> KnownPlaces:
    """Read the measurements of every finished run. A run in several places is read once."""
    read: dict[str, Measured] = {}
    known = {}
    for (row, column), runs in places.items():
        done = [run for run in runs if run.done]
        entry = table.entries.get((row, column))
        if entry is None or not done:
            continue
        for run in done:
            if run.run not in read:
                read[run.run] = read_measured(run.run, root / run.run)
        found = Known(entry, {run.run: run.result for run in done}, [read[run.run] for run in done])
        if entry.teacher:
            sizes = (teacher_of(run.provenance, root / run.run, entry.dataset, read[run.run]) for run in done)
            found.teacher = next((size for size in sizes if size), None)
        known[row, column] = found
    return known


def damaged(known: KnownPlaces) -> list[str]:
    """Return a line for each unreadable measurement."""
    every = {one.run: one for place in known.values() for one in place.measured}
    return [line for one in every.values() for line in one.skipped]


def lacking(known: KnownPlaces) -> list[str]:
    """Return what has not been measured yet, and the command that measures it."""
    runs = {one.run: one for place in known.values() for one in place.measured}
    taught = [place for place in known.values() if place.entry.teacher]
    unlooked = [place for place in taught if place.unlooked]
    lines = []
    untested = sum(one.test is None for one in runs.values())
    words = (
        [f"{untested} of {plural(len(runs), 'run')} on the test set (calibration, classes, agreement)"]
        if untested
        else []
    )
    words += (
        [f"the Grad-CAM maps of {len(unlooked)} of {plural(len(taught), 'distilled student')} (one seed each)"]
        if unlooked
        else []
    )
    if words:
        lines.append(f"{' and '.join(words)}: add evaluate=true to the command of this report")
    if runs and not any(one.exports for one in runs.values()):
        lines.append("an exported file, its speed, and the cost of INT8: kdrun export RUN quantize=all")
    if runs and not any(one.derived for one in runs.values()):
        lines.append("derived test images (noise, texture, shape): kdrun eval RUN testset=all")
    return lines
