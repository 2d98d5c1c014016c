"""Deep mutual learning."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.losses import hard_label_loss, kl_divergence
from kdrun.structures import Batch, Outputs, Progress


def peer_divergence(own: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return mean_n KL(p_other ‖ p_own) at `temperature`, without T²; `other` is detached."""
    return kl_divergence(own, other.detach(), temperature) / temperature**2


class DML(Method):
    """Lets two untrained networks learn from the labels and from each other's predictions.

    Paper: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384.

    Equation:
        L_student = ce_weight CE(z_s, y) + student_weight mean_n KL(softmax(z_t / T) || softmax(z_s / T))
        L_teacher = ce_weight CE(z_t, y) + teacher_weight mean_n KL(softmax(z_s / T) || softmax(z_t / T))
        The other side is detached in both, and both use the logits from before either update.

    Hyperparameters:
        temperature: T. 1 in the paper; there is no T^2 factor.
        ce_weight: weight of the hard-label terms. 1 in the paper.
        student_weight: weight of the student's mutual term. 1 in the paper (the table's B).
        teacher_weight: weight of the teacher's mutual term. 1 in the paper (the table's A).

    Disagreements:
        The paper's algorithm updates one network, recomputes its predictions, then updates the other; the CIFAR-100
        table updates both from the same pair of predictions, as here. The table ignores a given teacher checkpoint in
        this row; here teacher.checkpoint starts the peer from it.
    """

    batch_terms = "sample"
    takes_mixed = True
    trains_teacher = True
    exceptions = {"frozen teacher": "both networks are trained; neither is a teacher beforehand"}

    def __init__(self, *, temperature: float, ce_weight: float, student_weight: float, teacher_weight: float):
        super().__init__()
        self.temperature, self.ce_weight = temperature, ce_weight
        self.student_weight, self.teacher_weight = student_weight, teacher_weight

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        ours, theirs = student.logits, teacher.logits
        return {
            "ce": self.ce_weight * hard_label_loss(ours, batch),
            "mutual": self.student_weight * peer_divergence(ours, theirs, self.temperature),
            "peer_ce": self.ce_weight * hard_label_loss(theirs, batch),
            "peer_mutual": self.teacher_weight * peer_divergence(theirs, ours, self.temperature),
        }
