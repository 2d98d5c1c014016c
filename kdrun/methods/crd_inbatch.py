"""Contrastive distillation with the batch as negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import need_pooled
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def info_nce(student: Tensor, teacher: Tensor, *, temperature: float, symmetric: bool) -> Tensor:
    """Return the cross-entropy of finding each sample's own teacher embedding among those of the batch, averaged over
    samples.

    student, teacher: embeddings [N, D], normalised here. symmetric: the mean with the search for the student's among
    students. van den Oord et al. 2018, arXiv:1807.03748, eq. 4. 0 for a batch of one.
    """
    scores = F.normalize(student, dim=1) @ F.normalize(teacher, dim=1).T / temperature
    own = torch.arange(len(scores), device=scores.device)
    loss = F.cross_entropy(scores, own)
    return (loss + F.cross_entropy(scores.T, own)) / 2 if symmetric else loss


class InBatchCRD(Method):
    """Pulls a sample's two embeddings together and apart from those of the rest of the batch.

    Paper: after Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699, with the
        InfoNCE loss of van den Oord, Li, Vinyals, 2018, arXiv:1807.03748, in place of the memory bank.

    Equation:
        L = ce_weight CE(z_s, y) + crd_weight CE(e_s e_t^T / temperature, own row)
        e: linear embeddings of the pooled vectors, both trained, unit norm;   symmetric: the mean with the transpose's

    Hyperparameters:
        temperature: 0.07, as in CRD; notebooks use 0.07 to 0.1.
        embedding: width of the embeddings. 128, as in CRD.
        symmetric: search in both directions. A choice; false is the student's direction alone.
        ce_weight: weight of the hard-label term. 1.
        crd_weight: 0.8, as in CRD; no paper fixes it for this form.

    Disagreements:
        No public benchmark has this form. It needs no bank, but a batch of N offers only N - 1 negatives, and other
        samples of the same class are among them; method=crd is the published one.
    """

    batch_terms = "batch"
    takes_mixed = True
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})

    def __init__(self, *, temperature: float, embedding: int, symmetric: bool, ce_weight: float, crd_weight: float):
        super().__init__()
        self.temperature, self.embedding, self.symmetric = temperature, embedding, symmetric
        self.ce_weight, self.crd_weight = ce_weight, crd_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.embed_student = nn.Linear(need_pooled(student, "student", "crd_inbatch"), self.embedding)
        self.embed_teacher = nn.Linear(need_pooled(teacher, "teacher", "crd_inbatch"), self.embedding)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.pooled is not None and teacher.pooled is not None
        loss = info_nce(
            self.embed_student(student.pooled),
            self.embed_teacher(teacher.pooled),
            temperature=self.temperature,
            symmetric=self.symmetric,
        )
        return {"ce": self.ce_weight * hard_label_loss(student.logits, batch), "crd": self.crd_weight * loss}
