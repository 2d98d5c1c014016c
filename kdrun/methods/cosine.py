"""The PyTorch tutorial's cosine loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.features import averaged, must_repeat, need_pooled
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def narrow(x: Tensor, width: int) -> Tensor:
    """Narrow [N, D] to [N, width], width ≤ D, by averaging neighbours: D / width each if that is a whole number."""
    if x.shape[1] % width == 0:
        return F.avg_pool1d(x[:, None], x.shape[1] // width)[:, 0]
    return averaged(x, 1, width) if must_repeat(x) else F.adaptive_avg_pool1d(x[:, None], width)[:, 0]


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return mean_n (1 - cos(h_s, h_t)) of vectors [N, D_s], [N, D_t]; the wider ones are averaged to the narrower
    width."""
    width = min(student.shape[1], teacher.shape[1])
    target = torch.ones(len(student), device=student.device)
    return F.cosine_embedding_loss(narrow(student, width), narrow(teacher, width), target)


class Cosine(Method):
    """Aligns the direction of the student's feature vector (its classifier's input) with the teacher's.

    Paper: none; Chariton, "Knowledge Distillation Tutorial", PyTorch tutorials, 2023.

    Equation:
        L = ce_weight CE(z_s, y) + cosine_weight mean_n (1 - cos(h_s, pool(h_t)))

    Hyperparameters:
        ce_weight: weight of the hard-label term. 0.75 in the tutorial.
        cosine_weight: weight of the cosine term, which never reaches the classifier. 0.25 there.

    Disagreements:
        The tutorial halves the teacher's flattened map by averaging pairs of neighbours; kdrun averages whichever
        vector is wider to the width of the other, which is the same at 2:1, and compares pooled vectors where networks
        pool. Its own figures put this row below the student alone.
    """

    batch_terms = "sample"
    takes_mixed = True
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})

    def __init__(self, *, ce_weight: float, cosine_weight: float):
        super().__init__()
        self.ce_weight, self.cosine_weight = ce_weight, cosine_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        need_pooled(student, "student", "cosine")
        need_pooled(teacher, "teacher", "cosine")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.pooled is not None and teacher.pooled is not None
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "cosine": self.cosine_weight * cosine_loss(student.pooled, teacher.pooled),
        }
