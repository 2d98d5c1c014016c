"""Correlation congruence."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import need_pooled
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over the N - 1 neighbours in the batch of sum_d |δ_i||δ_{i+1}|, δ = e_s - e_t; 0 for a batch of
    one.

    student, teacher: embeddings [N, D]. It depends on the batch's order. RepDistiller's CC, after Peng et al. 2019,
    arXiv:1904.01802.
    """
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


class CC(Method):
    """Matches the correlations of neighbouring samples in a batch, in RepDistiller's form.

    Paper: Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge Distillation", ICCV 2019,
        arXiv:1904.01802.

    Equation:
        L = ce_weight CE(z_s, y) + cc_weight mean_i sum_d |e_s - e_t|_i |e_s - e_t|_(i+1)
        e: linear embeddings of the pooled vectors, both trained, not normalised

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in RepDistiller.
        cc_weight: 0.02 in RepDistiller.
        embedding: width of the embeddings. 128 in RepDistiller.

    Disagreements:
        The paper compares correlation matrices of the batch under a Taylor-expanded Gaussian kernel; RepDistiller,
        whose rows are the usual reference, compares neighbours in batch order. kdrun follows RepDistiller.
    """

    batch_terms = "batch"
    takes_mixed = True
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})

    def __init__(self, *, ce_weight: float, cc_weight: float, embedding: int):
        super().__init__()
        self.ce_weight, self.cc_weight, self.embedding = ce_weight, cc_weight, embedding

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.embed_student = nn.Linear(need_pooled(student, "student", "cc"), self.embedding)
        self.embed_teacher = nn.Linear(need_pooled(teacher, "teacher", "cc"), self.embedding)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.pooled is not None and teacher.pooled is not None
        loss = cc_loss(self.embed_student(student.pooled), self.embed_teacher(teacher.pooled))
        return {"ce": self.ce_weight * hard_label_loss(student.logits, batch), "cc": self.cc_weight * loss}
