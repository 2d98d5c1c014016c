"""A table in words: its header, its cells, and the notes below it, the same for every format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kdrun.evaluation.stats import MIN_SEEDS, SEPARATED, UNKNOWN, PairedTest
from kdrun.reporting.table import Entry, Table

EMPTY = "–"


@dataclass(frozen=True)
class Section:
    """A part below the grid: a small grid where `columns` are named, plain lines otherwise."""

    heading: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def cell_text(entry: Entry) -> str:
    """57.21 ± 0.34 (3); one seed 57.21 (1); nothing yet –."""
    if entry.mean is None:
        return "failed" if entry.failed else EMPTY
    if not entry.runs:  # a teacher: measured once
        return f"{entry.mean:.2f}"
    spread = "" if entry.std is None else f" ± {entry.std:.2f}"
    return f"{entry.mean:.2f}{spread} ({len(entry.values)})"


def points(number: float | None, digits: int = 2) -> str:
    """+0.34, in points; 0.00 without a sign; – where there is none."""
    if number is None:
        return EMPTY
    text = f"{number:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


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
    state = f"{table.done:,} of {table.total:,} cells done" + (f", {failed} failed" if failed else "")
    lines.append("; ".join(part for part in [*parts, state] if part))
    return lines


def counted(name: str, values: dict[str, int]) -> str:
    """precision bf16; where runs differ, with how many had which."""
    if len(values) > 1:
        return f"{name} " + ", ".join(f"{value} ({count:,} runs)" for value, count in values.items())
    return f"{name} {next(iter(values))}" if values else ""


def sections(table: Table) -> list[Section]:
    """Everything below the grid that has something to say."""
    found = [
        legend(table),
        published_section(table),
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
        return Section(
            "", lines=["* best of its column, and distinguishable from the runner-up (paired, Holm p < 0.05)."]
        )
    if max(ranked.values(), default=0) > 1:
        return Section("", lines=["No column's best is distinguishable from its runner-up (paired, Holm p < 0.05)."])
    return Section("")


def published_section(table: Table) -> Section:
    """Ours beside theirs, where ours exists."""
    rows = []
    other_rule = False
    for column in table.columns:
        for row in table.rows:
            entry = table.entries[row, column]
            if entry.published is None or entry.mean is None:
                continue
            theirs = entry.published
            ours_best = table.shape.value == "top1_best" and row != table.shape.teacher_row
            mark = "" if (theirs.selection == "best") == ours_best else " †"
            other_rule |= bool(mark)
            spread = "" if theirs.std is None else f" ± {theirs.std:.2f}"
            rows.append(
                [
                    column,
                    row,
                    cell_text(entry),
                    f"{theirs.value:.2f}{spread}{mark}",
                    points(entry.difference),
                    points(entry.z, 1),
                    entry.verdict,
                ]
            )
    if not rows:
        return Section("")
    lines = [
        "reproduced: |difference| ≤ 2 √(s²/n + σ²), s ours, σ the published std or 0.25 points where none was "
        f"printed; z = difference / √(s²/n + σ²); no verdict below {MIN_SEEDS} seeds."
    ]
    if other_rule:
        lines.append("† selected by another rule than ours: the last epoch against the best one on the test set.")
    columns = ["column", "row", "ours", "published", "difference", "z", "verdict"]
    return Section("Beside published values", *without_repetition(table, columns, rows), lines)


def without_repetition(table: Table, columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A column's name stands in the first of its lines, and nowhere in a table of one column."""
    if len(table.columns) == 1:
        return columns[1:], [row[1:] for row in rows]
    before = [""] + [row[0] for row in rows]
    return columns, [["" if row[0] == last else row[0], *row[1:]] for row, last in zip(rows, before, strict=False)]


def delta_section(table: Table) -> Section:
    """Points above the baseline; left out where the paired tests say the same."""
    entries = [entry for entry in table.entries.values() if entry.delta is not None]
    baseline, against = table.shape.baseline, table.shape.against
    told = baseline == against and all(entry.test is not None for entry in entries)
    if told or not entries:
        return Section("")
    rows = [
        [row, *(points(table.entries[row, column].delta) for column in table.columns)]
        for row in table.rows
        if row != baseline
    ]
    return Section(f"Difference to {baseline}, points", ["", *table.columns], rows)


def test_sections(table: Table) -> list[Section]:
    """The paired tests, a grid for each column of the table."""
    found = []
    for column in table.columns:
        rows = []
        for row in table.rows:
            test = table.entries[row, column].test
            if test is not None:
                p, p_holm = (EMPTY if p is None else p_words(p) for p in (test.p, test.p_holm))
                rows.append([row, points(test.difference), str(test.n), p, p_holm, outcome(test)])
        if rows:
            heading = f"Against {table.shape.against}" + (f", {column}" if len(table.columns) > 1 else "")
            found.append(Section(heading, ["row", "difference", "seeds", "p", "Holm p", "outcome"], rows))
    if found:
        found[-1].lines.append(
            "Paired t-tests over common seeds, two-sided, Holm-corrected over all tests of this table at 5 %; seeds to "
            "separate two rows: with 80 % power at that level, if the differences stay as they are."
        )
    return found


def outcome(test: PairedTest) -> str:
    """distinguishable; or not, and how many seeds would change that."""
    if test.n < 2:
        return "one common seed: no test"
    if test.p_holm is None:
        return "the same difference in every seed: no test"
    if test.distinguishable:
        return "distinguishable"
    if test.seeds in (SEPARATED, UNKNOWN):
        return "not distinguishable; seeds needed: not from these data"
    about = "" if test.seeds.startswith("over") else "about "
    return f"not distinguishable; {about}{test.seeds} seeds would separate them"


def failures(table: Table) -> Section:
    lines = [f"{entry.row}, {entry.column}, {reason}" for entry in table.filled() for reason in entry.failed]
    return Section("Failed", lines=lines)


def short_labels(labels: list[str]) -> tuple[str, list[str]]:
    """(the folder that all labels share, the rest of each)."""
    parts = [label.split("/") for label in labels]
    columns = list(zip(*(part[:-1] for part in parts), strict=False))
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return "/".join(parts[0][:shared]), ["/".join(part[shared:]) for part in parts]
