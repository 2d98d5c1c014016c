"""Summary of a table: sentences with figures, each with the file or command behind it. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdrun.display import count, duration, plural
from kdrun.evaluation.stats import mean_std
from kdrun.reporting.known import Known, KnownPlaces
from kdrun.reporting.labels import interval_words
from kdrun.reporting.measured_words import Statement, bias_shifts, enumerated, exported, measurements, source_words
from kdrun.reporting.table import Table

NAMES = 4  # most rows listed in a sentence


@dataclass
class Part:
    """Part of a summary: the sentences on one column. heading: its name, if the table has several."""

    heading: str
    statements: list[Statement] = field(default_factory=list)


def summary(table: Table, known: KnownPlaces, grid: Path) -> list[Part]:
    """Return the sentences on every column, in the table's order. grid: path of the sweep's bias grid."""
    parts = []
    for column in table.columns:
        part = Part(column if len(table.columns) > 1 else "", list(of_column(table, column, known, grid)))
        parts.append(part)
    return [part for part in parts if part.statements]


def of_column(table: Table, column: str, known: KnownPlaces, grid: Path) -> Iterator[Statement]:
    """Yield sentences on the most accurate row with a teacher: compared with the others, its teacher, and its
    measurements."""
    rows = [known[row, column] for row in table.rows if (row, column) in known]
    ranked = sorted((one for one in rows if one.entry.values), key=lambda one: -(one.entry.mean or 0.0))
    if not ranked:
        yield from nothing_yet(table, column)
        return
    taught = [one for one in ranked if one.entry.teacher]
    chosen = (taught or ranked)[0]
    yield accuracy(table, chosen, ranked)
    yield from beside_others(table, column)
    yield from beside_baseline(table, chosen, ranked)
    yield size(chosen, "It" if len(ranked) == 1 else chosen.entry.row)
    yield from measurements(chosen.measured)
    yield from of_exports(chosen, ranked)
    yield from bias_shifts(grid, column)
    if len(ranked) == 1 and len(chosen.results) == 1:
        yield from training(chosen)
    yield from failures(table, column)


def of_exports(chosen: Known, ranked: list[Known]) -> Iterator[Statement]:
    """Yield what the chosen row's exported file costs and gains; if it has none, that of another row, by its name."""
    for place in [chosen, *ranked]:
        for run in place.measured:
            for sheet in run.exports[:1]:
                yield from exported(sheet, "it" if place is chosen else place.entry.row)
                return


def nothing_yet(table: Table, column: str) -> Iterator[Statement]:
    entries = [entry for entry in table.filled() if entry.column == column and entry.row != table.shape.teacher_row]
    missing, failed = sum(entry.missing for entry in entries), sum(len(entry.failed) for entry in entries)
    if missing or failed:
        words = [f"{plural(missing, 'run')} not finished"] if missing else []
        words += [f"{plural(failed, 'run')} failed (reasons below)"] if failed else []
        yield Statement(f"There is no result yet: {' and '.join(words)}.", command(table, "status"))


def command(table: Table, name: str) -> str:
    """Return the command that shows the same for a sweep; for individual runs their files are the source."""
    return f"kdrun {name} {table.name}" if table.command else "result.json of the runs"


def accuracy(table: Table, chosen: Known, ranked: list[Known]) -> Statement:
    """Return how accurate the most accurate row is, and whether it is distinguishable from the next."""
    entry = chosen.entry
    rule = table.selection.partition(";")[0].replace("top-1, %, ", "")
    source = source_words([f"{run}/result.json" for run in entry.runs])
    value = f"{entry.mean:.2f} %" if entry.std is None else f"{entry.mean:.2f} ± {entry.std:.2f} %"
    seeds = "one seed" if len(entry.values) == 1 else plural(len(entry.values), "seed")
    if len(ranked) == 1:
        taught = f", trained by {entry.row} with the teacher {entry.teacher}," if entry.teacher else f" ({entry.row})"
        words = f"{entry.student}{taught} is correct on {value} of the test images of {entry.dataset}"
        return Statement(f"{words} ({rule}; {seeds}).", source)
    order = [one for one in ranked if one is not chosen]
    words = f"The most accurate of {len(ranked)} rows{' with a teacher' if ranked[0] is not chosen else ''} is "
    words += f"{entry.row}: {value} of the test images ({rule}; {seeds}). "
    if ranked[0] is not chosen:
        first = ranked[0].entry
        words += f"{first.row}, without one, has {first.mean:.2f} %: kdrun diagnose RUN looks for the cause."
    elif entry.best:
        words += f"It is distinguishable from the next, {order[0].entry.row} ({order[0].entry.mean:.2f} %)."
    else:
        why = "with these seeds" if len(entry.values) > 1 else "with one seed each"
        second = order[0].entry
        words += f"{why.capitalize()} it is not distinguishable from {second.row} ({second.mean:.2f} %)."
    return Statement(words, source)


