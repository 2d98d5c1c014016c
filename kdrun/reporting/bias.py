"""The bias grid as text, CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.evaluation.bias import NO_GAP, Interval
from kdrun.evaluation.bias_grid import AT_CHANCE, CLEAN, TEACHER, BiasEntry, Column, Spread
from kdrun.files import write_atomically, write_text
from kdrun.reporting.evaluation import as_png, new_figure
from kdrun.reporting.formats import markdown_grid, number

EMPTY = "–"
CONTROL = " ¹"
INK = "#222222"


@dataclass(frozen=True)
class View:
    """One way to show the grid. clean: whether the clean images have a column; text: of an entry."""

    heading: str
    text: Callable[[BiasEntry], str]
    clean: bool = True


def spread_text(spread: Spread, digits: int, unit: float = 1.0) -> str:
    if spread.mean is None:
        return EMPTY
    text = f"{spread.mean * unit:.{digits}f}"
    return text if spread.std is None else f"{text} ± {spread.std * unit:.{digits}f}"


def interval_text(found: Interval) -> str:
    """0.42 [0.10, 0.71]."""
    if found.value is None or found.low is None or found.high is None:
        return EMPTY
    return "{} [{}, {}]".format(
        *(f"{number + 0.0:.2f}".replace("-0.00", "0.00") for number in (found.value, found.low, found.high))
    )


def with_published(entry: BiasEntry) -> str:
    text = spread_text(entry.ratio, 3)
    return text if entry.published is None else f"{text} (published {entry.published:.3f})"


VIEWS = {
    "ratio": View("accuracy on the set / accuracy on clean images, mean ± std over seeds", with_published, clean=False),
    "transfer": View(
        "transfer ratio (student − independent) / (teacher − independent) of accuracy, with its 95 % "
        "bootstrap interval: 0 the independent student, 1 the teacher",
        lambda entry: interval_text(entry.transfer),
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
    """A sweep's bias grid. notes: what could not be measured; recipes: test set -> how it was made."""

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
    """(headings, rows of texts) of one column and one view. Rows that are blank throughout come as they are."""
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
    """Each row on clean images: seeds, accuracy, seconds per epoch, shape bias where there is a cue conflict."""
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
    """What a reader must know beside the numbers."""
    entries = grid.of(column.name)
    lines = []
    if any(entry.control for entry in entries.values()):
        lines.append(
            "¹ a control: it did not learn from this teacher. What it shares with it did not come of distillation."
        )
    blanks: dict[str, list[str]] = {}
    for (row, testset), entry in entries.items():
        if entry.reason and testset == CLEAN:
            blanks.setdefault(entry.reason, []).append(row)
        elif not entry.reason and entry.transfer.reason in (AT_CHANCE, NO_GAP):
            blanks.setdefault(f"no transfer ratio on {testset}: {entry.transfer.reason}", []).append("")
    lines += [f"{', '.join(rows)}: {reason}" if any(rows) else reason for reason, rows in blanks.items()]
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
                *(number(value) for value in values),
                grid.recipes.get(entry.testset, ""),
                entry.reason or entry.transfer.reason,
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


def draw_heat_map(grid: Grid, column: Column) -> bytes:
    """Two panels: accuracy kept on each set (ratio), and how far towards the teacher (transfer ratio)."""
    entries = grid.of(column.name)
    testsets = [name for name in column.testsets if name != CLEAN]
    labels = list(dict.fromkeys(row for row, _ in entries))
    height = 1.9 + 0.42 * len(labels)
    figure, _ = new_figure(1, (max(3.2 + 2.1 * len(testsets), 10.5), height))  # the headings need as much
    figure.clear()
    left, right = figure.subplots(1, 2, sharey=True)
    cells = [[entries[label, name] for name in testsets] for label in labels]
    draw_panel(
        left,
        "ratio: accuracy on the set / on clean images",
        ("viridis", 0.0, 1.0),
        [[(entry.ratio.mean, spread_text(Spread(entry.ratio.mean), 2)) for entry in row] for row in cells],
    )
    draw_panel(
        right,
        "transfer ratio: 0 independent student, 1 teacher",
        ("RdBu", -1.0, 1.0),
        [[(entry.transfer.value, transfer_label(entry)) for entry in row] for row in cells],
    )
    for axes in (left, right):
        axes.set_xticks(range(len(testsets)), [name.replace(":", "\n") for name in testsets], fontsize=8, rotation=0)
    controls = {row for (row, _), entry in entries.items() if entry.control}
    left.set_yticks(
        range(len(labels)), [label + (CONTROL if label in controls else "") for label in labels], fontsize=9
    )
    seeds = max((entry.seeds for (row, _), entry in entries.items() if row != TEACHER), default=0)
    figure.suptitle(
        f"{grid.title}: {column.name}, {seeds} seed{'s' if seeds != 1 else ''}; brackets: 95 % bootstrap "
        "interval; – : nothing to transfer, as grid.md says; ¹ : control",
        fontsize=9,
    )
    return as_png(figure)


def draw_panel(
    axes: Any, heading: str, scale: tuple[str, float, float], cells: list[list[tuple[float | None, str]]]
) -> None:
    """Draw one heat map: cells of (value, its text), on a scale of (colour map, least, greatest)."""
    colours, low, high = scale
    shown = [[float("nan") if value is None else min(max(value, low), high) for value, _ in row] for row in cells]
    picture = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.figure.colorbar(picture, ax=axes, fraction=0.03, pad=0.02)
    for row, line in enumerate(cells):
        for place, (value, text) in enumerate(line):
            dark = value is not None and is_dark(picture, shown[row][place])
            colour = "white" if dark else INK
            axes.text(place, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_title(heading, fontsize=9)
    axes.tick_params(length=0)


def transfer_label(entry: BiasEntry) -> str:
    """The value above its interval."""
    return interval_text(entry.transfer).replace(" [", "\n[")


def is_dark(picture: Any, value: float) -> bool:
    red, green, blue, _ = picture.cmap(picture.norm(value))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def write_grid(grid: Grid, folder: Path) -> list[Path]:
    """grid.csv, grid.md and a picture for each column; their paths."""
    write_text(folder / "grid.csv", to_csv(grid))
    write_text(folder / "grid.md", to_markdown(grid))
    written = [folder / "grid.csv", folder / "grid.md"]
    for place, column in enumerate(grid.columns):
        target = folder / ("grid.png" if len(grid.columns) == 1 else f"grid-{place + 1}.png")
        picture = draw_heat_map(grid, column)
        write_atomically(target, lambda file, picture=picture: file.write(picture))
        written.append(target)
    return written
