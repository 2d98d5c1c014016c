"""Running sums of what training and evaluation report, kept on the device so that no step waits for the host."""

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

    def join(self) -> None:
        """Add up what all processes have found of their batches."""
        *sums, count = ranks.now.total(torch.cat([self.sums, self.sums.new_tensor([self.count])])).unbind()
        self.sums, self.count = torch.stack(sums), int(count)

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
        self.step = -1  # the last that was begun
        # The same where kernels read it: a plain number would stay that of the step which a CUDA graph recorded.
        self.row = torch.zeros(1, dtype=torch.long, device=device)
        self.sums = torch.zeros(0)
        self.correct = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0
        self.shown = 0  # samples whose logits were seen
        self.checked = 0
        self.shows = False  # whether the method shows logits

    def restart(self) -> None:
        """Begin another epoch in the same memory."""
        self.step, self.count, self.shown, self.checked = -1, 0, 0, 0
        for total in (self.row, self.sums, self.correct):
            total.zero_()

    def update(self, step: int, terms: dict[str, Tensor], logits: Tensor | None, label: Tensor) -> None:
        """Take in a step. Raises RunError if it is not finite."""
        self.begin(step)
        self.add(terms, logits, label)
        self.end(len(label))

    def begin(self, step: int) -> None:
        """Note which step comes next."""
        if step != self.step + 1 and self.device.type != "cpu":
            self.row.fill_(step)
        if self.history.numel() == 0:
            self.checked = step
        self.step = step

    def add(self, terms: dict[str, Tensor], logits: Tensor | None, label: Tensor, share: Share | None = None) -> None:
        """Add what a step found, without waiting for a GPU. terms: scalar tensors; logits [N or more, K], the first N
        of the usual view, or None where the method shows none; share: of several processes, of which each adds what
        all found. Raises RunError on a CPU if a term is not finite."""
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
        """Count the samples of the step. Raises RunError, now and then, if one was not finite."""
        self.count += samples
        self.shown += samples * self.shows
        if self.step - self.checked >= self.CHECK_EVERY:
            self.check(self.step + 1)

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
