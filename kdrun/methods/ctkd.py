"""Curriculum temperature."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import reverse_gradient
from kdrun.methods.losses import hard_label_loss, kl_divergence
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

THETA = 1.0  # initial theta in the authors' code; the parameter is the offset from it


def temperature_of(
    theta: Tensor, ramp: float | Tensor, *, temperature_start: float, temperature_range: float
) -> Tensor:
    """Return T = start + range·sigmoid(1 + theta). Its gradient reaches theta multiplied by -ramp: descent for the
    student is ascent for T (Li et al. 2023, arXiv:2211.16231). theta starts at 0, where weight decay leaves it at
    ramp 0."""
    return temperature_start + temperature_range * torch.sigmoid(THETA + reverse_gradient(theta, ramp))


def cosine_ramp(epoch: int, ramp_epochs: int) -> float:
    """Return a ramp from 0 at epoch 0 to 1 at `ramp_epochs`, rising as (1 - cos)/2."""
    return 0.5 * (1 - math.cos(math.pi * min(epoch / ramp_epochs, 1.0))) if ramp_epochs else 1.0


class CTKD(Method):
    """Trains the temperature adversarially against the student, weakly at first, so that the task becomes harder.

    Paper: Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
        arXiv:2211.16231, its global temperature.

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight T^2 mean_n KL(softmax(z_t / T) || softmax(z_s / T))
        T = temperature_start + temperature_range sigmoid(1 + theta),   theta <- theta + lr ramp(e) dL/dtheta
        ramp(e) = (1 - cos(pi min(e / ramp_epochs, 1))) / 2,   e from 0

    Hyperparameters:
        temperature_start: least T. 1 in the paper.
        temperature_range: T stays below start + range. 20 in the paper.
        ramp_epochs: epochs over which the reversed gradient grows from 0 to its full size. 10 in the paper.
        ce_weight: weight of the hard-label term. 0.1 in the authors' CIFAR-100 scripts.
        kd_weight: weight of the soft term, which carries T^2. 0.9 there.

    Disagreements:
        The authors' code counts epochs from 1, so that theta moves a little (0.024 of its gradient) in the first epoch;
        here the ramp starts at 0. T starts at 15.6 in both; their weight decay pulls it to 11, here to where it
        started, which is small compared to the gradient. The paper's per-sample temperature is not implemented.
    """

    batch_terms = "sample"
    takes_mixed = True
    exceptions: ClassVar[dict[str, str]] = {
        "first step moves all": "the ramp is 0 in the first epoch: theta stands still"
    }

    def __init__(
        self,
        *,
        temperature_start: float,
        temperature_range: float,
        ramp_epochs: int,
        ce_weight: float,
        kd_weight: float,
    ):
        super().__init__()
        self.temperature_start, self.temperature_range = temperature_start, temperature_range
        self.ramp_epochs, self.ce_weight, self.kd_weight = ramp_epochs, ce_weight, kd_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.theta = nn.Parameter(torch.zeros(()))

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        temperature = temperature_of(
            self.theta,
            progress.number(lambda at: cosine_ramp(at.epoch, self.ramp_epochs)),
            temperature_start=self.temperature_start,
            temperature_range=self.temperature_range,
        )
        divergence = kl_divergence(student.logits / temperature, teacher.logits / temperature, 1.0)
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "kd": self.kd_weight * temperature**2 * divergence,
        }
