"""Meters: running sums of the values that training and evaluation report, on the device, so that no step waits for
the host."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.errors import RunError
from kdrun.shares import Share
from kdrun.training import ranks
from kdrun.training.joint import totals


def ranked(logits: Tensor) -> Tensor:
    """Return the five most likely classes [N, 5] (all if there are fewer) of logits [N, K]; the first is the
    prediction.

    In bf16 two logits are often equal, and every measure must break ties in the same way.
    """
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


class EvalMeter:
    """Meter of top1, top5 (percent) and nll (nats, float32) over a data set."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add logits [N, K] float32 with label [N]. top5 is top-K if there are fewer than five classes."""
        first = ranked(logits) == label[:, None]
        nll = F.cross_entropy(logits, label, reduction="sum")
        self.sums += torch.stack([first[:, 0].sum().double(), first.sum().double(), nll.double()])
        self.count += len(label)

    def join(self) -> None:
        """Sum the results of all processes."""
        *sums, count = ranks.now.total(torch.cat([self.sums, self.sums.new_tensor([self.count])])).unbind()
        self.sums, self.count = torch.stack(sums), int(count)

    def result(self) -> dict[str, float]:
        top1, top5, nll = (self.sums / max(self.count, 1)).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "nll": nll}


class TrainMeter:
    """Meter of every loss term and of correct predictions over an epoch; it also finds the first step that was not
    finite."""

    CHECK_EVERY = 50  # steps between checks of the device's values; on a CPU every step is checked

    def __init__(self, device: torch.device, steps: int):
        self.device = device
        self.names: list[str] = []
        self.history = torch.zeros(0)
        self.steps = steps
        self.step = -1  # the last started step
        # The same for kernels: a plain number would keep the value of the step that a CUDA graph recorded.
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.sums = torch.zeros(0)
        self.correct = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0
        self.shown = 0  # samples with logits
        self.checked = 0
        self.shows = False  # True if the method provides logits

    def restart(self) -> None:
        """Start another epoch in the same memory."""
        self.step, self.count, self.shown, self.checked = -1, 0, 0, 0
        for total in (self.row, self.sums, self.correct):
            total.zero_()

    def update(self, step: int, terms: dict[str, Tensor], logits: Tensor | None, label: Tensor) -> None:
        """Add a step. Raises RunError if it is not finite."""
        self.begin(step)
        self.add(terms, logits, label)
        self.end(len(label))

    def begin(self, step: int) -> None:
        """Set the number of the next step."""
        if step != self.step + 1 and self.device.type != "cpu":
            self.row.fill_(step)
        if self.history.numel() == 0:
            self.checked = step
        self.step = step

    def add(self, terms: dict[str, Tensor], logits: Tensor | None, label: Tensor, share: Share | None = None) -> None:
        """Add a step's results, without waiting for a GPU.

        terms: scalar tensors; logits: [N or more, K], the first N of the usual view, or None if the method provides
        none; share: with several processes, each of which adds the results of all. Raises RunError on a CPU if a term
        is not finite.
        """
        if not self.names:
            self.names = list(terms)
            self.sums = torch.zeros(len(terms), dtype=torch.float64, device=self.device)
        if self.history.numel() == 0:
            self.history = torch.zeros(self.steps, len(terms), device=self.device)
        values = torch.stack([terms[name].detach().float() for name in self.names])
        right = None if logits is None else (logits[: len(label)].argmax(dim=1) == label).sum()
        count = len(label)
        if share is not None:
            values, right = totals(values, values.new_zeros(()) if right is None else right, share)
            count = share.total
        if self.device.type == "cpu":
            self.history[self.step] = values
        else:
            self.history.index_copy_(0, self.row, values[None])
            self.row += 1
        self.sums += values.double() * count
        self.shows = logits is not None
        if right is not None:
            self.correct += right
        if self.device.type == "cpu":
            self.check(self.step + 1)

    def end(self, samples: int) -> None:
        """Count the samples of the step. Raises RunError, at intervals, if one was not finite."""
        self.count += samples
        self.shown += samples * self.shows
        if self.step - self.checked >= self.CHECK_EVERY:
            self.check(self.step + 1)

    def check(self, until: int) -> None:
        """Raise RunError with the first term and step before `until` that is not finite."""
        window = self.history[self.checked : until]
        finite = torch.isfinite(window)
        if not bool(finite.all()):
            row, column = (~finite).nonzero()[0].tolist()
            value = window[row, column].item()
            raise RunError(
                f"loss/{self.names[column]} is {value} at step {self.checked + row}: training cannot continue. "
                "Lower optimizer.lr, set optimizer.clip_norm, or try precision=fp32."
            )
        self.checked = until

    def result(self) -> dict[str, float]:
        """Return loss and its terms (means over samples), and top1 on the training views if the method provided
        logits."""
        means = (self.sums / max(self.count, 1)).tolist()
        found = {"loss": sum(means)} | {f"loss/{name}": value for name, value in zip(self.names, means, strict=True)}
        return found | ({"top1": 100 * self.correct.item() / self.shown} if self.shown else {})

    def state(self) -> dict[str, Any]:
        return {
            "names": self.names,
            "sums": self.sums.cpu(),
            "correct": self.correct.cpu(),
            "count": self.count,
            "shown": self.shown,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.names, self.count = list(state["names"]), int(state["count"])
        self.shown = int(state["shown"])
        self.sums, self.correct = state["sums"].to(self.device), state["correct"].to(self.device)
