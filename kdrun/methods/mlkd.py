"""Multi-level logit distillation."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Forward, Method
from kdrun.methods.losses import kl_of_samples
from kdrun.structures import Batch, Progress

TEMPERATURES = (2.0, 3.0, 5.0, 6.0)  # in addition to the base temperature, in the authors' code


def instance_loss(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return T²·KL of softened logits [N, K], averaged over all N samples; those that `mask` [N] excludes count as
    0."""
    per_sample = kl_of_samples(student, teacher, temperature)
    return temperature**2 * (per_sample if mask is None else per_sample * mask).mean()


def class_loss(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return ‖PᵀP - QᵀQ‖²/K of P = softmax(z_s/T), Q = softmax(z_t/T), both [N, K]: the co-occurrence of classes
    over the batch. `mask` [K] selects rows."""
    p, q = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return _distance(p.T @ p, q.T @ q, mask)


def batch_loss(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return ‖PPᵀ - QQᵀ‖²/N of the same P and Q: the similarity of samples. `mask` [N] selects rows."""
    p, q = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return _distance(p @ p.T, q @ q.T, mask)


def _distance(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """Return the squared distance of square matrices divided by their size."""
    rows = (a - b).square().sum(dim=1)
    return (rows if mask is None else rows * mask).sum() / len(a)


def unsure(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return (samples [N], classes [K]) of logits [N, K] on which the teacher is at most as confident as the median:
    by a sample's largest probability, and by a class's summed probability. 1 and 0 as float32."""
    p = F.softmax(teacher, dim=1)
    sample, kind = p.amax(dim=1), p.sum(dim=0)
    return (sample <= sample.median()).float(), (kind <= kind.median()).float()


class MLKD(Method):
    """Matches logits sample by sample, class by class and over the batch, at five temperatures and on two views.

    Paper: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023.

    Equation:
        L = ce_weight (CE(z_s, y) + CE(z'_s, y)) + sum over T in {temperature, 2, 3, 5, 6} of
            kd_weight (mean_n m_n T^2 KL_n(z_t || z_s) + mean_n T^2 KL_n(z'_t || z'_s))
            + class_weight sum_kj c_k (P^T P - Q^T Q)_kj^2 / K + batch_weight sum_ij m_i (P P^T - Q Q^T)_ij^2 / N
        z: logits of the usual view, z' of the strong one;   P = softmax(z_s / T),   Q = softmax(z_t / T)
        m_n = 1 if max_k softmax(z_t)_nk is at most its median over the batch; c_k likewise for sum_n softmax(z_t)_nk

    Hyperparameters:
        temperature: the base temperature, in addition to 2, 3, 5 and 6. 4 in the authors' code.
        ce_weight: weight of the hard-label term on each view. 0.1 in the authors' code.
        kd_weight: weight of the sample-wise terms, which carry T^2. 0.9 in the authors' code.
        class_weight: weight of the class-wise terms. 0.9 there, as for all three.
        batch_weight: weight of the batch-wise terms. 0.9 there.

    Disagreements:
        The authors' code, and logit-standardisation's, multiplies losses that are already averaged by the mask, which
        only halves them; takes the usual view's logits in the strong view's terms at T = 2 and 6; and computes the
        strong view's class- and batch-wise terms without adding them. kdrun masks samples and classes, takes the strong
        view throughout, and leaves those last terms out too. Its first release trains all
        pairs for 480 epochs, half of them at lr / 1000, today's those of one family for 240: twice the compute of a
        method with one view at least.
    """

    batch_terms = "batch"
    views: ClassVar[tuple[str, ...]] = ("strong",)

    def __init__(
        self, *, temperature: float, ce_weight: float, kd_weight: float, class_weight: float, batch_weight: float
    ):
        super().__init__()
        self.temperatures = (temperature, *TEMPERATURES)
        self.ce_weight, self.kd_weight = ce_weight, kd_weight
        self.class_weight, self.batch_weight = class_weight, batch_weight

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and batch.strong is not None
        t, t_strong = teacher(batch.teacher_image).logits, teacher(batch.strong).logits
        s_strong = student(batch.strong).logits
        s = student(batch.image).logits
        sample, kind = unsure(t)

        def total(terms: list[Tensor]) -> Tensor:
            return torch.stack(terms).sum()

        return {
            "ce": self.ce_weight * (F.cross_entropy(s, batch.label) + F.cross_entropy(s_strong, batch.label)),
            "kd": self.kd_weight * total([instance_loss(s, t, each, sample) for each in self.temperatures]),
            "kd_strong": self.kd_weight
            * total([instance_loss(s_strong, t_strong, each) for each in self.temperatures]),
            "class": self.class_weight * total([class_loss(s, t, each, kind) for each in self.temperatures]),
            "batch": self.batch_weight * total([batch_loss(s, t, each, sample) for each in self.temperatures]),
        }
