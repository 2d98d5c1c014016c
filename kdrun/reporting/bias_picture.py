"""The bias grid as a picture, and all of its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from kdrun.evaluation.bias_grid import CLEAN, TEACHER, BiasEntry, Column, Spread
from kdrun.evaluation.transfer import LIMITS
from kdrun.files import write_atomically, write_text
from kdrun.reporting.bias import CONTROL, Grid, interval_text, spread_text, to_csv, to_markdown
from kdrun.reporting.evaluation import as_png, new_figure

INK = "#222222"


def draw_heat_map(grid: Grid, column: Column) -> bytes:
    """Two panels: accuracy kept on each set, and how far it was shifted, with the share of the way to the teacher."""
    entries = grid.of(column.name)
    testsets = [name for name in column.testsets if name != CLEAN]
    labels = list(dict.fromkeys(row for row, _ in entries))
    height = 1.9 + 0.5 * len(labels)
    figure, _ = new_figure(1, (max(3.2 + 2.1 * len(testsets), 10.5), height))  # the headings need as much
    figure.clear()
    left, right = figure.subplots(1, 2, sharey=True)
    cells = [[entries[label, name] for name in testsets] for label in labels]
    moved = [abs(entry.shift.value) for row in cells for entry in row if entry.row != TEACHER and entry.shift.value]
    widest = max([10.0, *moved])  # the teacher's own way may be far longer than any student's
    draw_panel(
        left,
        "accuracy kept on the set, % of that on clean images, both above chance",
        ("viridis", 0.0, 100.0),
        [[(entry.kept.mean, spread_text(Spread(entry.kept.mean), 1)) for entry in row] for row in cells],
    )
    draw_panel(
        right,
        "shift from the independent student, points; = its share of the way to the teacher",
        ("RdBu", -widest, widest),
        [[(entry.shift.value, shift_label(entry)) for entry in row] for row in cells],
    )
    for axes in (left, right):
        axes.set_xticks(range(len(testsets)), [name.replace(":", "\n") for name in testsets], fontsize=8, rotation=0)
    controls = {row for (row, _), entry in entries.items() if entry.control}
    left.set_yticks(
        range(len(labels)), [label + (CONTROL if label in controls else "") for label in labels], fontsize=9
    )
    seeds = max((entry.seeds for (row, _), entry in entries.items() if row != TEACHER), default=0)
    figure.suptitle(
        f"{grid.title}: {column.name}, {seeds} seed{'s' if seeds != 1 else ''}; brackets: intervals "
        "that hold together in 95 % of experiments; * : excludes 0; ¹ : control",
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


def shift_label(entry: BiasEntry) -> str:
    """The shift above its interval, and the transfer ratio where there is one."""
    text = interval_text(entry.shift, 1).replace(" [", "\n[")
    if entry.transfer.value is None:
        return text
    return f"{text}\n= {interval_text(replace(entry.transfer, low=None, high=None), 2, LIMITS)}"


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
