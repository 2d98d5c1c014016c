"""Probabilistic knowledge transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.features import need_pooled
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

EPS = 1e-7


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the divergence of the student's neighbour probabilities from the teacher's, averaged over N² entries (not
    rows).

    student [N, D_s], teacher [N, D_t]. Passalis & Tefas 2018, arXiv:1803.10837, with the cosine kernel.
    """
    p_s, p_t = _neighbours(student), _neighbours(teacher)
    return (p_t * torch.log((p_t + EPS) / (p_s + EPS))).mean()


def _neighbours(x: Tensor) -> Tensor:
    """Return the neighbour probabilities of x [N, D]: cosine similarities mapped to [0, 1], rows of sum 1, including
    the sample itself: [N, N]."""
    unit = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


class PKT(Method):
    """Matches, for each sample of a batch, the probabilities that the others are its neighbours.

    Paper: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
        arXiv:1803.10837.

    Equation:
        L = ce_weight CE(z_s, y) + pkt_weight mean_ij P_t log((P_t + eps) / (P_s + eps))
        P_ij = k_ij / sum_j k_ij,   k_ij = (cos(f_i, f_j) + 1) / 2,   f: pooled vectors, eps = 1e-7

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in RepDistiller and mdistiller.
        pkt_weight: 30000 in RepDistiller and mdistiller, large because their mean is over N^2 entries.

    Disagreements:
        The paper sums over all pairs, public code averages over N^2. The sample itself is kept among its neighbours
        everywhere. kdrun's norm has a finite gradient at a zero vector, the public one has none.
    """

    batch_terms = "batch"
    takes_mixed = True
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})

    def __init__(self, *, ce_weight: float, pkt_weight: float):
        super().__init__()
        self.ce_weight, self.pkt_weight = ce_weight, pkt_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        need_pooled(student, "student", "pkt")
        need_pooled(teacher, "teacher", "pkt")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.pooled is not None and teacher.pooled is not None
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "pkt": self.pkt_weight * pkt_loss(student.pooled, teacher.pooled),
        }
