"""Learning curves: a run's metrics.csv as the picture curves.png."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdrun.runs.directory import RunDirectory
from kdrun.runs.pictures import pyplot, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": "#7a7a7a", "test": "#1f6f8b", "val": "#c46b1d"}
FLATTENED = 10  # times the median; a positive loss above this would flatten the curve of all others
Series = dict[tuple[str, str], tuple[list[int], list[float]]]


def draw_curves(run: RunDirectory, title: str, formats: Sequence[str] = (), teacher: float | None = None) -> None:
    """Draw loss and accuracy over epochs side by side, one line per split.

    In training the minimised loss with its weighted terms, in evaluation the cross-entropy with the labels. teacher:
    its test accuracy, drawn as a line; formats: in addition to PNG.
    """
    from matplotlib.ticker import MaxNLocator

    series = series_of(run)
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw_losses(left, series)
    for split in ("train", "test", "val"):
        if (split, "top1") in series:
            epochs, values = series[split, "top1"]
            line(right, epochs, values, color=COLOURS[split], label=f"{split} (last {values[-1]:.2f} %)")
    if teacher is not None:
        right.axhline(teacher, color="#222222", linewidth=1, linestyle=":", label=f"teacher, test ({teacher:.2f} %)")
    left.set(xlabel="epoch", ylabel="loss, nats", title="loss")
    right.set(xlabel="epoch", ylabel="top-1 accuracy, %", title="accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    write_figure(figure, run.path / "curves.png", formats)


def series_of(run: RunDirectory) -> Series:
    """Return (split, metric) -> epochs and values."""
    series: Series = {}
    for epoch, split, metric, value in run.read_metrics():
        epochs, values = series.setdefault((split, metric), ([], []))
        epochs.append(epoch)
        values.append(value)
    return series


def draw_losses(axes: Axes, series: Series) -> None:
    """Draw the losses, on a logarithmic axis if one value would flatten all others."""
    shown: list[float] = []
    terms = [metric for split, metric in series if split == "train" and metric.startswith("loss/")]
    if ("train", "loss") in series:
        line(axes, *series["train", "loss"], color="#222222", label="train: total")
        shown += series["train", "loss"][1]
    if len(terms) > 1:
        for metric in terms:
            label = f"train: {metric.removeprefix('loss/')}, weighted"
            line(axes, *series["train", metric], linewidth=1, linestyle="--", label=label)
    for split in ("test", "val"):
        if (split, "nll") in series:
            line(axes, *series[split, "nll"], color=COLOURS[split], label=f"{split}: cross-entropy")
            shown += series[split, "nll"][1]
    if is_flattened(shown):
        axes.set_yscale("log")


def is_flattened(values: Sequence[float]) -> bool:
    """Return True if the largest of positive values is so far above the others that a linear axis would flatten
    them."""
    if len(values) < 4 or min(values) <= 0:
        return False
    ordered = sorted(values)
    return ordered[-1] > FLATTENED * ordered[len(ordered) // 2]


def line(axes: Axes, epochs: list[int], values: list[float], **style: Any) -> None:
    """Draw a line over epochs; a single epoch as a point, since a line would not show it."""
    axes.plot(epochs, values, marker="o" if len(epochs) == 1 else None, **style)
