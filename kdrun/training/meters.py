"""Running sums of what training and evaluation report, kept on the device so that no step waits for the host."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.errors import RunError


def ranked(logits: Tensor) -> Tensor:
    """The five most likely classes [N, 5] (all where there are fewer) of logits [N, K], the first the prediction.

    In bf16 two logits are often equal: every measure must break the tie in the same way.
    """
    return logits.topk(min(5, logits.shape[1]), dim=1).indices


class EvalMeter:
    """top1, top5 (percent) and nll (nats, float32) over a data set."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, logits: Tensor, label: Tensor) -> None:
        """logits [N, K] float32, label [N]. top5 is top-K where there are fewer than five classes."""
        first = ranked(logits) == label[:, None]
        nll = F.cross_entropy(logits, label, reduction="sum")
        self.sums += torch.stack([first[:, 0].sum().double(), first.sum().double(), nll.double()])
        self.count += len(label)

    def result(self) -> dict[str, float]:
        top1, top5, nll = (self.sums / max(self.count, 1)).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "nll": nll}


class TrainMeter:
    """Sums of every loss term and of correct predictions over an epoch; finds the first step that was not finite."""

    CHECK_EVERY = 50  # steps between looks at the device; a CPU looks at every step

    def __init__(self, device: torch.device, steps: int):
        self.device = device
        self.names: list[str] = []
        self.history = torch.zeros(0)
        self.steps = steps
        self.sums = torch.zeros(0)
        self.correct = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0
        self.shown = 0  # samples whose logits were seen
        self.checked = 0

    def update(self, step: int, terms: dict[str, Tensor], logits: Tensor | None, label: Tensor) -> None:
        """terms: scalar tensors; logits [N or more, K], the first N of the usual view, or
        None where the method shows none. Raises RunError if not finite."""
        if not self.names:
            self.names = list(terms)
            self.sums = torch.zeros(len(terms), dtype=torch.float64, device=self.device)
        if self.history.numel() == 0:
            self.history = torch.zeros(self.steps, len(terms), device=self.device)
            self.checked = step
        values = torch.stack([terms[name].detach().float() for name in self.names])
        self.history[step] = values
        self.sums += values.double() * len(label)
        if logits is not None:
            self.shown += len(label)
            self.correct += (logits[: len(label)].argmax(dim=1) == label).sum()
        self.count += len(label)
        if self.device.type == "cpu" or step - self.checked >= self.CHECK_EVERY:
            self.check(step + 1)

    def check(self, until: int) -> None:
        """Raise RunError that names the first term and step before `until` that is not finite."""
        window = self.history[self.checked : until]
        finite = torch.isfinite(window)
        if not bool(finite.all()):
            row, column = (~finite).nonzero()[0].tolist()
            value = window[row, column].item()
            raise RunError(
                f"loss/{self.names[column]} is {value} at step {self.checked + row}: training cannot go on. "
                "Lower optimizer.lr, set optimizer.clip_norm, or try precision=fp32."
            )
        self.checked = until

    def result(self) -> dict[str, float]:
        """loss and its terms (means over samples), top1 on the training views where the method showed logits."""
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
