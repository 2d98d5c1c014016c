"""The bias grid as pictures, and writing of all of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.display import plural
from kdrun.evaluation.bias_grid import CLEAN, TEACHER, BiasEntry, Column, Spread
from kdrun.evaluation.transfer import LIMITS
from kdrun.files import write_text
from kdrun.reporting.bias import CONTROL, STAR, Grid, interval_text, spread_text, to_csv, to_markdown
from kdrun.runs.pictures import pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#222222"
ROWS = (0.24, 0.4)  # inches of a row in the upper and the lower panel
WIDEST = 5  # sets side by side


def draw_heat_map(grid: Grid, column: Column) -> Figure:
    """Draw two panels: accuracy kept on each set, and how far distillation shifted it, with the fraction of the
    distance to the teacher; many sets are split into blocks.

    Intervals are only in the tables, so that the figures stay legible in a column of a paper.
    """
    entries = grid.of(column.name)
    testsets = [name for name in column.testsets if name != CLEAN]
    labels = list(dict.fromkeys(row for row, _ in entries))
    blocks = in_blocks(testsets)
    width = max(1.6 + 0.78 * len(blocks[0]), 4.6)
    figure, panels = pyplot().subplots(
        2 * len(blocks),
        1,
        figsize=(width, (2.1 + sum(ROWS) * len(labels)) * len(blocks)),
        layout="constrained",
        height_ratios=ROWS * len(blocks),
        squeeze=False,
    )
    moved = [abs(entry.shift.value) for entry in entries.values() if entry.row != TEACHER and entry.shift.value]
    widest = max([10.0, *moved])  # the teacher may be much farther away than any student moves
    controls = {row for (row, _), entry in entries.items() if entry.control}
    names = [short_label(label) + (CONTROL if label in controls else "") for label in labels]
    for place, block in enumerate(blocks):
        top, bottom = panels[2 * place : 2 * place + 2, 0]
        draw_block(top, bottom, [[entries[label, name] for name in block] for label in labels], widest)
        for axes in (top, bottom):
            axes.set_xticks(range(len(block)), [folded(name) for name in block], fontsize=8, rotation=0)
            axes.set_yticks(range(len(labels)), names, fontsize=9)
        top.set_xticklabels([])
    seeds = max((entry.seeds for (row, _), entry in entries.items() if row != TEACHER), default=0)
    figure.suptitle(f"{column.name}, {plural(seeds, 'seed')}", fontsize=10)
    figure.supxlabel("* its interval (grid.csv) excludes 0; ¹ control", fontsize=8)
    return figure


def in_blocks(testsets: list[str]) -> list[list[str]]:
    """Split the sets into blocks of about equal length, none wider than a column of a paper."""
    count = max(-(-len(testsets) // WIDEST), 1)
    size = max(-(-len(testsets) // count), 1)
    return [testsets[start : start + size] for start in range(0, len(testsets), size)] or [[]]


def draw_block(top: Any, bottom: Any, cells: list[list[BiasEntry]], widest: float) -> None:
    """Draw both panels for some sets. widest: the end of the scale of shifts."""
    draw_panel(
        top,
        "accuracy kept on the set,\n% of that on clean images, above chance",
        ("viridis", 0.0, 100.0),
        [[(entry.kept.mean, spread_text(Spread(entry.kept.mean), 0)) for entry in row] for row in cells],
    )
    draw_panel(
        bottom,
        "shift from the independent student, points;\n= its fraction of the distance to the teacher",
        ("RdBu", -widest, widest),
        [[(entry.shift.value, shift_label(entry)) for entry in row] for row in cells],
    )


def folded(name: str) -> str:
    """Fold a test set's name into lines short enough for its column: noise, size=8, sigma=0.3."""
    words = name.replace(":", "\n").replace(",", "\n").replace("_", "_\n").split("\n")
    return "\n".join(word if len(word) <= 12 else f"{word[:11]}…" for word in words)


def short_label(label: str) -> str:
    return label if len(label) <= 18 else f"{label[:17]}…"


def draw_panel(
    axes: Any, heading: str, scale: tuple[str, float, float], cells: list[list[tuple[float | None, str]]]
) -> None:
    """Draw one heat map: cells of (value, its text), on a scale of (colour map, lowest, highest). Values beyond the
    scale get the colour of its end, shown by the colour bar's arrow."""
    colours, low, high = scale
    shown = [[float("nan") if value is None else min(max(value, low), high) for value, _ in row] for row in cells]
    known = [value for row in cells for value, _ in row if value is not None]
    beyond = (any(value < low for value in known), any(value > high for value in known))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[beyond]
    picture = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto")
    bar = axes.figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02, extend=extend)
    bar.ax.tick_params(labelsize=8)
    for row, line in enumerate(cells):
        for place, (value, text) in enumerate(line):
            dark = value is not None and is_dark(picture, shown[row][place])
            colour = "white" if dark else INK
            axes.text(place, row, text, ha="center", va="center", fontsize=9, color=colour, linespacing=0.95)
    axes.set_title(heading, fontsize=9)
    axes.tick_params(length=0)


def shift_label(entry: BiasEntry) -> str:
    """Return the shift, with a star if its interval excludes 0, and the transfer ratio if there is one."""
    text = interval_text(replace(entry.shift, low=None, high=None), 1) + (STAR if entry.shift.beyond else "")
    if entry.transfer.value is not None:
        share = interval_text(replace(entry.transfer, low=None, high=None), 2, LIMITS)
        text += f"\n{share}" if share[0] in "≤≥" else f"\n= {share}"
    return text.replace("-", "−")


def is_dark(picture: Any, value: float) -> bool:
    red, green, blue, _ = picture.cmap(picture.norm(value))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def write_grid(grid: Grid, folder: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write grid.csv, grid.md and a picture for each column; return their paths. formats: of pictures, in addition
    to PNG."""
    write_text(folder / "grid.csv", to_csv(grid))
    write_text(folder / "grid.md", to_markdown(grid))
    written = [folder / "grid.csv", folder / "grid.md"]
    for place, column in enumerate(grid.columns):
        target = folder / ("grid.png" if len(grid.columns) == 1 else f"grid-{place + 1}.png")
        written += write_figure(draw_heat_map(grid, column), target, formats)
    return written
