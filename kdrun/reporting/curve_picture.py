"""Learning curves of a table as a picture for a paper: a line for each row (the mean of its seeds, in a band of one
standard deviation), and the teacher's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.reporting.html.figures import floor_of
from kdrun.reporting.html.run_files import Places, RunFiles, band_of, read_runs
from kdrun.reporting.table import Table
from kdrun.runs.ledger import Ledger
from kdrun.runs.pictures import pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colour-blind-safe palette; lines are dashed from the ninth row on.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#7a7a7a")
INK = "#222222"
STYLES = ("-", "--", ":")
WIDTH, HEIGHT = 3.4, 3.1  # inches of a panel: a column of a paper


def write_curves(ledger: Ledger, table: Table, root: Path, place: Path, formats: Sequence[str]) -> list[Path]:
    """Write the curves of each column that has any, and return the paths; an empty list if there are none."""
    places = read_runs(ledger, table, root)
    drawn = [(column, rows) for column in table.columns if (rows := rows_of(table, places, column))]
    if not drawn:
        return []
    figure, panels = pyplot().subplots(
        len(drawn), 1, figsize=(WIDTH, HEIGHT * len(drawn)), layout="constrained", squeeze=False
    )
    for (column, rows), axes in zip(drawn, panels[:, 0], strict=True):
        draw_column(axes, table, column, rows)
    return write_figure(figure, place, formats)


def rows_of(table: Table, places: Places, column: str) -> dict[str, list[RunFiles]]:
    """Return row -> its finished runs, for the rows of a column that have any."""
    found = {row: [run for run in places.get((row, column), []) if run.done] for row in table.rows}
    return {row: runs for row, runs in found.items() if runs}


def draw_column(axes: Axes, table: Table, column: str, rows: dict[str, list[RunFiles]]) -> None:
    """Draw the test accuracy, or the training accuracy if the test set was evaluated only once."""
    split = split_of(rows)
    means_of_rows: list[list[tuple[float, float]]] = []
    for place, (row, runs) in enumerate(rows.items()):
        baseline = row == table.shape.baseline
        style: dict[str, Any] = {
            "color": INK if baseline else COLOURS[place % len(COLOURS)],
            "linestyle": "--" if baseline else STYLES[place // len(COLOURS) % len(STYLES)],
        }
        band = band_of(runs, (split, "top1"))
        epochs, means, deviations = ([one[part] for one in band] for part in range(3))
        means_of_rows.append(list(zip(epochs, means, strict=True)))
        count = f" ({len(runs)})" if len(runs) > 1 else ""
        axes.plot(epochs, means, linewidth=1.2, label=f"{row}{count}", **style)
        if any(deviations):
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
    teacher = table.entries.get((table.shape.teacher_row or "", column))
    if split == "test" and teacher is not None and teacher.mean is not None:
        axes.axhline(teacher.mean, color=INK, linewidth=0.9, linestyle=":", label=f"{table.shape.teacher_row}")
    floor = floor_of(means_of_rows)
    if floor is not None:  # the first epochs rise from chance and would compress the end
        axes.set_ylim(bottom=floor)
    said = "test" if split == "test" else "training"
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_ylabel(f"{said} top-1, %", fontsize=8)
    axes.set_title(column or table.title, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    axes.legend(
        frameon=False,
        fontsize=6,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        title="mean ± one standard deviation (seeds)",
        title_fontsize=6,
    )


def split_of(rows: dict[str, list[RunFiles]]) -> str:
    """Return "test" if any run was evaluated in several epochs, else "train"."""
    often = any(len(run.curves.get(("test", "top1"), [])) > 1 for runs in rows.values() for run in runs)
    return "test" if often else "train"
