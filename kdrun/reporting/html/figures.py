"""Charts of a report: learning curves of each column, accuracy over cost, and the colours of rows."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdrun.display import plural
from kdrun.reporting.html.charts import Line, Mark, Point, line_chart, scatter, short
from kdrun.reporting.html.run_files import Places, RunFiles, band_of
from kdrun.reporting.known import KnownPlaces
from kdrun.reporting.labels import cell_text
from kdrun.reporting.table import Table

COLOURS = 8  # distinguishable colours, half of them dashed; page.css defines them as c0 … c7
COSTS = (  # key of result.json, axis, tooltip's unit, True if less is better
    ("params", "parameters", "parameters", True),
    ("flops", "FLOPs per image (a multiply-add counts as two)", "FLOPs", True),
    ("images_per_second", "training images/s", "images/s", False),
)


@dataclass(frozen=True)
class Figure:
    """Chart as HTML with its caption. svg is "" if there is nothing to draw, for the reason in the caption."""

    svg: str
    caption: str

    def html(self) -> str:
        return f"<figure>{self.svg}<figcaption>{html.escape(self.caption)}</figcaption></figure>"


def styles_of(table: Table, begun: Sequence[str] = ()) -> dict[str, str]:
    """Return row -> class: the baseline in ink, coloured classes for the best rows of each column in turn, then for
    started rows, grey for the others."""
    ranks: list[tuple[int, int, str]] = []
    for place, column in enumerate(table.columns):
        here = [
            entry
            for row in table.rows
            if (entry := table.entries[row, column]).mean is not None and entry.runs and row != table.shape.baseline
        ]
        here.sort(key=lambda entry: -(entry.mean or 0.0))
        ranks += [(rank, place, entry.row) for rank, entry in enumerate(here)]
    ranked = dict.fromkeys(
        [*(row for _, _, row in sorted(ranks)), *(row for row in begun if row != table.shape.baseline)]
    )
    styles = {row: f"c{place}" if place < COLOURS else "rest" for place, row in enumerate(ranked)}
    baseline = table.shape.baseline
    measured = baseline in begun or any(
        table.entries[str(baseline), column].runs for column in table.columns if baseline
    )
    return styles | ({baseline: "base"} if baseline and measured else {})


def legend(table: Table, styles: dict[str, str]) -> str:
    """Return a button for each row, coloured ones first; pressing one brings its lines to the front."""
    order = [f"c{place}" for place in range(COLOURS)] + ["base", "rest"]
    buttons = [
        f'<button type="button" class="key {style}" data-row="{table.rows.index(row)}" aria-pressed="false">'
        f'<svg viewBox="0 0 26 8" aria-hidden="true"><path d="M1 4H25"/></svg>{html.escape(row)}</button>'
        for row, style in sorted(styles.items(), key=lambda pair: order.index(pair[1]))
    ]
    return f'<div class="legend">{"".join(buttons)}</div>' if buttons else ""


def learning_curves(table: Table, places: Places, styles: dict[str, str]) -> list[Figure]:
    """Return a chart for each column: the mean of the finished seeds in a band of one standard deviation, unfinished
    seeds, and the teacher's accuracy."""
    figures = []
    for column in table.columns:
        here = [
            (row, runs)
            for row in table.rows
            if (runs := [run for run in places.get((row, column), []) if run.done or run.curves])
        ]
        if here:
            figures.append(curves_of_column(table, column, here, styles))
    return figures


def curves_of_column(
    table: Table, column: str, here: list[tuple[str, list[RunFiles]]], styles: dict[str, str]
) -> Figure:
    """Draw the test accuracy if it was measured in several epochs; else the training accuracy, as stated in the
    caption."""
    lengths = {
        split: max((len(run.curves.get((split, "top1"), [])) for _, runs in here for run in runs), default=0)
        for split in ("test", "train")
    }
    split = "test" if lengths["test"] > 1 or lengths["train"] < 2 else "train"
    key = (split, "top1")
    lines = [line for row, runs in here if (line := line_of(table, row, runs, key, styles.get(row, "rest")))]
    lines.sort(key=lambda line: line.style.startswith("c"))  # colours in front of grey
    floor = floor_of([line.points for line in lines])
    caption = column or table.title
    teacher = table.entries.get((table.shape.teacher_row or "", column))
    mean = teacher.mean if teacher is not None and split == "test" else None
    known = mean if mean is not None else taught_by(here) if split == "test" else None
    if known is not None and lines:
        ends = [x for line in lines for points in (line.points, *(one for _, one in line.going)) for x, _ in points]
        tip = f"teacher: {known:.2f} % test top-1 at its last epoch"
        lines.insert(
            0, Line("teacher", [(min(ends), known), (max(ends) + (max(ends) == min(ends)), known)], "taught", tip)
        )
        caption += f"; dash-dotted: the teacher, {known:.2f} %"
    if any(line.going for line in lines):
        caption += "; dashed: unfinished seeds"
    if split == "train":
        caption += " (training top-1: the test set was evaluated once, at the end)"
    if floor is not None:
        caption += f"; the axis begins at {floor:g} %, so that earlier epochs are cut off"
    chart = line_chart(lines, ("epoch", f"{split} top-1, %"), f"Learning curves, {column}", floor)
    return Figure(chart, caption if chart else f"{column}: no accuracy in metrics.csv.")


