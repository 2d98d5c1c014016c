"""Fidelity: how closely a student follows its teacher, regardless of the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrun.methods.losses import kl_of_samples
from kdrun.training.meters import ranked


class FidelityMeter:
    """Meter of KL(teacher ‖ student), nats at temperature 1, and of agreement, the percentage of images on which
    both predict the same class (Stanton, Izmailov, Kirichenko, Alemi, Wilson, "Does Knowledge Distillation Really
    Work?", NeurIPS 2021, arXiv:2106.05945)."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Add logits [N, K] of student and teacher for the same images."""
        divergence = kl_of_samples(student.double(), teacher.double(), 1.0).sum()
        same = (ranked(student)[:, 0] == ranked(teacher)[:, 0]).sum()
        self.sums += torch.stack([divergence, same.double()])
        self.count += len(student)

    def result(self) -> dict[str, float]:
        """Return kl_teacher in nats, and agreement in percent."""
        divergence, same = (self.sums / max(self.count, 1)).tolist()
        return {"kl_teacher": divergence, "agreement": 100 * same}
