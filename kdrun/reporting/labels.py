"""Texts of a table: its header, its cells, and the notes below it, the same for every format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kdrun.display import plural
from kdrun.evaluation.differences import Test
from kdrun.evaluation.stats import MAX_SEEDS, MIN_SEEDS, Seeds, Verdict
from kdrun.reporting.remarks import SETTINGS
from kdrun.reporting.table import Entry, Table
from kdrun.runs.published import Published

EMPTY = "–"


@dataclass(frozen=True)
class Section:
    """Section below the grid: a small grid if `columns` are named, plain lines otherwise."""

    heading: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def cell_text(entry: Entry) -> str:
    """Return a cell's text: 57.21 ± 0.34 (3); one seed 57.21 (1); nothing yet –; ‡ marks differences from a
    publication's settings."""
    if entry.mean is None:
        return "failed" if entry.failed else EMPTY
    mark = f" {SETTINGS}" if entry.departs else ""
    if not entry.runs:  # a teacher: measured once
        return f"{entry.mean:.2f}{mark}"
    spread = "" if entry.std is None else f" ± {entry.std:.2f}"
    return f"{entry.mean:.2f}{spread} ({len(entry.values)}){mark}"


def points(number: float | None, digits: int = 2) -> str:
    """Return a difference in points: +0.34; 0.00 without a sign; – for None."""
    if number is None:
        return EMPTY
    text = f"{number:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def interval_words(low: float | None, high: float | None) -> str:
    """Return an interval as [-0.12, +0.80]; an empty string for None."""
    return "" if low is None or high is None else f"[{points(low)}, {points(high)}]"


