"""Neuron selectivity transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.features import smaller_grid, stage_pairs
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy between the channels' activation patterns, kernel (aᵀb)²; a scalar.

    student [N, C_s, H, W], teacher [N, C_t, H', W'], compared on the smaller grid; each channel is L2-normalised over
    positions. Means are over N·C·C' pairs. Huang & Wang 2017, arXiv:1707.01219.
    """
    student, teacher = smaller_grid(student, teacher)
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    return _kernel(t, t).detach() + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over n, i, j of (a_niᵀ b_nj)² for a [N, C, P], b [N, C', P], by the smaller of the two Gram
    matrices."""
    channels = (a.shape[1], b.shape[1])
    if a.shape[2] >= min(channels):
        return torch.einsum("nip,njp->nij", a, b).square().mean()
    # sum_ij (a_iᵀ b_j)² is the inner product of Aᵀ A and Bᵀ B: wide maps on a small grid need no C x C' matrix.
    over_a, over_b = (torch.einsum("ncp,ncq->npq", x, x) for x in (a, b))
    return (over_a * over_b).sum() / (len(a) * channels[0] * channels[1])


class NST(Method):
    """Matches the distribution of the channels' activation patterns, whatever their number.

    Paper: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219.

    Equation:
        L = ce_weight CE(z_s, y) + nst_weight sum_stages [ mean k(t, t) + mean k(s, s) - 2 mean k(s, t) ]
        k(a, b) = (a^T b)^2,   s, t: channels of a stage map, unit norm over positions

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in RepDistiller and mdistiller.
        nst_weight: 50 there, stages summed.

    Disagreements:
        None in value. Public code forms the products of all channel pairs at all positions, kdrun their Gram matrix.
    """

    batch_terms = "sample"
    takes_mixed = True
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps"})

    def __init__(self, *, ce_weight: float, nst_weight: float):
        super().__init__()
        self.ce_weight, self.nst_weight = ce_weight, nst_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.pairs = stage_pairs(student, teacher, "nst")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None and teacher.maps is not None
        stages = [nst_loss(student.maps[i], teacher.maps[j]) for i, j in self.pairs]
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "nst": self.nst_weight * torch.stack(stages).sum(),
        }
