"""Variational information distillation."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import smaller_grid, stage_pairs
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

EPS = 1e-5  # least predicted variance


def vid_loss(mean: Tensor, teacher: Tensor, log_scale: Tensor) -> Tensor:
    """Return the negative Gaussian log-likelihood of the teacher's map without its constant, ½((μ - f_t)²/v + log v); a
    scalar.

    mean, teacher [N, C, H, W]; log_scale [C], v = log(1 + exp(log_scale)) + 1e-5. Averaged over all elements; it can
    be negative. Ahn et al. 2019, arXiv:1904.05835.
    """
    variance = (F.softplus(log_scale) + EPS).view(1, -1, 1, 1)
    return 0.5 * ((mean - teacher).square() / variance + variance.log()).mean()


class Regressor(nn.Module):
    """Regressor from a student map [N, C_s, H, W] to the predicted mean of the teacher's [N, C_t, H, W], with one
    variance per channel."""

    def __init__(self, in_channels: int, out_channels: int, initial_variance: float):
        super().__init__()
        widths = (in_channels, out_channels, out_channels, out_channels)
        convs = [nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)]
        self.mean = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        start = math.log(math.expm1(initial_variance - EPS))
        self.log_scale = nn.Parameter(torch.full((out_channels,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = smaller_grid(student, teacher)
        return vid_loss(self.mean(student), teacher, self.log_scale)


class VID(Method):
    """Maximises a variational lower bound on the information that student and teacher maps share.

    Paper: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
        arXiv:1904.05835.

    Equation:
        L = ce_weight CE(z_s, y) + vid_weight sum_stages mean [ (m(f_s) - f_t)^2 / v + log v ] / 2
        m: conv 1x1, ReLU, conv 1x1, ReLU, conv 1x1 (no biases, width C_t);   v = log(1 + exp(a_c)) + 1e-5 per channel

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in RepDistiller and mdistiller.
        vid_weight: 1 there, stages summed.
        initial_variance: v before training. 5 there.

    Disagreements:
        mdistiller keeps a_c in a plain list that no optimizer sees, so its variance never moves; kdrun trains it, as
        RepDistiller and the paper do. Maps of different grids are averaged to the smaller one, as there.
    """

    batch_terms = "sample"
    takes_mixed = True
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps"})

    def __init__(self, *, ce_weight: float, vid_weight: float, initial_variance: float):
        super().__init__()
        self.ce_weight, self.vid_weight, self.initial_variance = ce_weight, vid_weight, initial_variance

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = stage_pairs(student, teacher, "vid")
        self.regressors = nn.ModuleList(
            Regressor(student.maps[i][0], teacher.maps[j][0], self.initial_variance) for i, j in self.pairs
        )

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None and teacher.maps is not None
        stages = [
            cast(Tensor, regressor(student.maps[i], teacher.maps[j]))
            for regressor, (i, j) in zip(self.regressors, self.pairs, strict=True)
        ]
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "vid": self.vid_weight * torch.stack(stages).sum(),
        }
