"""Relational knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.features import need_pooled
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

EPS = 1e-12  # floor of a squared distance


def rkd_loss(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return (distance loss, angle loss), smooth L1 (beta 1) averaged over all N² pairs and N³ triples.

    student [N, D_s], teacher [N, D_t]; widths may differ. Park et al. 2019, arXiv:1904.05068, as in
    mdistiller's RKD. Samples that coincide are 1e-6 apart and have no direction, so their gradients stay finite.
    """
    distance_s, angle_s = _relations(student)
    distance_t, angle_t = _relations(teacher)
    return F.smooth_l1_loss(distance_s, distance_t), F.smooth_l1_loss(angle_s, angle_t)


def _relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relations of x [N, D]: distances over their mean [N, N], and cosines [N, N, N] of the angles at i
    between j and k."""
    n = len(x)
    difference = x[None] - x[:, None]
    square = difference.square().sum(dim=2)
    apart = 1.0 - torch.eye(n, device=x.device)
    distance = square.clamp(min=EPS).sqrt() * apart
    mean = distance.sum() / max(n * (n - 1), 1)
    inverse = torch.where(square > EPS, square.clamp(min=EPS).rsqrt(), 0.0)
    direction = difference * inverse[:, :, None]
    return distance / mean.clamp(min=EPS), direction @ direction.transpose(1, 2)


class RKD(Method):
    """Matches the distances and angles between the samples of a batch.

    Paper: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068.

    Equation:
        L = ce_weight CE(z_s, y) + distance_weight mean_ij l(d_s, d_t) + angle_weight mean_ijk l(a_s, a_t)
        d = |f_i - f_j| / mean |f_i - f_j|,   a = <e_ij, e_ik>,   e_ij = (f_j - f_i) / |f_j - f_i|
        f: pooled vectors; l: smooth L1, beta 1

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in RepDistiller and mdistiller.
        distance_weight: 25 there and in the paper.
        angle_weight: 50 there and in the paper.

    Disagreements:
        Public code gets squared distances from |a|^2 + |b|^2 - 2ab, whose rounding decides how far apart equal samples
        are, and sends a gradient of 1e12 through their direction; kdrun subtracts first and gives them none.
    """

    batch_terms = "batch"
    takes_mixed = True
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})

    def __init__(self, *, ce_weight: float, distance_weight: float, angle_weight: float):
        super().__init__()
        self.ce_weight, self.distance_weight, self.angle_weight = ce_weight, distance_weight, angle_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        need_pooled(student, "student", "rkd")
        need_pooled(teacher, "teacher", "rkd")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.pooled is not None and teacher.pooled is not None
        distance, angle = rkd_loss(student.pooled, teacher.pooled)
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "distance": self.distance_weight * distance,
            "angle": self.angle_weight * angle,
        }
