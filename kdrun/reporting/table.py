"""Table of a ledger: the results of each row and column, compared with published values, with tests. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdrun.display import plural
from kdrun.errors import ConfigError, suggest
from kdrun.evaluation.differences import Pair, Sample, Spread, Test, estimate, family
from kdrun.evaluation.stats import Verdict, mean_std, verdict
from kdrun.reporting.departures import published_settings
from kdrun.reporting.remarks import SETTINGS, remarks, teachers_note
from kdrun.reporting.results import SELECTIONS, Place, gather
from kdrun.runs.ledger import Cell, Ledger, TableShape
from kdrun.runs.published import Published, published


@dataclass(frozen=True)
class Entry:
    """Place of the table. values: seed -> percent, of finished runs; runs: their directories relative to the output
    root; missing: number of cells neither finished nor failed; failed: a line for each. std: sample standard
    deviation, None below two seeds. delta: points above the baseline's mean of the same column; delta_interval: its
    95 % interval. remarks: differences between ours and the published value. best: True for the column's highest
    mean if it is distinguishable from the next."""

    row: str
    column: str
    dataset: str = ""
    teacher: str | None = None
    student: str = ""
    method: str = ""
    values: dict[int, float] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    missing: int = 0
    failed: list[str] = field(default_factory=list)
    mean: float | None = None
    std: float | None = None
    delta: float | None = None
    delta_interval: tuple[float, float] | None = None
    published: Published | None = None
    verdict: Verdict | None = None
    remarks: list[str] = field(default_factory=list)
    test: Test | None = None
    best: bool = False

    @property
    def departs(self) -> bool:
        """Return True if its settings differ from those of the published value."""
        return any(remark.startswith(SETTINGS) for remark in self.remarks)

    @property
    def planned(self) -> bool:
        """Return True if any cell belongs here."""
        return bool(self.values or self.missing or self.failed)


@dataclass(frozen=True)
class Table:
    """Results of a ledger. rows and columns in the ledger's order; entries: every (row, column); families: column ->
    number of tests corrected together; precisions, devices: name -> finished runs; notes: what a reader must know
    with the numbers; skipped: damaged and foreign files."""

    name: str
    title: str
    command: str
    shape: TableShape
    selection: str
    rows: list[str]
    columns: list[str]
    entries: dict[tuple[str, str], Entry]
    families: dict[str, int]
    precisions: dict[str, int]
    devices: dict[str, int]
    done: int
    total: int
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def filled(self) -> list[Entry]:
        """Return the entries that have cells, row by row."""
        return [
            self.entries[row, column]
            for row in self.rows
            for column in self.columns
            if self.entries[row, column].planned
        ]


def table_of(ledger: Ledger, root: Path) -> Table:
    """Return the table, complete or not. Raises ConfigError for an unknown value or benchmark."""
    shape = checked(ledger)
    skipped: list[str] = []
    places = gather(ledger, root, skipped)
    rows = in_order(shape.rows, (cell.row for cell in ledger.cells))
    columns = in_order(shape.columns, (cell.column for cell in ledger.cells))
    results = [result for place in places.values() for result in place.results.values()]
    entries = {
        (row, column): measured(row, column, places.get((row, column), Place()), shape, root, skipped)
        for row in rows
        for column in columns
    }
    notes: list[str] = []
    if shape.teacher_row is not None:
        rows = [shape.teacher_row, *(row for row in rows if row != shape.teacher_row)]
        if shape.value != "top1_last":
            notes.append(f"{shape.teacher_row}: of its last epoch.")
        for column in columns:
            here = {row: place for (row, other), place in places.items() if other == column}
            entries[shape.teacher_row, column] = teachers(column, here, shape, root, notes)
    taught = [place for place in places.values() if place.cells[0].teacher and not place.cells[0].own_teacher]
    notes += teachers_note([root / run for run in place.runs.values()] for place in taught)
    spread = spread_of(entries.values())
    entries = {place: with_delta(entry, entries, shape, spread) for place, entry in entries.items()}
    families = dict.fromkeys(columns, 0)
    for column in columns:
        families[column] = test_column(column, entries, shape, spread)
    return Table(
        ledger.name,
        ledger.title,
        ledger.command,
        shape,
        f"{SELECTIONS[shape.value]}; mean ± standard deviation (seeds)",
        rows,
        columns,
        entries,
        families,
        dict(sorted(Counter(str(result["precision"]) for result in results).items())),
        dict(sorted(Counter(str(result["device"]) for result in results).items())),
        len(results),
        len({(cell.row, cell.column, cell.seed) for cell in ledger.cells}),
        notes,
        skipped,
    )


def checked(ledger: Ledger) -> TableShape:
    """Return the ledger's shape with checked names; a row without cells cannot be the baseline. Raises ConfigError."""
    shape = ledger.shape
    if shape.value not in SELECTIONS:
        near = suggest(shape.value, SELECTIONS)
        raise ConfigError(f"value={shape.value}: no such value.{near} Available: {', '.join(SELECTIONS)}.")
    known = sorted({row.benchmark for row in published()})
    if shape.benchmark is not None and shape.benchmark not in known:
        raise ConfigError(
            f"benchmark={shape.benchmark}: no published values under that name.{suggest(shape.benchmark, known)} "
            f"Available: {', '.join(known)}."
        )
    rows = {cell.row for cell in ledger.cells}
    return replace(
        shape,
        baseline=shape.baseline if shape.baseline in rows else None,
        against=shape.against if shape.against in rows else None,
    )


