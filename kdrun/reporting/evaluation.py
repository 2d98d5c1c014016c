"""Output files of `kdrun eval`: a JSON of all results, the confusion counts as CSV, and three pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.files import spreadsheet_safe, write_json, write_text
from kdrun.runs.pictures import pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdrun.evaluation.calibration import Calibration
    from kdrun.evaluation.classification import Classification
    from kdrun.evaluation.examine import Findings, Similarity

NAMED = 20  # largest number of classes whose names and counts fit into a confusion matrix
INK, BLUE, RED = "#222222", "#1f6f8b", "#c0392b"


def write_findings(
    folder: Path,
    name: str,
    title: str,
    found: Findings,
    classes: list[str],
    about: dict[str, Any],
    formats: Sequence[str] = (),
) -> list[Path]:
    """Write NAME.json, NAME_confusion.csv and the pictures; return their paths. title: of the pictures; formats: in
    addition to PNG."""
    write_json(folder / f"{name}.json", as_json(found, classes, about))
    write_text(folder / f"{name}_confusion.csv", confusion_csv(found.classification, classes))
    written = [folder / f"{name}.json", folder / f"{name}_confusion.csv"]
    pictures = {
        "reliability": draw_reliability(found.calibration, title),
        "confusion": draw_confusion(found.classification, classes, title),
    }
    if found.similarity is not None:
        pictures["cka"] = draw_similarity(found.similarity, f"{title}, teacher {about['teacher']}")
    for kind, picture in pictures.items():
        written += write_figure(picture, folder / f"{name}_{kind}.png", formats)
    return written


def as_json(found: Findings, classes: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """Return the results in percent, nats and counts. cka: rows are the student's stages, columns the teacher's."""
    table = found.classification
    per_class = [
        {
            "class": classes[label],
            "support": table.support[label],
            "precision": table.precision[label],
            "recall": table.recall[label],
            "f1": table.f1[label],
        }
        for label in range(len(classes))
    ]
    macro = {f"{name}_macro": value for name, value in table.macro.items()}
    similarity = None if found.similarity is None else asdict(found.similarity)
    return {
        "schema": 1,
        **found.scores,
        **macro,
        **found.cost,
        **about,
        "samples": found.samples,
        "calibration": asdict(found.calibration),
        "cka": similarity,
        "per_class": per_class,
    }


def confusion_csv(table: Classification, classes: list[str]) -> str:
    """Return the confusion counts as CSV: a row for each class, a column for each prediction."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *spreadsheet_safe(classes)])
    writer.writerows(spreadsheet_safe([name, *row]) for name, row in zip(classes, table.confusion, strict=True))
    return text.getvalue()


def new_figure(rows: int, size: tuple[float, float], **settings: Any) -> tuple[Any, Any]:
    """Return a matplotlib figure with `rows` axes, drawn without a screen."""
    return pyplot().subplots(rows, 1, figsize=size, layout="constrained", **settings)


def draw_reliability(found: Calibration, title: str) -> Figure:
    """Draw the accuracy in each confidence bin against the diagonal, and the number of images in each bin."""
    figure, (top, bottom) = new_figure(2, (5.4, 6), height_ratios=(3, 1), sharex=True)
    bins = len(found.count)
    width = 100 / bins
    middle = [width * (place + 0.5) for place in range(bins)]
    filled = [place for place in range(bins) if found.count[place]]
    top.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="perfect calibration")
    top.bar(
        [middle[place] for place in filled],
        [found.accuracy[place] for place in filled],
        width=0.94 * width,
        color=BLUE,
        label="accuracy",
    )
    top.plot(
        [found.confidence[place] for place in filled],
        [found.accuracy[place] for place in filled],
        "o",
        color=RED,
        markersize=4,
        clip_on=False,
        label="at the bin's mean confidence",
    )
    top.set(ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 100))
    bottom.set_title(
        f"ECE {found.ece:.2f} % in {bins} bins: confidence {found.mean_confidence:.2f} %, accuracy "
        f"{found.mean_accuracy:.2f} %",
        fontsize=9,
    )
    top.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)  # above all bars
    total = max(sum(found.count), 1)
    bottom.bar(middle, [100 * count / total for count in found.count], width=0.94 * width, color="#7a7a7a")
    bottom.set(xlabel="confidence (largest probability), %", ylabel="images, %")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=9)
    return figure


def draw_confusion(table: Classification, classes: list[str], title: str) -> Figure:
    """Draw the fraction of each class's images per prediction, in colour; with names and counts if they fit."""
    count = len(classes)
    named = count <= NAMED
    side = max(5.0, 1.6 + 0.55 * count) if named else 8.0
    figure, axes = new_figure(1, (side + 1.8, side))  # room for the labels and the scale
    shares = [
        [100 * value / max(images, 1) for value in row]
        for row, images in zip(table.confusion, table.support, strict=True)
    ]
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, ax=axes, label="of the class's images, %", fraction=0.046)
    if named:
        short = [name if len(name) <= 14 else name[:13] + "…" for name in classes]
        axes.set_xticks(range(count), short, rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(count), short, fontsize=9)
        for row in range(count):
            for column in range(count):
                if table.confusion[row][column]:
                    axes.text(
                        column,
                        row,
                        f"{table.confusion[row][column]:,}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if shares[row][column] > 55 else INK,
                    )
    axes.set(xlabel="predicted" if named else "predicted, class number", ylabel="class" if named else "class number")
    axes.set_title(title, fontsize=9)
    return figure


def draw_similarity(found: Similarity, title: str) -> Figure:
    """Draw the linear CKA of every pair of stages: the student's deepest stage at the top, the teacher's at the
    right."""
    rows, columns = len(found.student), len(found.teacher)
    figure, axes = new_figure(1, (max(5.0, 2.2 + 0.8 * columns), max(3.6, 1.6 + 0.7 * rows)))
    values = [[float("nan") if value is None else value for value in row] for row in found.values]
    picture = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
    figure.colorbar(picture, ax=axes, label="linear CKA")
    axes.set_xticks(range(columns), found.teacher)
    axes.set_yticks(range(rows), found.student)
    for row in range(rows):
        for column in range(columns):
            value = found.values[row][column]
            axes.text(
                column,
                row,
                "–" if value is None else f"{value:.2f}",
                ha="center",
                va="center",
                color=INK if value is None or value > 0.6 else "white",
                fontsize=9,
            )
    axes.set(xlabel="teacher's stage", ylabel="student's stage")
    axes.set_title(title, fontsize=9)
    return figure
