"""curves.png: what a run's metrics.csv says, as a picture."""

from __future__ import annotations

import io
import logging

from kdrun.checkpoint import write_atomically
from kdrun.runs import RunDirectory

COLOURS = {"train": "#7a7a7a", "test": "#1f6f8b", "val": "#c46b1d"}


def draw_curves(run: RunDirectory, title: str) -> None:
    """Loss and accuracy over epochs, beside each other, one line per split."""
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
        left.plot(*series["train", "loss"], color="#222222", label="loss")
    if len(terms) > 1:
        for metric in terms:
            left.plot(*series["train", metric], linewidth=1, label=metric)
    for split in ("train", "test", "val"):
        if (split, "top1") in series:
            epochs, values = series[split, "top1"]
            marker = "o" if len(epochs) == 1 else None
            right.plot(epochs, values, color=COLOURS[split], marker=marker, label=f"{split} (last {values[-1]:.2f} %)")
    left.set(xlabel="epoch", ylabel="training loss, nats", title="loss and its weighted terms")
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
