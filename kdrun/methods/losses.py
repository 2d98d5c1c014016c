"""Loss functions that several distillation methods share. All expect and return float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.structures import Batch


def hard_label_loss(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of logits [N, K] with the batch's labels, averaged over samples.

    For mixed images, with both labels of each, weighted by their shares: λ·CE(z, y) + (1 - λ)·CE(z, y') (Zhang et al.
    2018, arXiv:1710.09412). smoothing: ε of the targets (1 - ε)·onehot + ε/K, which include ε/K for the true class.
    """
    if batch.mixed is None:
        return F.cross_entropy(logits, batch.label, label_smoothing=smoothing)
    own, other = (
        F.cross_entropy(logits, label, label_smoothing=smoothing, reduction="none")
        for label in (batch.label, batch.mixed.label)
    )
    return torch.lerp(other, own, batch.mixed.share).mean()


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the temperature-scaled divergence of the student from the teacher, T²·mean_n KL(softmax(z_t/T) ‖
    softmax(z_s/T)).

    student, teacher: logits [N, K]. Summed over classes and averaged over samples; T² keeps the gradient's size
    independent of T (Hinton et al. 2015, arXiv:1503.02531, §2).
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def kl_of_samples(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the divergences [N] whose mean, times T², is `kl_divergence`: for methods that mask or select samples."""
    log_p, log_q = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)


def linear_ramp(epoch: int, warmup_epochs: int) -> float:
    """Return the factor of a term's weight that grows linearly to 1, with epochs counted from 1."""
    return min((epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0