def line_of(table: Table, row: str, runs: list[RunFiles], key: tuple[str, str], style: str) -> Line | None:
    """Return the line of a row: the mean over its finished seeds in a band of one standard deviation, and its
    unfinished seeds."""
    done = [run for run in runs if run.done and key in run.curves]
    going = [
        (f"{row}, seed {run.seed}, {run.state} after epoch {run.curves[key][-1][0]:g}", run.curves[key])
        for run in runs
        if not run.done and key in run.curves
    ]
    band = band_of(done, key)
    mean = [(epoch, value) for epoch, value, _ in band]
    if not mean and not going:
        return None
    tip = f"{row}: unfinished"
    if mean:
        seeds = plural(len(done), "seed")
        tip = f"{row}: {mean[-1][1]:.2f} % {key[0]} top-1 after epoch {mean[-1][0]:g}, {seeds}"
    thin = [(f"{row}, seed {run.seed}", run.curves[key]) for run in done]
    edges = [(epoch, value - spread, value + spread) for epoch, value, spread in band] if len(done) > 1 else []
    return Line(row, mean, style, tip, table.rows.index(row), thin if len(done) > 1 else [], going, edges)


def taught_by(here: list[tuple[str, list[RunFiles]]]) -> float | None:
    """Return the accuracy of the teacher that all runs share; None if there are several, or none."""
    tops = {
        round(float(top), 4)
        for _, runs in here
        for run in runs
        if isinstance(top := run.result.get("teacher_top1"), int | float)
    }
    return tops.pop() if len(tops) == 1 else None


def floor_of(curves: Sequence[Sequence[Point]]) -> float | None:
    """Return the start of the y axis that keeps the end of training legible; None for the natural range. The first
    epochs rise from chance, and would compress the important part into the topmost tenth."""
    values = sorted(y for points in curves for _, y in points)
    if len(values) < 10:
        return None
    low, high, start = values[0], values[-1], values[len(values) // 6]
    if high - start > 0.6 * (high - low):
        return None
    step = 5 if high - start > 10 else 1
    return float(math.floor((start - 0.1 * (high - start)) / step) * step)


def cost_charts(table: Table, places: Places, styles: dict[str, str], known: KnownPlaces | None = None) -> list[Figure]:
    """Return accuracy over parameters, FLOPs and training speed for each data set: a mark for each place of the
    table, and for size and FLOPs one for each teacher."""
    datasets = list(dict.fromkeys(entry.dataset for entry in table.filled() if entry.runs))
    figures = []
    for dataset in datasets:
        title = f"{dataset}: top-1 over " if len(datasets) > 1 else "Top-1 over "
        for key, axis, unit, cheaper in COSTS:
            marks = marks_of(table, places, styles, dataset, key)
            marks = [*teacher_marks(known or {}, dataset, key), *marks] if marks else []
            if not marks or (len(marks) == len(datasets) == 1):  # a single run has nothing to compare with
                continue
            chart = scatter(
                marks, (axis, "top-1, %"), f"{title}{axis}", cheaper, lambda cost, unit=unit: f"{cost:,.0f} {unit}"
            )
            where = f" of {dataset}" if len(datasets) > 1 else ""
            same = f"All runs{where} have {short(marks[0].x)} {unit}."
            figures.append(Figure(chart, f"{title}{axis}" if chart else same))
    return figures


def teacher_marks(known: KnownPlaces, dataset: str, key: str) -> list[Mark]:
    """Return a mark for each teacher of known size and accuracy."""
    found: dict[tuple[str, float], list[float]] = {}
    for place in known.values():
        cost = getattr(place.teacher, key, None) if place.entry.dataset == dataset else None
        tops = [top for one in place.results.values() if isinstance(top := one.get("teacher_top1"), int | float)]
        if place.teacher is not None and cost and tops:
            found.setdefault((place.teacher.name, cost), []).extend(tops)
    return [
        Mark(name, cost, sum(tops) / len(tops), "base", f"teacher {name}: {sum(tops) / len(tops):.2f} %")
        for (name, cost), tops in found.items()
    ]


def marks_of(table: Table, places: Places, styles: dict[str, str], dataset: str, key: str) -> list[Mark]:
    """Return a mark for each place of this data set with known costs; coloured ones last, to be in front."""
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