def with_interval(number: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval: +0.34 [-0.12, +0.80]; only the number if it has no interval."""
    return f"{points(number)} {interval_words(low, high)}".rstrip()


def p_words(p: float) -> str:
    """Return a p-value with two significant digits, but only as many zeros as are easy to count."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.2g}" if p < 0.995 else "1"


def grid(table: Table) -> list[list[str]]:
    """Return a row of texts for each row of the table, its label first."""
    return [[row, *(cell_text(table.entries[row, column]) for column in table.columns)] for row in table.rows]


def header_lines(table: Table) -> list[str]:
    """Return title, shown quantity, hardware and precision, and the number of finished cells."""
    failed = sum(len(entry.failed) for entry in table.entries.values())
    lines = [table.title if table.name in ("runs", table.title) else f"{table.title} ({table.name})"]
    lines.append(table.selection)
    parts = [counted("precision", table.precisions), counted("device", table.devices)]
    state = f"{table.done:,} of {plural(table.total, 'cell')} done" + (f", {failed} failed" if failed else "")
    lines.append("; ".join(part for part in [*parts, state] if part))
    return lines


def counted(name: str, values: dict[str, int]) -> str:
    """Return a common value, as in "precision bf16"; if runs differ, each value with its number of runs."""
    if len(values) > 1:
        return f"{name} " + ", ".join(f"{value} ({plural(count, 'run')})" for value, count in values.items())
    return f"{name} {next(iter(values))}" if values else ""


def sections(table: Table) -> list[Section]:
    """Return all non-empty sections below the grid."""
    found = [
        legend(table),
        published_alone(table),
        *published_sections(table),
        delta_section(table),
        *test_sections(table),
        failures(table),
        Section("Notes", lines=table.notes),
        Section("Skipped", lines=table.skipped),
    ]
    return [section for section in found if section.lines or section.rows]


def legend(table: Table) -> Section:
    best = any(entry.best for entry in table.entries.values())
    ranked = Counter(entry.column for entry in table.filled() if entry.runs)
    if best:
        return Section("", lines=["* best of its column, and distinguishable from the runner-up (Holm p < 0.05)."])
    if repeated(table) and max(ranked.values(), default=0) > 1:
        return Section("", lines=["In no column is the best row distinguishable from the runner-up (Holm p < 0.05)."])
    return Section("")


def repeated(table: Table) -> bool:
    """Return True if a student has several seeds, without which nothing is tested."""
    return any(entry.runs and len(entry.values) > 1 for entry in table.entries.values())


def published_alone(table: Table) -> Section:
    """Return the published values of a table that has no results yet."""
    theirs = {place: entry.published for place, entry in table.entries.items() if entry.published is not None}
    if table.done or not theirs:
        return Section("")
    rows = [
        [row, *(published_words(theirs.get((row, column))) for column in table.columns)]
        for row in table.rows
        if any((row, column) in theirs for column in table.columns)
    ]
    sources = dict.fromkeys(f"{one.source} ({one.selection} epoch)" for one in theirs.values())
    return Section("Published values", ["", *table.columns], rows, list(sources))


def published_words(theirs: Published | None) -> str:
    """Return a published value as 78.65 ± 0.12 (5), with its standard error and number of runs if known."""
    if theirs is None:
        return EMPTY
    spread = "" if theirs.std is None else f" ± {theirs.std:.2f}"
    return f"{theirs.value:.2f}{spread}" + ("" if theirs.n is None else f" ({theirs.n})")


def published_sections(table: Table) -> list[Section]:
    """Return our values next to published ones, if we have any: a grid for each column of the table."""
    found = []
    for column in table.columns:
        here = [table.entries[row, column] for row in table.rows]
        rows = [beside_words(entry) for entry in here if entry.published is not None and entry.verdict is not None]
        if rows:
            columns = ["row", "published", "its error", "difference [90 %]", "verdict", "seeds"]
            for place in (5, 2):  # drop columns that are empty in all lines
                if all(row[place] == "" for row in rows):
                    columns.pop(place)
                    rows = [[*row[:place], *row[place + 1 :]] for row in rows]
            heading = "Comparison with published values" + (f", {column}" if len(table.columns) > 1 else "")
            found.append(Section(heading, columns, rows))
    if found:
        found[-1].lines.extend(published_notes(table))
    return found


def published_notes(table: Table) -> list[str]:
    """Return the meaning of the verdicts, and other differences from the publication."""
    margin = f"{table.shape.margin:g}"
    judged = [entry for entry in table.filled() if entry.verdict is not None]
    noted = sorted({remark for entry in judged for remark in entry.remarks})
    return [
        "The interval is a 90 % confidence interval of our mean minus the published value, which is treated as exact. "
        f"reproduced: it lies within ±{margin} points. differs: it excludes 0, and is not within ±{margin}. Otherwise "
        "unclear, with the number of seeds that would decide with 80 % power if mean and spread stay the same (and an "
        f"80 % range for that number). No verdict below {MIN_SEEDS} seeds.",
        *(f"{remark}: {where([entry for entry in judged if remark in entry.remarks], judged)}." for remark in noted),
    ]


def where(some: list[Entry], of: list[Entry]) -> str:
    """Return the rows of some entries, by column if they differ between columns; `all` if these are all entries."""
    if len(some) == len(of):
        return "all"
    rows: dict[str, list[str]] = {}
    for entry in some:
        rows.setdefault(entry.column, []).append(entry.row)
    if len({entry.column for entry in of}) == 1:
        return ", ".join(entry.row for entry in some)
    return "; ".join(f"{', '.join(labels)} ({column})" for column, labels in rows.items())


def beside_words(entry: Entry) -> list[str]:
    """Return the published value, its error, the difference, the verdict, and the seeds that would decide it."""
    theirs, found = entry.published, entry.verdict
    assert theirs is not None and found is not None
    marks = "".join(sorted({remark[0] for remark in entry.remarks}))
    error = "" if theirs.std is None else f"± {theirs.std:.2f}"
    return [
        entry.row,
        f"{theirs.value:.2f} {marks}".rstrip(),
        error if theirs.n is None else f"{error} ({theirs.n})".lstrip(),
        with_interval(found.difference, found.low, found.high),
        found.word,
        settling_words(found),
    ]


def settling_words(found: Verdict) -> str:
    """Return what would decide an unclear verdict."""
    if found.word != "unclear":
        return ""
    if found.seeds is None:
        return "all seeds are equal"
    return seeds_words(found.seeds) if found.seeds.number else "no number of seeds"


def seeds_words(seeds: Seeds) -> str:
    """Return a number of seeds with its range: 12 (5 to 40); open-ended if there is no upper limit."""
    if seeds.number is None:
        return f"over {MAX_SEEDS}" + ("" if seeds.low is None else f" ({seeds.low} or more)")
    return f"{seeds.number} ({seeds.low} to {seeds.high})" if seeds.high else f"{seeds.number} ({seeds.low} or more)"


def delta_section(table: Table) -> Section:
    """Return the points above the baseline; left out if the tests already show them."""
    entries = [entry for entry in table.entries.values() if entry.delta is not None]
    baseline, against = table.shape.baseline, table.shape.against
    told = baseline == against and all(entry.test is not None for entry in entries)
    if told or not entries:
        return Section("")
    rows = [
        [row, *(delta_words(table.entries[row, column]) for column in table.columns)]
        for row in table.rows
        if row != baseline
    ]
    return Section(f"Difference to {baseline}, points [95 % interval]", ["", *table.columns], rows)


def delta_words(entry: Entry) -> str:
    return with_interval(entry.delta, *(entry.delta_interval or (None, None)))


def test_sections(table: Table) -> list[Section]:
    """Return the tests against one row: a grid for each column of the table, which is a family of tests."""
    found = []
    for column in table.columns:
        tests = [test for row in table.rows if (test := table.entries[row, column].test) is not None]
        rows = [
            [
                test.row,
                with_interval(test.difference, test.low, test.high),
                EMPTY if test.p_holm is None else p_words(test.p_holm),
                outcome(test),
                seeds_words(test.seeds) if test.seeds else "",
            ]
            for test in tests
        ]
        if rows:
            heading = f"Against {table.shape.against}" + (f", {column}" if len(table.columns) > 1 else "")
            heading += f" (a family of {table.families[column]} tests)" if table.families[column] > 1 else ""
            found.append(Section(heading, ["row", "difference [95 %]", "Holm p", "outcome", "seeds"], rows))
    if found:
        found[-1].lines.extend(test_notes(table))
    return found


def test_notes(table: Table) -> list[str]:
    """Return what was tested, the error rates, and the assumptions."""
    if not repeated(table):
        return [
            "One seed each: nothing is tested, and a difference may be chance. Several seeds give intervals and tests."
        ]
    notes = [
        "Two-sided unpaired t-tests of the means, with variances moderated over the table; Holm-corrected within a "
        "column, including its best row against the runner-up; the intervals are not corrected. If rows differ "
        "sixfold in spread, up to 9 % of columns (not 5 %) falsely report a distinguishable difference. "
        "Seeds: per row, to distinguish the two with 80 % power if difference and spread stay the same (and an "
        "80 % range for that number). More in docs/statistics.md."
    ]
    count = sum(1 for size in table.families.values() if size)
    if count > 1:
        rate = 100 * (1 - 0.95**count)
        notes.append(
            f"{count} columns are {count} families at 5 % each: without any real difference, up to {rate:.0f} % of "
            "such tables would contain a false finding, and more if rows differ much in spread."
        )
    return notes


def outcome(test: Test) -> str:
    """Return whether the two rows are distinguishable."""
    if min(test.n, test.n_against) < 2:
        return "one seed: no test"
    if test.p_holm is None:
        return "all seeds are equal: no test"
    return "distinguishable" if test.distinguishable else "not distinguishable"


def failures(table: Table) -> Section:
    lines = [f"{entry.row}, {entry.column}, {reason}" for entry in table.filled() for reason in entry.failed]
    return Section("Failed", lines=lines)


def short_labels(labels: list[str]) -> tuple[str, list[str]]:
    """Return (the folder that all labels share, the rest of each)."""
    parts = [label.split("/") for label in labels]
    columns = list(zip(*(part[:-1] for part in parts), strict=False))
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return "/".join(parts[0][:shared]), ["/".join(part[shared:]) for part in parts]