def beside_baseline(table: Table, chosen: Known, ranked: list[Known]) -> Iterator[Statement]:
    """Yield the difference from the baseline, which in most tables is the student trained on the labels alone."""
    entry = chosen.entry
    base = next((one.entry for one in ranked if one.entry.row == table.shape.baseline), None)
    if base is None or entry.delta is None:
        return
    where = "above" if entry.delta >= 0 else "below"
    alone = "" if base.teacher else ", the same network without a teacher"
    words = f"{entry.row} is {abs(entry.delta):.2f} points {where} {base.row}{alone} ({base.mean:.2f} %)"
    if entry.delta_interval is not None:
        low, high = entry.delta_interval
        words += f"; 95 % interval {interval_words(low, high)}"
        words += ", not corrected for the choice of the best" if len(ranked) > 2 else ""
        words += "" if low > 0 or high < 0 else ", so it may be chance"
    yield Statement(f"{words}.", command(table, "table"))


def beside_others(table: Table, column: str) -> Iterator[Statement]:
    """Yield the rows that the corrected tests distinguish from the reference row."""
    tests = [test for row in table.rows if (test := table.entries[row, column].test) and test.p_holm is not None]
    if len(tests) < 2:
        return
    words = [
        f"{sentence_list([test.row for test in tests if test.distinguishable and sign * test.difference > 0])} {where}"
        for sign, where in ((1, "above"), (-1, "below"))
        if any(test.distinguishable and sign * test.difference > 0 for test in tests)
    ]
    others = [test.row for test in tests if not test.distinguishable]
    if others:
        named = sentence_list(others) if len(others) < len(tests) or len(others) == 2 else f"all {len(others)} rows"
        words.append(f"{named} not distinguishable from it")
    compared = f"Compared with {table.shape.against}: {'; '.join(words)} (Holm-corrected)."
    yield Statement(compared, command(table, "table"))


def sentence_list(names: list[str]) -> str:
    """Return a list of names: A, B and C; of many the first ones, and how many more."""
    if len(names) > NAMES + 1:
        return f"{', '.join(names[:NAMES])} and {len(names) - NAMES} more"
    return enumerated(names)


def size(chosen: Known, name: str) -> Statement:
    """Return the share of its teacher's accuracy that the student keeps, and its share of parameters and FLOPs."""
    entry, results = chosen.entry, list(chosen.results.values())
    sources = [source_words([f"{run}/result.json" for run in chosen.results])]
    tops = [top for result in results if isinstance(top := result.get("teacher_top1"), int | float)]
    params, flops = (next((result.get(key) for result in results if result.get(key)), None) for key in COST)
    teacher = chosen.teacher
    words, costs = f"{name} has ", []
    mean_top, _ = mean_std(tops)
    if entry.teacher and mean_top and entry.mean is not None:
        share = 100 * entry.mean / mean_top
        verb = "keeps" if share < 100 else "reaches"
        words = f"{name} {verb} {share:.1f} % of the accuracy of its teacher {entry.teacher} ({mean_top:.2f} %) with "
    if isinstance(params, int | float):
        whole = teacher.params if teacher else None
        costs.append(part_words(params, whole, "parameters", f"{params:,.0f}", f"{whole or 0:,.0f}"))
    if isinstance(flops, int | float):
        whole = teacher.flops if teacher else None
        costs.append(part_words(flops, whole, "FLOPs per image", count(flops), count(whole or 0)))
    sources += [teacher.source] if teacher and costs else []
    if not costs:
        return Statement(
            words.replace(" with ", "") + ("an unknown size." if words == f"{name} has " else "."), *sources
        )
    counts = "; a multiply-add counts as two" if isinstance(flops, int | float) else ""
    return Statement(f"{words}{' and '.join(costs)}{counts}.", *sources)


COST = ("params", "flops")


def part_words(part: float, whole: float | None, unit: str, shown: str, of: str) -> str:
    """Return a part of a whole: 29 % of its parameters (78,042 of 272,474); only the number if the whole is unknown."""
    if not whole:
        return f"{shown} {unit}"
    ratio = part / whole
    share = f"{100 * ratio:.2g} %" if ratio < 0.995 else f"{ratio:.2g} times" if ratio > 1.005 else "100 %"
    return f"{share} of its {unit} ({shown} of {of})"


def training(chosen: Known) -> Iterator[Statement]:
    """Yield how long one run took."""
    ((run, result),) = chosen.results.items()
    seconds, epochs = result.get("train_seconds"), result.get("epochs")
    if isinstance(seconds, int | float) and isinstance(epochs, int):
        where = f"{result.get('device')}, {result.get('precision')}"
        yield Statement(
            f"Training took {duration(seconds)} for {plural(epochs, 'epoch')} ({where}).", f"{run}/result.json"
        )


def failures(table: Table, column: str) -> Iterator[Statement]:
    entries = [entry for entry in table.filled() if entry.column == column and entry.row != table.shape.teacher_row]
    missing, failed = sum(entry.missing for entry in entries), sum(len(entry.failed) for entry in entries)
    words = [f"{plural(missing, 'run')} not finished"] if missing else []
    words += [f"{plural(failed, 'run')} failed"] if failed else []
    if words:
        yield Statement(f"Not in these figures: {' and '.join(words)}.", command(table, "status"))
