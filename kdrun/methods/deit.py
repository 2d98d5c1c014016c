"""The distillation token."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdrun.errors import PairingError
from kdrun.methods.base import Method
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def need_distilled(student: Spec, method: str) -> None:
    """Raise PairingError unless the student has a distillation head."""
    if "dist" not in student.heads:
        raise PairingError(
            f"method {method} trains a distillation token's head, but this student has none. "
            "student=vit_cifar_tiny_distilled and student=timm:deit_tiny_distilled_patch16_224 have one."
        )


def deit_loss(student: Tensor, teacher: Tensor, *, variant: str, temperature: float) -> Tensor:
    """Return the loss of the distillation token. student, teacher: logits [N, K].

    hard: CE(z_s/τ, argmax z_t), averaged over samples. soft: τ²·KL(softmax(z_t/τ) ‖ softmax(z_s/τ)) averaged over all
    N·K elements, as in the authors' code (Touvron et al. 2021, arXiv:2012.12877).
    """
    if variant == "hard":
        return F.cross_entropy(student / temperature, teacher.argmax(dim=1))
    log_p, log_q = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="sum", log_target=True) / student.numel()


class DeiT(Method):
    """Gives a vision transformer a second token whose head learns from the teacher, while the class token's learns from
    the labels.

    Paper: Touvron, Cord, Douze, Massa, Sablayrolles, Jegou, "Training Data-Efficient Image Transformers & Distillation
        Through Attention", ICML 2021, arXiv:2012.12877.

    Equation:
        hard: L = (1 - alpha) CE(z_class, y) + alpha CE(z_dist / T, argmax z_t)
        soft: L = (1 - alpha) CE(z_class, y) + alpha T^2 / (N K) sum_n KL(softmax(z_t / T) || softmax(z_dist / T))
        at inference z = (z_class + z_dist) / 2

    Hyperparameters:
        variant: hard or soft; hard in the paper's best models.
        alpha: share of the teacher's term. 0.5 for hard, 0.1 for soft in the paper.
        temperature: T. 1 for hard, which has none in the paper; 3 for soft.

    Disagreements:
        The authors' code and CSKD average the soft term over all N K elements, which is K times smaller than the usual
        batch mean; kdrun follows them. The paper's hard variant has no temperature and ignores the setting; kdrun
        divides the student's logits by it, which changes nothing at 1. With mixup the teacher must see the mixed image.
    """

    batch_terms = "sample"
    takes_mixed = True
    student_needs = frozenset({"heads"})

    def __init__(self, *, variant: Literal["hard", "soft"], alpha: float, temperature: float):
        super().__init__()
        self.variant, self.alpha, self.temperature = variant, alpha, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        need_distilled(student, "deit")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.heads is not None
        taught = deit_loss(student.heads["dist"], teacher.logits, variant=self.variant, temperature=self.temperature)
        return {
            "ce": (1 - self.alpha) * hard_label_loss(student.logits, batch),
            "deit": self.alpha * taught,
        }
