"""Label smoothing."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, Outputs, Progress


class LabelSmoothing(Method):
    """Regularises the student by uniform label noise, as a teacher without knowledge would.

    Paper: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", 2016,
        arXiv:1512.00567, section 7.

    Equation:
        L = -mean_n sum_k t_nk log softmax(z_s)_nk,   t = (1 - eps) onehot(y) + eps / K

    Hyperparameters:
        smoothing: eps, the mass spread over all K classes. 0.1 in the paper.

    Disagreements:
        Some texts spread eps over the K - 1 wrong classes; at K = 100 the relative difference of the loss is 8e-6, at K
        = 2 it is large. PyTorch, timm and the logit-standardisation code spread it over all K, as does kdrun.
    """

    batch_terms = "sample"
    takes_mixed = True
    needs_teacher = False

    def __init__(self, *, smoothing: float):
        super().__init__()
        self.smoothing = smoothing

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        return {"ce": hard_label_loss(student.logits, batch, self.smoothing)}
