"""Logit matching."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.losses import hard_label_loss, kl_divergence
from kdrun.structures import Batch, Outputs, Progress


class KD(Method):
    """Matches the teacher's temperature-softened class probabilities.

    Paper: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 2.

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight T^2 mean_n KL(softmax(z_t / T) || softmax(z_s / T))

    Hyperparameters:
        temperature: T. 4 in RepDistiller, mdistiller and the CIFAR-100 table.
        ce_weight: weight of the hard-label term. 0.1 there (their 1 - alpha).
        kd_weight: weight of the soft term, which carries T^2. 0.9 there (their alpha).

    Disagreements:
        torchdistill's alpha weighs the hard loss, everybody else's the soft one, and it drops T^2 when alpha is unset.
        The PyTorch tutorial minimises the soft cross-entropy: its value is larger by T^2 H(p_t), its gradient is equal.
    """

    batch_terms = "sample"
    takes_mixed = True

    def __init__(self, *, temperature: float, ce_weight: float, kd_weight: float):
        super().__init__()
        self.temperature, self.ce_weight, self.kd_weight = temperature, ce_weight, kd_weight

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
        }
