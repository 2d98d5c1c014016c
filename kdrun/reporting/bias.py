"""The bias grid as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from kdrun.evaluation.bias_grid import AT_CHANCE, CLEAN, TEACHER, BiasEntry, Column, Spread
from kdrun.evaluation.transfer import LIMITS, NO_GAP, NO_SPREAD, Interval
from kdrun.reporting.formats import markdown_grid, number

EMPTY = "–"
CONTROL = " ¹"
STAR = " *"


@dataclass(frozen=True)
class View:
    """View of the grid: one measure. clean: True if the clean images have a column; text: formats an entry."""

    heading: str
    text: Callable[[BiasEntry], str]
    clean: bool = True


def spread_text(spread: Spread, digits: int, unit: float = 1.0) -> str:
    if spread.mean is None:
        return EMPTY
    text = f"{spread.mean * unit:.{digits}f}"
    return text if spread.std is None else f"{text} ± {spread.std * unit:.{digits}f}"


def interval_text(found: Interval, digits: int, limits: tuple[float, float] | None = None) -> str:
    """Return an interval as 0.42 [0.10, 0.71], with a star if it excludes 0, and < or > at a limit."""
    if found.value is None:
        return EMPTY
    every = [value for value in (found.value, found.low, found.high) if value is not None]
    texts = [f"{value + 0.0:.{digits}f}" for value in every]
    texts = [text.lstrip("-") if not float(text) else text for text in texts]
    if limits is not None:
        signs = ["≤ " if value <= limits[0] else "≥ " if value >= limits[1] else "" for value in every]
        texts = [sign + text for sign, text in zip(signs, texts, strict=True)]
    return texts[0] if len(texts) < 3 else f"{texts[0]} [{texts[1]}, {texts[2]}]{STAR if found.beyond else ''}"


def with_published(entry: BiasEntry) -> str:
    text = spread_text(entry.ratio, 3)
    return text if entry.published is None else f"{text} (published {entry.published:.3f})"


VIEWS = {
    "ratio": View("accuracy on the set / accuracy on clean images, mean ± std over seeds", with_published, clean=False),
    "kept": View(
        "accuracy kept, %: above chance on the set / above chance on clean images, mean ± std over seeds",
        lambda entry: spread_text(entry.kept, 1),
        clean=False,
    ),
    "shift": View(
        "shift, points of accuracy kept: student − independent student of its network (Teacher: the whole distance)",
        lambda entry: interval_text(entry.shift, 1),
        clean=False,
    ),
    "transfer": View(
        "transfer ratio, shift / distance to the teacher: 0 = the independent student, 1 = the teacher",
        lambda entry: interval_text(entry.transfer, 2, LIMITS),
        clean=False,
    ),
    "accuracy": View("accuracy, %", lambda entry: spread_text(entry.accuracy, 2)),
    "agreement": View("agreement with the teacher, % of images", lambda entry: spread_text(entry.agreement, 1)),
    "errors": View("agreement on the teacher's errors, % of them", lambda entry: spread_text(entry.errors, 1)),
    "kl": View("KL(teacher ‖ student), nats", lambda entry: spread_text(entry.kl, 3)),
    "consistency": View(
        "error consistency with the teacher, Cohen's κ", lambda entry: spread_text(entry.consistency, 2)
    ),
}


@dataclass
class Grid:
    """Bias grid of a sweep. notes: what could not be measured; recipes: test set -> how it was made."""

    name: str
    title: str
    columns: list[Column]
    entries: list[BiasEntry]
    recipes: dict[str, str]
    about: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, column: str) -> dict[tuple[str, str], BiasEntry]:
        return {(entry.row, entry.testset): entry for entry in self.entries if entry.column == column}


def view_grid(grid: Grid, column: Column, view: View) -> tuple[list[str], list[list[str]]]:
    """Return (headings, rows of texts) of one column in one view. Rows without any value are included."""
    entries = grid.of(column.name)
    testsets = [name for name in column.testsets if view.clean or name != CLEAN]
    labels = list(dict.fromkeys(row for row, _ in entries))
    rows = []
    for label in labels:
        texts = [view.text(entries[label, name]) for name in testsets]
        if label == TEACHER and all(text == EMPTY for text in texts):
            continue
        control = any(entry.control for (row, _), entry in entries.items() if row == label)
        rows.append([label + (CONTROL if control else ""), *texts])
    return ["", *testsets], rows


def summary_grid(grid: Grid, column: Column) -> tuple[list[str], list[list[str]]]:
    """Return a row of results on clean images for each row: seeds, accuracy, seconds per epoch, and shape bias if
    there is a cue conflict."""
    entries = grid.of(column.name)
    conflict = next((name for name in column.testsets if column.names.get(name) == "cue_conflict"), None)
    rows = []
    for label in dict.fromkeys(row for row, _ in entries):
        clean = entries[label, CLEAN]
        texts = [
            label + (CONTROL if clean.control else ""),
            str(clean.seeds),
            clean.reason or spread_text(clean.clean, 2),
            EMPTY
            if clean.seconds_per_epoch is None
            else f"{clean.seconds_per_epoch:.2f}"
            + (f" (published {clean.published_seconds:g})" if clean.published_seconds else ""),
        ]
        if conflict is not None:
            entry = entries[label, conflict]
            texts += [spread_text(entry.shape_bias, 1), spread_text(entry.coverage, 1)]
        rows.append(texts)
    heads = ["", "seeds", "clean top-1, %", "s per epoch"]
    return heads + (["shape bias, %", "coverage, %"] if conflict is not None else []), rows


def footnotes(grid: Grid, column: Column) -> list[str]:
    """Return the notes that a reader needs with the numbers."""
    entries = grid.of(column.name)
    lines = []
    tests = sum(entry.row != TEACHER and entry.shift.low is not None for entry in entries.values())
    if tests:
        lines.append(
            f"[…]: intervals over seeds and images; all {tests} of this pair (rows × test sets) cover jointly in 95 % "
            "of experiments (Bonferroni); * excludes 0"
        )
    elif any(entry.shift.reason == NO_SPREAD for entry in entries.values()):
        lines.append("no intervals of shift and transfer ratio: these need at least two seeds")
    others = {entry.row: entry.against for entry in entries.values() if entry.against not in ("", column.baseline)}
    lines += [f"{row}: compared with {control}, which has the same network" for row, control in others.items()]
    if any(entry.control for entry in entries.values()):
        lines.append("¹ a control, not trained with this teacher: what they share does not come from distillation.")
    blanks: dict[str, dict[str, None]] = {}
    gaps: dict[tuple[str, str], dict[str, None]] = {}
    for (row, testset), entry in entries.items():
        if entry.reason and testset == CLEAN:
            blanks.setdefault(entry.reason, {})[row] = None
        elif not entry.reason and entry.transfer.reason in (AT_CHANCE, NO_GAP):
            gaps.setdefault((entry.against, entry.transfer.reason), {})[testset] = None
        elif not entry.reason and entry.transfer.reason.startswith("no independent student"):
            blanks.setdefault(f"no shift: {entry.transfer.reason}", {})[row] = None
    lines += [
        f"no transfer ratio relative to {control} on {', '.join(sets)}: {why}" for (control, why), sets in gaps.items()
    ]
    lines += [f"{', '.join(rows)}: {reason}" for reason, rows in blanks.items()]
    return lines


CSV_COLUMNS = (
    "column",
    "row",
    "control",
    "testset",
    "seeds",
    "clean",
    "clean_std",
    "accuracy",
    "accuracy_std",
    "ratio",
    "ratio_std",
    "kept",
    "kept_std",
    "against",
    "shift",
    "shift_low",
    "shift_high",
    "shift_error",
    "shift_df",
    "transfer",
    "transfer_low",
    "transfer_high",
    "agreement",
    "agreement_on_errors",
    "kl",
    "error_consistency",
    "shape_bias",
    "coverage",
    "seconds_per_epoch",
    "published_ratio",
    "recipe",
    "reason",
)


def to_csv(grid: Grid) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in grid.entries:
        values = (
            entry.clean.mean,
            entry.clean.std,
            entry.accuracy.mean,
            entry.accuracy.std,
            entry.ratio.mean,
            entry.ratio.std,
            entry.kept.mean,
            entry.kept.std,
            entry.against,
            entry.shift.value,
            entry.shift.low,
            entry.shift.high,
            entry.standard_error,
            entry.df,
            entry.transfer.value,
            entry.transfer.low,
            entry.transfer.high,
            entry.agreement.mean,
            entry.errors.mean,
            entry.kl.mean,
            entry.consistency.mean,
            entry.shape_bias.mean,
            entry.coverage.mean,
            entry.seconds_per_epoch,
            entry.published,
        )
        writer.writerow(
            [
                entry.column,
                entry.row,
                str(entry.control).lower(),
                entry.testset,
                entry.seeds,
                *(value if isinstance(value, str) else number(value) for value in values),
                grid.recipes.get(entry.testset, ""),
                entry.reason or entry.transfer.reason or entry.shift.reason,
            ]
        )
    return text.getvalue()


def to_markdown(grid: Grid) -> str:
    lines = [f"# {grid.title}", "", *[f"{line}  " for line in grid.about]]
    for column in grid.columns:
        lines += ["", f"## {column.name}", "", *markdown_grid(*summary_grid(grid, column)), ""]
        lines += [f"- {line}" for line in footnotes(grid, column)]
        for view in VIEWS.values():
            lines += ["", f"**{view.heading[0].upper()}{view.heading[1:]}.**", ""]
            lines += markdown_grid(*view_grid(grid, column, view))
    lines += ["", "## Test sets", "", *[f"- `{name}`: {recipe}" for name, recipe in grid.recipes.items()]]
    if grid.notes:
        lines += ["", "## Left out", "", *[f"- {line}" for line in grid.notes]]
    return "\n".join(lines) + "\n"
