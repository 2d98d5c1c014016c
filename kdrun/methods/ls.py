"""Label smoothing."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.structures import Batch, Outputs, Progress


def label_smoothing_loss(logits: Tensor, label: Tensor, *, smoothing: float) -> Tensor:
    """Cross-entropy against (1 - ε)·onehot + ε/K, where the true class gets its ε/K too.

    logits [N, K], label [N]; a scalar, averaged over samples (Szegedy et al. 2016, arXiv:1512.00567, §7).
    """
    return F.cross_entropy(logits, label, label_smoothing=smoothing)


class LabelSmoothing(Method):
    """Regularises the student with uniform noise on the labels: a teacher that knows nothing.

    Paper: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", 2016,
        arXiv:1512.00567, section 7.

    Equation:
        L = -mean_n sum_k t_nk log softmax(z_s)_nk,   t = (1 - eps) onehot(y) + eps / K

    Hyperparameters:
        smoothing: eps, the mass spread over all K classes. 0.1 in the paper.

    Disagreements:
        Some texts spread eps over the K - 1 wrong classes; at K = 100 the loss differs by 8e-6 relative, at K = 2 by a
        lot. PyTorch, timm and the logit-standardisation code spread it over all K, and so does this one.
    """

    needs_teacher = False

    def __init__(self, *, smoothing: float):
        super().__init__()
        self.smoothing = smoothing

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        return {"ce": label_smoothing_loss(student.logits, batch.label, smoothing=self.smoothing)}
