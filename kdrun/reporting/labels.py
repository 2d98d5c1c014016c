"""A table in words: its header, its cells, and the notes below it, the same for every format."""

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
    """A part below the grid: a small grid where `columns` are named, plain lines otherwise."""

    heading: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def cell_text(entry: Entry) -> str:
    """57.21 ± 0.34 (3); one seed 57.21 (1); nothing yet –; ‡ behind what departs from a publication's settings."""
    if entry.mean is None:
        return "failed" if entry.failed else EMPTY
    mark = f" {SETTINGS}" if entry.departs else ""
    if not entry.runs:  # a teacher: measured once
        return f"{entry.mean:.2f}{mark}"
    spread = "" if entry.std is None else f" ± {entry.std:.2f}"
    return f"{entry.mean:.2f}{spread} ({len(entry.values)}){mark}"


def points(number: float | None, digits: int = 2) -> str:
    """+0.34, in points; 0.00 without a sign; – where there is none."""
    if number is None:
        return EMPTY
    text = f"{number:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def interval_words(low: float | None, high: float | None) -> str:
    """[-0.12, +0.80]; nothing where there is none."""
    return "" if low is None or high is None else f"[{points(low)}, {points(high)}]"


def with_interval(number: float | None, low: float | None, high: float | None) -> str:
    """+0.34 [-0.12, +0.80]; the number alone where it has no interval."""
    return f"{points(number)} {interval_words(low, high)}".rstrip()


def p_words(p: float) -> str:
    """Two significant digits, and no more zeros than a reader can count."""
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.2g}" if p < 0.995 else "1"


def grid(table: Table) -> list[list[str]]:
    """A row of texts for each row of the table, its label first."""
    return [[row, *(cell_text(table.entries[row, column]) for column in table.columns)] for row in table.rows]


def header_lines(table: Table) -> list[str]:
    """Title, what is shown, on what it was measured, and how far it is filled."""
    failed = sum(len(entry.failed) for entry in table.entries.values())
    lines = [table.title if table.name in ("runs", table.title) else f"{table.title} ({table.name})"]
    lines.append(table.selection)
    parts = [counted("precision", table.precisions), counted("device", table.devices)]
    state = f"{table.done:,} of {plural(table.total, 'cell')} done" + (f", {failed} failed" if failed else "")
    lines.append("; ".join(part for part in [*parts, state] if part))
    return lines


def counted(name: str, values: dict[str, int]) -> str:
    """precision bf16; where runs differ, with how many had which."""
    if len(values) > 1:
        return f"{name} " + ", ".join(f"{value} ({plural(count, 'run')})" for value, count in values.items())
    return f"{name} {next(iter(values))}" if values else ""


def sections(table: Table) -> list[Section]:
    """Everything below the grid that has something to say."""
    found = [
        legend(table),
        published_alone(table),
        *published_sections(table),
        delta_section(table),
        *test_sections(table),
        failures(table),
        Section("Notes", lines=table.notes),
        Section("Passed over", lines=table.skipped),
    ]
    return [section for section in found if section.lines or section.rows]


def legend(table: Table) -> Section:
    best = any(entry.best for entry in table.entries.values())
    ranked = Counter(entry.column for entry in table.filled() if entry.runs)
    if best:
        return Section("", lines=["* best of its column, and distinguishable from the runner-up (Holm p < 0.05)."])
    if max(ranked.values(), default=0) > 1:
        return Section("", lines=["No column's best is distinguishable from its runner-up (Holm p < 0.05)."])
    return Section("")


def published_alone(table: Table) -> Section:
    """The published values of a table of which nothing is done yet."""
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
    """78.65 ± 0.12 (5), with what is known of its error and its runs."""
    if theirs is None:
        return EMPTY
    spread = "" if theirs.std is None else f" ± {theirs.std:.2f}"
    return f"{theirs.value:.2f}{spread}" + ("" if theirs.n is None else f" ({theirs.n})")


def published_sections(table: Table) -> list[Section]:
    """Ours beside theirs, where ours exists: a grid for each column of the table."""
    found = []
    for column in table.columns:
        here = [table.entries[row, column] for row in table.rows]
        rows = [beside_words(entry) for entry in here if entry.published is not None and entry.verdict is not None]
        if rows:
            columns = ["row", "published", "its error", "difference [90 %]", "verdict", "seeds"]
            for place in (5, 2):  # what no line has needs no column
                if all(row[place] == "" for row in rows):
                    columns.pop(place)
                    rows = [[*row[:place], *row[place + 1 :]] for row in rows]
            heading = "Beside published values" + (f", {column}" if len(table.columns) > 1 else "")
            found.append(Section(heading, columns, rows))
    if found:
        found[-1].lines.extend(published_notes(table))
    return found


