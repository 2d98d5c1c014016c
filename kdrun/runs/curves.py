"""curves.png: what a run's metrics.csv says, as a picture."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

from kdrun.files import write_atomically
from kdrun.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": "#7a7a7a", "test": "#1f6f8b", "val": "#c46b1d"}


def draw_curves(run: RunDirectory, title: str) -> None:
    """Loss and accuracy over epochs, beside each other, one line per split: in training what is minimised, with its
    weighted terms, in evaluation the cross-entropy with the labels."""
    import matplotlib

    matplotlib.use("Agg")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # the first start announces its font cache
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    series: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for epoch, split, metric, value in run.read_metrics():
        epochs, values = series.setdefault((split, metric), ([], []))
        epochs.append(epoch)
        values.append(value)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    terms = [metric for split, metric in series if split == "train" and metric.startswith("loss/")]
    if ("train", "loss") in series:
        line(left, *series["train", "loss"], color="#222222", label="train: total")
    if len(terms) > 1:
        for metric in terms:
            label = f"train: {metric.removeprefix('loss/')}, weighted"
            line(left, *series["train", metric], linewidth=1, linestyle="--", label=label)
    for split in ("test", "val"):
        if (split, "nll") in series:
            line(left, *series[split, "nll"], color=COLOURS[split], label=f"{split}: cross-entropy")
    for split in ("train", "test", "val"):
        if (split, "top1") in series:
            epochs, values = series[split, "top1"]
            line(right, epochs, values, color=COLOURS[split], label=f"{split} (last {values[-1]:.2f} %)")
    left.set(xlabel="epoch", ylabel="loss, nats", title="loss")
    right.set(xlabel="epoch", ylabel="top-1 accuracy, %", title="accuracy")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    plt.close(figure)
    write_atomically(run.path / "curves.png", lambda file: file.write(picture.getvalue()))


def line(axes: Axes, epochs: list[int], values: list[float], **style: Any) -> None:
    """A line over epochs; a single epoch is a point, which a line would not show."""
    axes.plot(epochs, values, marker="o" if len(epochs) == 1 else None, **style)
