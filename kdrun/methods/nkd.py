"""Normalised knowledge distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.dkd import split_target
from kdrun.structures import Batch, Outputs, Progress


def nkd_loss(student: Tensor, teacher: Tensor, label: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (target, non-target) cross-entropies, averaged over samples.

    student, teacher: logits [N, K]; label [N]. Target: -p_t[y]·log p_s[y] at T = 1. Non-target: T² times the
    cross-entropy of the softmax over the K - 1 other classes at temperature T, which sums to 1 in both networks, as
    plain KD's non-target part does not (Yang et al. 2023, arXiv:2303.13005, eq. 7).
    """
    log_s, log_t = (F.log_softmax(z, dim=1).gather(1, label[:, None]) for z in (student, teacher))
    others_s, others_t = (split_target(z / temperature, label)[1] for z in (student, teacher))
    target = -(log_t.exp() * log_s).mean()
    return target, -(temperature**2) * (others_t.exp() * others_s).sum(dim=1).mean()


class NKD(Method):
    """Normalises the non-target probabilities of both networks to the same sum before comparing them.

    Paper: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
        Approach with Normalized Loss and Customized Soft Labels", ICCV 2023, arXiv:2303.13005.

    Equation:
        L = ce_weight CE(z_s, y) - target_weight mean_n p_t[y] log p_s[y]
            - gamma T^2 mean_n sum_{k != y} q_t[k] log q_s[k]
        p = softmax(z),   q = softmax over the K - 1 classes that are not y of z / T

    Hyperparameters:
        temperature: T, the paper's lambda. 1 on CIFAR-100 and ImageNet.
        ce_weight: weight of the hard-label term. 1 in the paper.
        target_weight: weight of the soft target term. 1 in the paper.
        gamma: weight of the non-target term. 1.5 on CIFAR-100.

    Disagreements:
        None known: the one public implementation agrees with the paper. Both terms are cross-entropies, so the loss of
        two equal networks is not 0.
    """

    batch_terms = "sample"

    def __init__(self, *, temperature: float, ce_weight: float, target_weight: float, gamma: float):
        super().__init__()
        self.temperature, self.ce_weight = temperature, ce_weight
        self.target_weight, self.gamma = target_weight, gamma

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        target, others = nkd_loss(student.logits, teacher.logits, batch.label, temperature=self.temperature)
        return {
            "ce": self.ce_weight * F.cross_entropy(student.logits, batch.label),
            "target": self.target_weight * target,
            "others": self.gamma * others,
        }