def published_notes(table: Table) -> list[str]:
    """What the words mean, and what else is not alike."""
    margin = f"{table.shape.margin:g}"
    judged = [entry for entry in table.filled() if entry.verdict is not None]
    noted = sorted({remark for entry in judged for remark in entry.remarks})
    return [
        "The interval is the 90 % one of our mean, less the published value, which is taken as the number it is. "
        f"reproduced: it lies within ±{margin} points. differs: it excludes 0, and is not within ±{margin}. Else "
        f"unclear, with the seeds that would settle it with 80 % power, if mean and spread stay as they are (and the "
        f"range that holds the true number in four of five cases). No verdict below {MIN_SEEDS} seeds.",
        *(f"{remark}: {where([entry for entry in judged if remark in entry.remarks], judged)}." for remark in noted),
    ]


def where(some: list[Entry], of: list[Entry]) -> str:
    """The rows of some entries, by column where they are not the same in all; `all` where these are all entries."""
    if len(some) == len(of):
        return "all"
    rows: dict[str, list[str]] = {}
    for entry in some:
        rows.setdefault(entry.column, []).append(entry.row)
    if len({entry.column for entry in of}) == 1:
        return ", ".join(entry.row for entry in some)
    return "; ".join(f"{', '.join(labels)} ({column})" for column, labels in rows.items())


def beside_words(entry: Entry) -> list[str]:
    """The published value, its own error, the difference, the verdict, and the seeds that would settle it."""
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
    """What would settle an unclear verdict."""
    if found.word != "unclear":
        return ""
    if found.seeds is None:
        return "every seed is the same"
    return seeds_words(found.seeds) if found.seeds.number else "no number settles it"


def seeds_words(seeds: Seeds) -> str:
    """12 (5 to 40); open upwards where the range has no end."""
    if seeds.number is None:
        return f"over {MAX_SEEDS}" + ("" if seeds.low is None else f" ({seeds.low} or more)")
    return f"{seeds.number} ({seeds.low} to {seeds.high})" if seeds.high else f"{seeds.number} ({seeds.low} or more)"


def delta_section(table: Table) -> Section:
    """Points above the baseline; left out where the tests say the same."""
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
    """The tests against one row, a grid for each column of the table, which is a family of tests."""
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
    """What was tested, how often it errs, and what it rests on."""
    notes = [
        "Two-sided t-tests of the means, not paired, on variances moderated over the table; Holm-corrected within a "
        "column, with its best row against its runner-up; the intervals are each by itself. Where rows differ "
        "sixfold in spread, up to 9 % of columns, not 5 %, call a difference that is none distinguishable. "
        "Seeds: of each row, to tell the two apart with 80 % power if difference and spread stay as they are (and the "
        "range that holds the true number in four of five cases). More in docs/statistics.md."
    ]
    count = sum(1 for size in table.families.values() if size)
    if count > 1:
        rate = 100 * (1 - 0.95**count)
        notes.append(
            f"{count} columns are {count} families at 5 % each: if no row differed, up to {rate:.0f} % of such tables "
            "would have a false finding somewhere, and more of them where rows differ much in spread."
        )
    return notes


def outcome(test: Test) -> str:
    """Whether the two can be told apart."""
    if min(test.n, test.n_against) < 2:
        return "one seed: no test"
    if test.p_holm is None:
        return "no seed differs from another: no test"
    return "distinguishable" if test.distinguishable else "not distinguishable"


def failures(table: Table) -> Section:
    lines = [f"{entry.row}, {entry.column}, {reason}" for entry in table.filled() for reason in entry.failed]
    return Section("Failed", lines=lines)


def short_labels(labels: list[str]) -> tuple[str, list[str]]:
    """(the folder that all labels share, the rest of each)."""
    parts = [label.split("/") for label in labels]
    columns = list(zip(*(part[:-1] for part in parts), strict=False))
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return "/".join(parts[0][:shared]), ["/".join(part[shared:]) for part in parts]
