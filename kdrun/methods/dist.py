"""Knowledge distillation from a stronger teacher: correlations in place of divergences."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, Outputs, Progress

EPSILON = 1e-8  # added to the product of the norms, as in the authors' code


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Return the Pearson correlations of a and b [N, K] along `dim`: [K] for dim 0, [N] for dim 1. A vector without
    spread (a column of a batch of one) has correlation 0 and gradient 0."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + EPSILON)


def correlation_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return (1 - mean correlation of the rows, 1 - mean correlation of the columns) of a and b [N, K]."""
    return 1 - pearson(a, b, 1).mean(), 1 - pearson(a, b, 0).mean()


def dist_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (inter, intra) of logits [N, K]: T² times the correlation distance of softmax(z/T) over each sample's
    classes and over each class's samples (Huang et al. 2022, arXiv:2205.10536, eq. 8-10; T² is in the authors'
    code)."""
    inter, intra = correlation_distances(
        F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    )
    return temperature**2 * inter, temperature**2 * intra


def distv2_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return (1 - mean row correlation) + (1 - mean column correlation) of raw logits [N, K], with neither softmax
    nor T: invariant to a common scale and shift of either network's logits (SRDwithDIST's second term)."""
    rows, columns = correlation_distances(student_logits, teacher_logits)
    return rows + columns


class DIST(Method):
    """Matches the teacher's ranking of classes within a sample, and of samples within a class, by correlation.

    Paper: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.

    Equation:
        L = ce_weight CE(z_s, y) + inter_weight T^2 (1 - mean_n r(p_s[n, :], p_t[n, :]))
            + intra_weight T^2 (1 - mean_k r(p_s[:, k], p_t[:, k]))
        p = softmax(z / T),   r = Pearson correlation

    Hyperparameters:
        temperature: T. 4 on CIFAR-100 (1 on ImageNet).
        ce_weight: weight of the hard-label term. 1 in the paper.
        inter_weight: the paper's beta, 2.
        intra_weight: the paper's gamma, 2.

    Disagreements:
        The authors and the CIFAR-100 table add 1e-8 to the product of the norms, as here: at T = 4 and 100 classes
        columns are so flat that the loss of two equal networks is 1.75e-3, not 0. torchdistill's cosine similarity
        clamps instead. OFAKD's defaults are 1, 1, T = 1.
    """

    batch_terms = "batch"
    takes_mixed = True

    def __init__(self, *, temperature: float, ce_weight: float, inter_weight: float, intra_weight: float):
        super().__init__()
        self.temperature, self.ce_weight = temperature, ce_weight
        self.inter_weight, self.intra_weight = inter_weight, intra_weight

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        inter, intra = dist_loss(student.logits, teacher.logits, temperature=self.temperature)
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "inter": self.inter_weight * inter,
            "intra": self.intra_weight * intra,
        }
