"""Decoupled knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.losses import linear_ramp
from kdrun.methods.lskd import standardise
from kdrun.structures import Batch, Outputs, Progress


def dkd_loss(student: Tensor, teacher: Tensor, label: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return (TCKD, NCKD), each times T² and averaged over samples.

    student, teacher: logits [N, K]; label [N]. With p = softmax(z/T), b = [p_y, 1 - p_y] and q the softmax over the
    K - 1 non-target classes: TCKD = T²·mean KL(b_t ‖ b_s), NCKD = T²·mean KL(q_t ‖ q_s). Everything stays in the log
    domain, so that confident logits neither overflow nor vanish. Zhao et al. 2022, arXiv:2203.08679, eq. 5-7.
    """
    binary_s, others_s = split_target(student / temperature, label)
    binary_t, others_t = split_target(teacher / temperature, label)
    tckd = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    nckd = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
    return temperature**2 * tckd, temperature**2 * nckd


def split_target(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return (log [p_y, 1 - p_y] [N, 2], log q [N, K-1]) of logits [N, K]; q is the softmax over classes that are
    not y."""
    n, classes = logits.shape
    column = torch.arange(classes - 1, device=logits.device).expand(n, -1)
    others = logits.gather(1, column + (column >= label[:, None]).long())
    target = logits.gather(1, label[:, None])
    rest = others.logsumexp(dim=1, keepdim=True)
    return F.log_softmax(torch.cat([target, rest], dim=1), dim=1), others - rest


class DKD(Method):
    """Weights the teacher's confidence in the true class separately from its distribution over the other classes.

    Paper: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679.

    Equation:
        L = ce_weight CE(z_s, y) + w(e) (tckd_weight TCKD + nckd_weight NCKD),   w(e) = min(e / warmup_epochs, 1)
        TCKD = T^2 mean KL([p_y, 1 - p_y]_t || [p_y, 1 - p_y]_s)
        NCKD = T^2 mean KL(q_t || q_s),   q = softmax over the K - 1 classes that are not y

    Hyperparameters:
        temperature: T. 4 in the paper.
        ce_weight: weight of the hard-label term. 1 in the paper.
        tckd_weight: the paper's alpha, 1.
        nckd_weight: the paper's beta, chosen per pair: 8 for resnet32x4 teachers and WRN-40-2 to ShuffleNetV1, 6 for
            vgg13 and WRN-40-2 teachers, 2 for resnet56 and resnet110; 8 is the default here.
        warmup_epochs: epochs over which both terms grow linearly, counted from 1. 20 in the paper.
        standardize: whether both networks' logits are standardised (see lskd) before TCKD and NCKD. false in the paper;
            DKD+LS (Sun et al. 2024, arXiv:2403.01427) is true with temperature 2 and both weights times 9.

    Disagreements:
        Public code removes the target by adding -1000 to its logit and takes the logarithm of a summed softmax: it is
        infinite in float32 at logits times 50, and the mask does not survive float16. OFAKD's DKD reads settings that
        are never set and cannot run.
    """

    batch_terms = "sample"

    def __init__(
        self,
        *,
        temperature: float,
        ce_weight: float,
        tckd_weight: float,
        nckd_weight: float,
        warmup_epochs: int,
        standardize: bool,
    ):
        super().__init__()
        self.temperature, self.ce_weight, self.warmup_epochs = temperature, ce_weight, warmup_epochs
        self.tckd_weight, self.nckd_weight, self.standardize = tckd_weight, nckd_weight, standardize

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        ours, theirs = student.logits, teacher.logits
        if self.standardize:
            ours, theirs = standardise(ours), standardise(theirs)
        tckd, nckd = dkd_loss(ours, theirs, batch.label, temperature=self.temperature)
        return {
            "ce": self.ce_weight * F.cross_entropy(student.logits, batch.label),
            "tckd": progress.number(lambda at: linear_ramp(at.epoch, self.warmup_epochs) * self.tckd_weight) * tckd,
            "nckd": progress.number(lambda at: linear_ramp(at.epoch, self.warmup_epochs) * self.nckd_weight) * nckd,
        }
