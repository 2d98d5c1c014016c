"""Bias grid of a sweep: every row on every derived test set, compared with its teacher and the independent student."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from kdrun.evaluation.bias import (
    above_chance,
    agreement,
    agreement_on_errors,
    divergence,
    error_consistency,
    shape_bias,
)
from kdrun.evaluation.predictions import Answers
from kdrun.evaluation.stats import mean_std
from kdrun.evaluation.transfer import Interval, Kept, Shift, kept_of, moderated, shift_of, way_to
from kdrun.runs.published import published

CLEAN = "clean"
TEACHER = "Teacher"
ON_CLEAN = "of clean images all is kept"
AT_CHANCE = "the teacher is at chance there: nothing to take over"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None below one and below two seeds."""

    mean: float | None = None
    std: float | None = None


@dataclass
class Row:
    """Row of a bias grid. seeds: seed -> test set -> predictions; control: True if it was not trained with the
    column's teacher; seconds: of training, per epoch, over the runs; method, student, teacher: of the cells, to find
    published values."""

    label: str
    seeds: dict[int, dict[str, Answers]] = field(default_factory=dict)
    control: bool = False
    seconds: list[float] = field(default_factory=list)
    method: str = ""
    student: str = ""
    teacher: str | None = None


@dataclass
class Column:
    """Column of a bias grid, as compared by `column_entries`. testsets: their titles, the clean one first; names:
    title -> the set's name; teacher: test set -> predictions, None without a common teacher; baseline: the row of
    independent students. Rows of another network are compared with the independent row (method none) of that
    network."""

    name: str
    dataset: str
    teacher_name: str | None
    teacher: dict[str, Answers] | None
    rows: list[Row]
    testsets: list[str]
    names: dict[str, str]
    baseline: str | None
    benchmark: str | None = None


@dataclass(frozen=True)
class BiasEntry:
    """Entry of a bias grid: one row on one test set. clean, accuracy: percent; ratio: accuracy / clean accuracy, for
    each seed; kept: the same above chance, percent; against: the row of independent students that it is compared
    with; shift: kept - theirs, points, with its `standard_error` on `df` degrees of freedom (for the teacher: the
    distance to it); transfer: shift / that distance; agreement, errors: percent; kl: nats; published: ratio, and
    `published_seconds` per epoch; reason: why it is blank."""

    row: str
    column: str
    testset: str
    control: bool
    seeds: int
    clean: Spread = Spread()
    accuracy: Spread = Spread()
    ratio: Spread = Spread()
    kept: Spread = Spread()
    against: str = ""
    shift: Interval = Interval(None)
    standard_error: float | None = None
    df: float | None = None
    transfer: Interval = Interval(None)
    agreement: Spread = Spread()
    errors: Spread = Spread()
    kl: Spread = Spread()
    consistency: Spread = Spread()
    shape_bias: Spread = Spread()
    coverage: Spread = Spread()
    seconds_per_epoch: float | None = None
    published: float | None = None
    published_seconds: float | None = None
    reason: str = ""


def column_entries(column: Column) -> list[BiasEntry]:
    """Return every (row, test set) of a column, the teacher's first."""
    entries = []
    kept = kept_by(column)
    found = shifts(column, kept)
    tests = interval_count(column, found)
    for testset in column.testsets:
        if column.teacher is not None:
            entries.append(teacher_entry(column, testset, found.get((TEACHER, testset)), tests))
        for row in column.rows:
            entry = entry_of(row, column, testset)
            if (row.label, testset) in kept:
                share = over([100 * float(value) for value in kept[row.label, testset].values])
                compared = comparison(row, column, testset, found.get((row.label, testset)), tests)
                entry = replace(entry, kept=share, **compared)
            entries.append(entry)
    return entries


def kept_by(column: Column) -> dict[tuple[str, str], Kept]:
    """Return (row, test set) -> the accuracy kept, the teacher's under TEACHER; without rows that have a seed at
    chance."""
    seeds = {row.label: list(row.seeds.values()) for row in column.rows if row.seeds}
    if column.teacher is not None:
        seeds[TEACHER] = [column.teacher]
    return {
        (label, testset): kept_of([(answers[testset], answers[CLEAN]) for answers in every])
        for label, every in seeds.items()
        if all(above_chance(answers[CLEAN]) for answers in every)
        for testset in column.testsets
    }


def control_of(row: Row, column: Column) -> Row | None:
    """Return the independent student of a row's own network: the baseline, or another row without a teacher."""
    independent = [other for other in column.rows if other.label == column.baseline]
    independent += [other for other in column.rows if other.method == "none"]
    return next((other for other in independent if other.seeds and other.student == row.student), None)


def shifts(column: Column, kept: dict[tuple[str, str], Kept]) -> dict[tuple[str, str], Shift]:
    """Return (row, derived test set) -> its shift from its independent student; under TEACHER the distance from the
    baseline."""
    found = {}
    derived = [testset for testset in column.testsets if testset != CLEAN]
    trained = [row for row in column.rows if any((row.label, testset) in kept for testset in derived)]
    variances = moderated([[kept[row.label, testset] for row in trained] for testset in derived])
    for testset, each in zip(derived, variances, strict=True):
        spread = dict(zip([row.label for row in trained], each, strict=True))
        teacher = kept.get((TEACHER, testset))
        for row in trained:
            control = control_of(row, column)
            if control is None or control.label not in spread:
                continue
            base = kept[control.label, testset]
            if control is not row:
                ours = kept[row.label, testset]
                found[row.label, testset] = shift_of(ours, base, teacher, spread[row.label], spread[control.label])
            elif row.label == column.baseline and teacher is not None:
                found[TEACHER, testset] = way_to(teacher, base, spread[row.label])
    return found


