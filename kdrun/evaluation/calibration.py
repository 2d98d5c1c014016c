"""Calibration: does a network's confidence match its accuracy?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.training.meters import ranked

BINS = 15  # of equal width, as in Guo et al. 2017


@dataclass(frozen=True)
class Calibration:
    """Calibration of a network. ece: percentage points; count [bins]: images whose confidence falls into each bin;
    confidence, accuracy [bins]: their means in percent, 0 for an empty bin."""

    ece: float
    count: list[int]
    confidence: list[float]
    accuracy: list[float]

    @property
    def mean_confidence(self) -> float:
        """Return the mean confidence over all images, in percent."""
        weighted = sum(count * value for count, value in zip(self.count, self.confidence, strict=True))
        return weighted / max(sum(self.count), 1)

    @property
    def mean_accuracy(self) -> float:
        weighted = sum(count * value for count, value in zip(self.count, self.accuracy, strict=True))
        return weighted / max(sum(self.count), 1)


class CalibrationMeter:
    """Meter of the expected calibration error, sum_b |b| / N · |accuracy(b) − confidence(b)|, over bins (m − 1) / M
    < confidence ≤ m / M (Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    arXiv:1706.04599)."""

    def __init__(self, device: torch.device, bins: int = BINS):
        self.bins = bins
        self.edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=device)[1:-1]
        self.sums = torch.zeros(3, bins, dtype=torch.float64, device=device)  # images, confidence, right

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add logits [N, K] with label [N]. Confidence is the largest softmax probability, in float64."""
        confidence, predicted = logits.double().softmax(dim=1).amax(dim=1), ranked(logits)[:, 0]
        place = torch.bucketize(confidence, self.edges)
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == label).double()])
        self.sums.index_add_(1, place, values)

    def result(self) -> Calibration:
        count, confidence, right = self.sums.cpu()
        gaps = (right - confidence).abs().sum() / count.sum().clamp(min=1)
        filled = count.clamp(min=1)
        return Calibration(
            100 * gaps.item(),
            count.long().tolist(),
            (100 * confidence / filled).tolist(),
            (100 * right / filled).tolist(),
        )
