"""A report's charts: learning curves of each column, accuracy over cost, and which row has which colour."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdrun.reporting.html.charts import Line, Mark, Point, line_chart, scatter, short
from kdrun.reporting.html.run_files import Places, RunFiles, mean_curve
from kdrun.reporting.labels import cell_text
from kdrun.reporting.table import Table

COLOURS = 8  # that everybody can tell apart, half of them dashed; page.css has them as c0 … c7
COSTS = (  # key of result.json, axis, tooltip's unit, whether less is better
    ("params", "parameters of the student", "parameters", True),
    ("flops", "FLOPs for one image (a multiply-add counts two)", "FLOPs", True),
    ("images_per_second", "training images/s", "images/s", False),
)


@dataclass(frozen=True)
class Figure:
    """A chart as HTML with its caption. svg is "" where there is nothing to draw, for the reason in the caption."""

    svg: str
    caption: str

    def html(self) -> str:
        return f"<figure>{self.svg}<figcaption>{html.escape(self.caption)}</figcaption></figure>"


def styles_of(table: Table) -> dict[str, str]:
    """row -> class: the baseline in ink, in colour the best rows of each column in turn, the others grey."""
    ranks: list[tuple[int, int, str]] = []
    for place, column in enumerate(table.columns):
        here = [
            entry
            for row in table.rows
            if (entry := table.entries[row, column]).mean is not None and entry.runs and row != table.shape.baseline
        ]
        here.sort(key=lambda entry: -(entry.mean or 0.0))
        ranks += [(rank, place, entry.row) for rank, entry in enumerate(here)]
    ranked = dict.fromkeys(row for _, _, row in sorted(ranks))
    styles = {row: f"c{place}" if place < COLOURS else "rest" for place, row in enumerate(ranked)}
    baseline = table.shape.baseline
    measured = any(table.entries[baseline, column].runs for column in table.columns) if baseline else False
    return styles | ({baseline: "base"} if baseline and measured else {})


def legend(table: Table, styles: dict[str, str]) -> str:
    """A button for each row, coloured ones first; pressing one keeps its lines in front."""
    order = [f"c{place}" for place in range(COLOURS)] + ["base", "rest"]
    buttons = [
        f'<button type="button" class="key {style}" data-row="{table.rows.index(row)}" aria-pressed="false">'
        f'<svg viewBox="0 0 26 8" aria-hidden="true"><path d="M1 4H25"/></svg>{html.escape(row)}</button>'
        for row, style in sorted(styles.items(), key=lambda pair: order.index(pair[1]))
    ]
    return f'<div class="legend">{"".join(buttons)}</div>' if buttons else ""


def learning_curves(table: Table, places: Places, styles: dict[str, str]) -> list[Figure]:
    """A chart for each column: the mean of the finished seeds in front of the seeds."""
    figures = []
    for column in table.columns:
        here = [
            (row, runs) for row in table.rows if (runs := [run for run in places.get((row, column), []) if run.done])
        ]
        if here:
            figures.append(curves_of_column(table, column, here, styles))
    return figures


def curves_of_column(
    table: Table, column: str, here: list[tuple[str, list[RunFiles]]], styles: dict[str, str]
) -> Figure:
    """Test accuracy where it was measured in several epochs; else training accuracy, and the caption says so."""
    lengths = {
        split: max((len(run.curves.get((split, "top1"), [])) for _, runs in here for run in runs), default=0)
        for split in ("test", "train")
    }
    split = "test" if lengths["test"] > 1 or lengths["train"] < 2 else "train"
    key = (split, "top1")
    lines = []
    for row, runs in here:
        mean = mean_curve(runs, key)
        if mean:
            count = sum(key in run.curves for run in runs)
            tip = (
                f"{row}: {mean[-1][1]:.2f} % {split} top-1 after epoch {mean[-1][0]:g}, {count} seed{'s'[: count > 1]}"
            )
            thin = [(f"{row}, seed {run.seed}", run.curves[key]) for run in runs if key in run.curves]
            lines.append(Line(row, mean, styles.get(row, "rest"), tip, table.rows.index(row), thin))
    lines.sort(key=lambda line: line.style.startswith("c"))  # colours in front of grey
    floor = floor_of([line.points for line in lines])
    caption = column or table.title
    if split == "train":
        caption += " (training top-1: the test set was evaluated once, at the end)"
    if floor is not None:
        caption += f"; the axis begins at {floor:g} %, earlier epochs lie below it"
    chart = line_chart(lines, ("epoch", f"{split} top-1, %"), f"Learning curves, {column}", floor)
    return Figure(chart, caption if chart else f"{column}: no accuracy in metrics.csv.")


def floor_of(curves: Sequence[Sequence[Point]]) -> float | None:
    """Where the y axis should begin so that the end of training can be read; None for its natural range. The first
    epochs climb from chance, and would press everything that matters into the topmost tenth."""
    values = sorted(y for points in curves for _, y in points)
    if len(values) < 10:
        return None
    low, high, start = values[0], values[-1], values[len(values) // 6]
    if high - start > 0.6 * (high - low):
        return None
    step = 5 if high - start > 10 else 1
    return float(math.floor((start - 0.1 * (high - start)) / step) * step)


def cost_charts(table: Table, places: Places, styles: dict[str, str]) -> list[Figure]:
    """Accuracy over parameters, FLOPs and training speed, of each data set: a mark for each place of the
    table."""
    datasets = list(dict.fromkeys(entry.dataset for entry in table.filled() if entry.runs))
    figures = []
    for dataset in datasets:
        title = f"{dataset}: top-1 over " if len(datasets) > 1 else "Top-1 over "
        for key, axis, unit, cheaper in COSTS:
            marks = marks_of(table, places, styles, dataset, key)
            if not marks:
                continue
            chart = scatter(
                marks, (axis, "top-1, %"), f"{title}{axis}", cheaper, lambda cost, unit=unit: f"{cost:,.0f} {unit}"
            )
            same = f"{title}{axis}: every run has {short(marks[0].x)}, so there is nothing to draw."
            figures.append(Figure(chart, f"{title}{axis}" if chart else same))
    return figures


def marks_of(table: Table, places: Places, styles: dict[str, str], dataset: str, key: str) -> list[Mark]:
    """A mark for each place of this data set whose runs say what they cost; coloured ones last, in front."""
    marks = []
    for entry in table.filled():
        costs = [
            cost
            for run in places.get((entry.row, entry.column), [])
            if run.done and isinstance(cost := run.result.get(key), int | float) and cost > 0
        ]
        if entry.dataset == dataset and entry.mean is not None and costs:
            tip = f"{entry.row}, {entry.column}: {cell_text(entry)} %"
            marks.append(
                Mark(
                    entry.row,
                    sum(costs) / len(costs),
                    entry.mean,
                    styles.get(entry.row, "rest"),
                    tip,
                    table.rows.index(entry.row),
                )
            )
    return sorted(marks, key=lambda mark: mark.style.startswith("c"))
