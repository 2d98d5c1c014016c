"""Picture of `kdrun gradcam`: a row for each image, with the original and each network's heat map in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.reporting.evaluation import INK
from kdrun.runs.pictures import pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdrun.evaluation.cam_images import Images
    from kdrun.evaluation.cam_runs import CamSubject, Options

RIGHT, WRONG = "#1e7b34", "#c0392b"
CELL, HEAD, LINE, BAR = 1.25, 0.62, 0.2, 0.6  # inches: side of an image, column headings, a title's line, the scale
HEAT = "inferno"  # perceptually uniform, and darkest where the network does not look
NAME_LENGTH = 15


@dataclass(frozen=True)
class Column:
    """Column of one network: two lines of heading, its maps in [0, 1] [N, H, W], its predicted class [N], and the
    probability [N] and label [N] of the class that the map explains."""

    head: tuple[str, str]
    maps: np.ndarray
    predicted: np.ndarray
    shown: np.ndarray
    probability: np.ndarray


def draw_panel(
    pixels: np.ndarray, labels: np.ndarray, classes: list[str], columns: Sequence[Column], title: str
) -> Figure:
    """Draw the picture. pixels: uint8 [N, H, W, 3]; labels [N], -1 if unknown. Titles of correct predictions are
    green with a tick, of wrong ones red with a cross."""
    rows, width = len(pixels), len(columns) + 1
    size = (max(width * (CELL + 0.12), 4.6) + BAR, rows * (CELL + LINE) + HEAD + 0.55)
    figure = pyplot().figure(figsize=size)
    left, top = (size[0] - BAR - width * (CELL + 0.12)) / 2, size[1] - 0.28 - HEAD
    figure.text(0.5, 1 - 0.12 / size[1], title, ha="center", va="top", fontsize=9, color=INK)
    for place in range(width):
        x = left + place * (CELL + 0.12) + 0.06
        head = ("image", "") if place == 0 else columns[place - 1].head
        for number, text in enumerate(head):
            font = {"fontsize": 8 if len(text) < 18 else 6, "fontweight": "normal" if number else "bold"}
            figure.text(
                (x + CELL / 2) / size[0],
                (top + 0.34 - 0.17 * number) / size[1],
                short(text, 25),
                ha="center",
                va="bottom",
                color=INK,
                **font,
            )
        for row in range(rows):
            y = top - (row + 1) * (CELL + LINE) + 0.04
            axes = figure.add_axes((x / size[0], y / size[1], CELL / size[0], CELL / size[1]))
            axes.axis("off")
            axes.imshow(pixels[row], interpolation="bicubic")
            if place == 0:
                known = labels[row] >= 0
                caption(axes, short(classes[labels[row]], NAME_LENGTH + 4) if known else "class unknown", INK)
            else:
                draw_cell(axes, columns[place - 1], row, int(labels[row]), classes)
    draw_scale(figure, size, top)
    below = "✓ right, ✗ wrong; each map is scaled to its own largest value"
    figure.text(0.5, 0.1 / size[1], below, ha="center", va="bottom", fontsize=7, color="#666666")
    return figure


def draw_scale(figure: Figure, size: tuple[float, float], top: float) -> None:
    """Draw the colour bar next to the first rows."""
    height = min(top - 0.4, 2.2)
    box = ((size[0] - BAR + 0.12) / size[0], (top - height) / size[1], 0.11 / size[0], height / size[1])
    axes = figure.add_axes(box)
    axes.imshow(np.linspace(1, 0, 128)[:, None], cmap=HEAT, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_xticks([])
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=6, length=2)
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("evidence for the class", fontsize=6.5)


def draw_cell(axes: Any, column: Column, row: int, label: int, classes: list[str]) -> None:
    """Draw the heat map over the image, stronger where the network looks, so that the image stays visible elsewhere."""
    heat = column.maps[row]
    axes.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.3 + 0.35 * heat, interpolation="bicubic")
    colour = INK if label < 0 else RIGHT if column.predicted[row] == label else WRONG
    mark = "" if label < 0 else "✓ " if column.predicted[row] == label else "✗ "
    name = short(classes[column.shown[row]], NAME_LENGTH)
    text = f"{mark}{name}, {100 * column.probability[row]:.0f} %"
    if column.predicted[row] != column.shown[row]:  # the colour refers to the prediction, so name it
        said = short(classes[column.predicted[row]], 9)
        text = f"{mark}{short(name, 9)}, {100 * column.probability[row]:.0f} %, predicts {said}"
    caption(axes, text, colour)
    if not heat.any():
        axes.text(
            0.5,
            0.5,
            "no evidence\nfor the class",
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=7,
            color="white",
            bbox={"facecolor": INK, "alpha": 0.7, "edgecolor": "none"},
        )


def caption(axes: Any, text: str, colour: str) -> None:
    font = 7.5 if len(text) < 22 else 5.5
    axes.text(0.5, 1.015, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=font, color=colour)


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def write_panel(picture: Path, every: list[CamSubject], images: Images, shown: int, options: Options) -> None:
    """Write the picture of the first `shown` images, sorted by class."""
    labels = images.labels[:shown]
    order = np.argsort(labels, kind="stable") if (labels >= 0).all() else np.arange(shown)
    columns = []
    for watched in every:
        parts = (watched.maps, watched.predicted, watched.shown, watched.probability)
        columns.append(Column(watched.head, *(part[order] for part in parts if part is not None)))
    data = every[0].data
    explained = {"predicted": "each network's predicted class", "true": "the true class"}.get(
        options.target, f"the class {options.target}"
    )
    name = "Grad-CAM" if options.method == "gradcam" else options.method
    place = data.config.dataset.name if options.images.isdecimal() else "own files"
    title = f"{name} for {explained}, {place}"
    panel = draw_panel(images.pixels[order], labels[order], data.splits.class_names, columns, title)
    write_figure(panel, picture, options.figures)
