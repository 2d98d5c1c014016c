"""Precision, recall and F1 of classes, and the confusions between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.training.meters import ranked


@dataclass(frozen=True)
class Classification:
    """Classification measures. confusion [K, K]: images of class (row) that were predicted as class (column);
    precision, recall, f1 [K]: percent, 0 for a class without predictions or images; macro: their means over the
    classes that occur among images or predictions."""

    confusion: list[list[int]]
    precision: list[float]
    recall: list[float]
    f1: list[float]
    macro: dict[str, float]

    @property
    def support(self) -> list[int]:
        """Return the number of images of each class."""
        return [sum(row) for row in self.confusion]


class ConfusionMeter:
    """Meter of the counts of (class, predicted class) over a data set."""

    def __init__(self, num_classes: int, device: torch.device):
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add logits [N, K] with label [N]."""
        self.counts += torch.bincount(label * self.num_classes + ranked(logits)[:, 0], minlength=len(self.counts))

    def result(self) -> Classification:
        """Return precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN)."""
        confusion = self.counts.view(self.num_classes, self.num_classes).cpu()
        right, images, predicted = confusion.diagonal().double(), confusion.sum(1).double(), confusion.sum(0).double()
        occurs = images + predicted > 0
        found = {
            "precision": 100 * right / predicted.clamp(min=1),
            "recall": 100 * right / images.clamp(min=1),
            "f1": 200 * right / (images + predicted).clamp(min=1),
        }
        macro = {name: values[occurs].mean().item() if bool(occurs.any()) else 0.0 for name, values in found.items()}
        return Classification(
            confusion.tolist(), **{name: values.tolist() for name, values in found.items()}, macro=macro
        )
