"""Similarity-preserving distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.features import stage_pairs
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of squared differences of the two similarity matrices over N²; a scalar.

    student, teacher: maps [N, C, H, W] (or any [N, …]) whose channels and grids may differ. A matrix is F Fᵀ of the
    flattened maps with rows of unit norm. Tung & Mori 2019, arXiv:1907.09682.
    """
    return (_similarity(student) - _similarity(teacher)).square().mean()


def _similarity(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


class SP(Method):
    """Matches the pairwise similarities of samples in their activations of the last stage.

    Paper: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682.

    Equation:
        L = ce_weight CE(z_s, y) + sp_weight |G_s - G_t|^2 / N^2
        G = rows of F F^T divided by their norms,   F [N, C H W]: the last stage's map

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in RepDistiller and mdistiller.
        sp_weight: the paper's gamma, 3000 in the paper, RepDistiller and mdistiller.

    Disagreements:
        None in value. The public loss has shape [1] instead of being a scalar.
    """

    batch_terms = "batch"
    takes_mixed = True
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps"})
    teacher_stages = frozenset({-1})

    def __init__(self, *, ce_weight: float, sp_weight: float):
        super().__init__()
        self.ce_weight, self.sp_weight = ce_weight, sp_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        stage_pairs(student, teacher, "sp", "last")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None and teacher.maps is not None
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "sp": self.sp_weight * sp_loss(student.maps[-1], teacher.maps[-1]),
        }