def interval_count(column: Column, found: dict[tuple[str, str], Shift]) -> int:
    """Return how many intervals of a column's rows are corrected together."""
    return sum(label != TEACHER for label, _ in found)


def comparison(row: Row, column: Column, testset: str, shift: Shift | None, tests: int) -> dict[str, Any]:
    """Return the part of a row's entry about its shift, or the reason why there is none."""
    if testset == CLEAN:
        return {"shift": Interval(None, reason=ON_CLEAN), "transfer": Interval(None, reason=ON_CLEAN)}
    if shift is None:
        control = control_of(row, column)
        reason = (
            f"no independent student of {row.student or 'its network'} above chance"
            if control is not row
            else "it is the independent student"
        )
        return {"shift": Interval(None, reason=reason), "transfer": Interval(None, reason=reason)}
    transfer = shift.ratio(tests)
    if column.teacher is None:
        transfer = Interval(None, reason="no common teacher")
    elif not above_chance(column.teacher[testset]):
        transfer = Interval(None, reason=AT_CHANCE)
    control = control_of(row, column)
    return {
        "against": control.label if control else "",
        "shift": shift.interval(tests),
        "standard_error": shift.standard_error,
        "df": shift.df,
        "transfer": transfer,
    }


def teacher_entry(column: Column, testset: str, way: Shift | None, tests: int) -> BiasEntry:
    assert column.teacher is not None
    found, clean = column.teacher[testset], column.teacher[CLEAN]
    if not above_chance(clean):
        return BiasEntry(TEACHER, column.name, testset, False, 1, reason="the teacher is at chance on clean images")
    shape = shape_bias(found) if found.textures is not None else None
    return BiasEntry(
        TEACHER,
        column.name,
        testset,
        False,
        1,
        Spread(clean.accuracy),
        Spread(found.accuracy),
        Spread(found.accuracy / clean.accuracy),
        Spread(100 * kept_of([(found, clean)]).mean),
        against=column.baseline or "" if way else "",
        shift=Interval(None) if way is None else way.interval(tests),
        standard_error=way and way.standard_error,
        df=way and way.df,
        shape_bias=Spread(shape.bias if shape else None),
        coverage=Spread(shape.coverage if shape else None),
    )


def entry_of(row: Row, column: Column, testset: str) -> BiasEntry:
    """Return a row's entry; blank with a reason if there is no seed, or if one is at chance on clean images."""
    blank = BiasEntry(row.label, column.name, testset, row.control, len(row.seeds))
    if not row.seeds:
        return replace(blank, reason="no finished run")
    chance = [
        f"{seed} ({answers[CLEAN].accuracy:.1f} % clean)"
        for seed, answers in row.seeds.items()
        if not above_chance(answers[CLEAN])
    ]
    if chance:
        return replace(blank, reason=f"at chance: seed {', '.join(chance)}")
    every = [(answers[testset], answers[CLEAN]) for answers in row.seeds.values()]
    shapes = [shape_bias(found) for found, _ in every if found.textures is not None]
    beside: dict[str, Any] = {}
    if column.teacher is not None:
        teacher = column.teacher[testset]
        beside = {
            "agreement": over([agreement(teacher, found) for found, _ in every]),
            "errors": over([agreement_on_errors(teacher, found) for found, _ in every]),
            "kl": over([divergence(teacher, found) for found, _ in every]),
            "consistency": over([error_consistency(teacher, found) for found, _ in every]),
        }
    return BiasEntry(
        row.label,
        column.name,
        testset,
        row.control,
        len(every),
        over([clean.accuracy for _, clean in every]),
        over([found.accuracy for found, _ in every]),
        over([found.accuracy / clean.accuracy for found, clean in every]),
        **beside,
        shape_bias=over([shape.bias for shape in shapes]),
        coverage=over([shape.coverage for shape in shapes]),
        seconds_per_epoch=mean_std(row.seconds)[0],
        published=figure(row, column, column.names[testset], "ratio"),
        published_seconds=figure(row, column, "", "seconds_per_epoch"),
    )


def over(values: list[Any]) -> Spread:
    """Return the spread over the seeds that have a value."""
    return Spread(*mean_std([value for value in values if value is not None]))


def figure(row: Row, column: Column, testset: str, metric: str) -> float | None:
    """Return the published value of a row."""
    teacher = "" if row.method == "none" and metric == "ratio" else row.teacher or ""
    wanted = (column.benchmark, column.dataset, testset, metric, teacher, row.student, row.method)
    if column.benchmark is None or (row.control and row.method != "none"):
        return None
    return next(
        (
            one.value
            for one in published()
            if (one.benchmark, one.dataset, one.testset, one.metric, one.teacher, one.student, one.method) == wanted
        ),
        None,
    )