def in_order(labels: list[str], used: Iterable[str]) -> list[str]:
    """Return the labels that have cells: those of the shape first, then the others in order of appearance."""
    used = dict.fromkeys(used)
    return [label for label in dict.fromkeys(labels) if label in used] + [
        label for label in used if label not in labels
    ]


def measured(row: str, column: str, place: Place, shape: TableShape, root: Path, skipped: list[str]) -> Entry:
    """Return mean, spread and published value of one place."""
    values = {}
    for seed, result in sorted(place.results.items()):
        if result[shape.value] is None:
            skipped.append(f"{place.runs[seed]}: no {shape.value} (dataset.val_fraction was 0).")
        else:
            values[seed] = float(result[shape.value])
    if not place.cells:
        return Entry(row, column)
    cell = place.cells[0]
    mean, std = mean_std(list(values.values()))
    entry = Entry(
        row,
        column,
        cell.dataset,
        cell.teacher,
        cell.student,
        cell.method,
        values,
        [place.runs[seed] for seed in values],
        place.missing,
        place.failed,
        mean,
        std,
    )
    tops = [result["teacher_top1"] for result in place.results.values()]
    return beside(entry, cell, next((top for top in tops if top is not None), None), shape, root)


def beside(entry: Entry, cell: Cell, teacher_top1: float | None, shape: TableShape, root: Path) -> Entry:
    """Return the entry with the published value, the verdict on ours, and the differences between the two. cell: one
    of its cells."""
    theirs = find_published(cell, entry.teacher, entry.student, entry.method, shape)
    if theirs is None or not entry.values:
        return replace(entry, published=theirs)
    found = verdict(list(entry.values.values()), theirs.value, shape.margin)
    itself = not entry.runs  # the teacher's own row
    runs = dict.fromkeys([str(cell.run)] if itself else entry.runs)
    said = (published_settings().departures(root / run, theirs, cell.teacher if itself else None) for run in runs)
    settings = list(dict.fromkeys(word for words in said for word in words))
    teacher = None
    if teacher_top1 is not None and entry.teacher and not cell.own_teacher:
        known = find_published(cell, None, entry.teacher, "none", shape)
        teacher = None if known is None else (teacher_top1, known.value)
    value = "top1_last" if itself else shape.value
    noted = remarks(theirs, value, settings, teacher, shape.margin)
    return replace(entry, published=theirs, verdict=found, remarks=noted)


def find_published(cell: Cell, teacher: str | None, student: str, method: str, shape: TableShape) -> Published | None:
    """Return the published top-1 of a cell's benchmark; of two, the one with the same selection rule as ours."""
    benchmark = cell.benchmark or shape.benchmark
    if not cell.published or benchmark is None:
        return None
    teacher = "" if method == "none" else teacher or ""
    wanted = (benchmark, cell.dataset, "test", "top1", teacher, student, method)
    found = published_by_key().get(wanted, [])
    selection = "best" if shape.value == "top1_best" else "last"
    return next((row for row in found if row.selection == selection), found[0] if found else None)


