"""The bias grid of a sweep: every row on every derived test set, beside its teacher and the independent student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdrun.evaluation.bias import (
    Bootstrap,
    Interval,
    above_chance,
    agreement,
    agreement_on_errors,
    divergence,
    error_consistency,
    shape_bias,
    transfer_ratio,
)
from kdrun.evaluation.predictions import Answers
from kdrun.evaluation.stats import mean_std
from kdrun.runs.published import published

CLEAN = "clean"
TEACHER = "Teacher"
AT_CHANCE = "the teacher is at chance there: nothing to take over"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; None below one and below two of them."""

    mean: float | None = None
    std: float | None = None


@dataclass
class Row:
    """seeds: seed -> test set -> answers. control: it did not learn from the column's teacher. seconds: of training,
    per epoch, over the runs. method, student, teacher: of the cells, for published figures."""

    label: str
    seeds: dict[int, dict[str, Answers]] = field(default_factory=dict)
    control: bool = False
    seconds: list[float] = field(default_factory=list)
    method: str = ""
    student: str = ""
    teacher: str | None = None


@dataclass
class Column:
    """What `column_entries` compares. testsets: their titles, the clean one first; names: title -> the set's name.
    teacher: test set -> answers, None where there is no common teacher. baseline: the row of independent students."""

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
    """One row on one test set. clean, accuracy: percent; ratio: accuracy / clean accuracy, for each seed; transfer: of
    accuracy; agreement, errors: percent; kl: nats; published: ratio, and `published_seconds` an epoch. reason: why it
    is blank."""

    row: str
    column: str
    testset: str
    control: bool
    seeds: int
    clean: Spread = Spread()
    accuracy: Spread = Spread()
    ratio: Spread = Spread()
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
    """Every (row, test set) of a column, the teacher's first."""
    entries = []
    for testset in column.testsets:
        drawn = resampled(column, testset)
        if column.teacher is not None:
            entries.append(teacher_entry(column, testset))
        entries += [entry_of(row, column, testset, drawn) for row in column.rows]
    return entries


def resampled(column: Column, testset: str) -> dict[str, Any]:
    """Row label -> resampled accuracies in percent, the teacher's under TEACHER."""
    right = {row.label: [answers[testset].right for answers in row.seeds.values()] for row in column.rows if row.seeds}
    if column.teacher is not None:
        right[TEACHER] = [column.teacher[testset].right]
    if not right:
        return {}
    count = len(next(iter(right.values()))[0])
    return {name: 100 * values for name, values in Bootstrap(count).accuracies(right).items()}


def teacher_entry(column: Column, testset: str) -> BiasEntry:
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
        shape_bias=Spread(shape.bias if shape else None),
        coverage=Spread(shape.coverage if shape else None),
    )


def entry_of(row: Row, column: Column, testset: str, drawn: Mapping[str, Any]) -> BiasEntry:
    """Blank with a reason where no seed is there, or where one is at chance on clean images."""
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
        transfer_of(row, column, testset, drawn),
        **beside,
        shape_bias=over([shape.bias for shape in shapes]),
        coverage=over([shape.coverage for shape in shapes]),
        seconds_per_epoch=mean_std(row.seconds)[0],
        published=figure(row, column, column.names[testset], "ratio"),
        published_seconds=figure(row, column, "", "seconds_per_epoch"),
    )


def over(values: list[Any]) -> Spread:
    """Of the seeds that have a value."""
    return Spread(*mean_std([value for value in values if value is not None]))


def transfer_of(row: Row, column: Column, testset: str, drawn: Mapping[str, Any]) -> Interval:
    """Of mean accuracies over seeds; blank without a teacher or an independent student."""
    base = next((other for other in column.rows if other.label == column.baseline and other.seeds), None)
    if column.teacher is None or base is None:
        return Interval(None, reason="no independent student" if base is None else "no common teacher")
    if row.label == base.label:
        return Interval(None, reason="it is the independent student")
    if not above_chance(column.teacher[testset]):
        return Interval(None, reason=AT_CHANCE)
    student, independent = mean_accuracy(row, testset), mean_accuracy(base, testset)
    three = {"student": drawn[row.label], "independent": drawn[base.label], "teacher": drawn[TEACHER]}
    return transfer_ratio(student, independent, column.teacher[testset].accuracy, three)


def mean_accuracy(row: Row, testset: str) -> float:
    return sum(answers[testset].accuracy for answers in row.seeds.values()) / len(row.seeds)


def figure(row: Row, column: Column, testset: str, metric: str) -> float | None:
    """The published value of a row."""
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