def published_by_key() -> dict[tuple[str, ...], list[Published]]:
    """Return (benchmark, dataset, testset, metric, teacher, student, method) -> rows in file order."""
    if not _BY_KEY:
        for row in published():
            key = (row.benchmark, row.dataset, row.testset, row.metric, row.teacher, row.student, row.method)
            _BY_KEY.setdefault(key, []).append(row)
    return _BY_KEY


_BY_KEY: dict[tuple[str, ...], list[Published]] = {}


def teachers(column: str, places: dict[str, Place], shape: TableShape, root: Path, notes: list[str]) -> Entry:
    """Return the accuracy of the column's teacher at its last epoch, measured once, since its runs share it."""
    row = str(shape.teacher_row)
    taught = [place for place in places.values() if not any(cell.own_teacher for cell in place.cells)]
    cells = [cell for place in taught for cell in place.cells if cell.teacher]
    names = sorted({str(cell.teacher) for cell in cells})
    tops = [
        float(result["teacher_top1"])
        for place in taught
        for result in place.results.values()
        if result["teacher_top1"] is not None
    ]
    if not cells:
        return Entry(row, column)
    if len(names) > 1:
        notes.append(f"{row}, {column}: several teachers ({', '.join(names)}), so none is shown.")
        return Entry(row, column)
    different = sorted(Counter(round(top, 4) for top in tops).items(), key=lambda pair: (-pair[1], pair[0]))
    if len(different) > 1:
        seen = ", ".join(f"{top:.2f} ({plural(count, 'run')})" for top, count in different)
        notes.append(f"{row}, {column}: the runs had teachers with different accuracies ({seen}); the first is shown.")
    cell = next((cell for cell in cells if cell.published), cells[0])
    values = {0: next(top for top in tops if round(top, 4) == different[0][0])} if tops else {}
    entry = Entry(
        row, column, cell.dataset, None, str(cell.teacher), "none", values, [], int(not tops), [], values.get(0), None
    )
    return beside(entry, cell, None, shape, root)


def spread_of(entries: Iterable[Entry]) -> Spread | None:
    """Return the spread of a table's cells; runs that appear in several columns count once, teachers not at all."""
    samples = {tuple(entry.runs): Sample.of(list(entry.values.values())) for entry in entries if entry.runs}
    return Spread.of(sample for sample in samples.values() if sample is not None)


def with_delta(entry: Entry, entries: dict[tuple[str, str], Entry], shape: TableShape, spread: Spread | None) -> Entry:
    """Return the entry with its difference from the baseline of its column."""
    base = entries.get((shape.baseline or "", entry.column))
    if base is None or base is entry or base.mean is None or entry.mean is None:
        return entry
    found = estimate(list(entry.values.values()), list(base.values.values()), spread)
    return replace(entry, delta=entry.mean - base.mean, delta_interval=found.interval() if found else None)


def test_column(column: str, entries: dict[tuple[str, str], Entry], shape: TableShape, spread: Spread | None) -> int:
    """Add to a column's entries their tests against `shape.against`, and mark the best if it is distinguishable from
    the next. Return the number of tests, which form one family for Holm's correction."""
    here = {
        row: list(entry.values.values())
        for (row, other), entry in entries.items()
        if other == column and row != shape.teacher_row and entry.values
    }
    ranked = sorted(here, key=lambda row: -(entries[row, column].mean or 0.0))
    against = shape.against or ""
    pairs = [(row, against) for row in here if row != against] if against in here else []
    if len(ranked) > 1 and against not in ranked[:2]:
        pairs.append((ranked[0], ranked[1]))
    tests = family([Pair(one, here[one], other, here[other]) for one, other in pairs], spread)
    for test in tests:
        if test.against == against:
            entries[test.row, column] = replace(entries[test.row, column], test=test)
        if {test.row, test.against} == set(ranked[:2]) and test.distinguishable:
            entries[ranked[0], column] = replace(entries[ranked[0], column], best=True)
    return sum(test.p is not None for test in tests)
