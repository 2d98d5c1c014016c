"""Mathematics that several distillation methods share. Everything expects and returns float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Temperature-scaled divergence of the student from the teacher, T²·mean_n KL(softmax(z_t/T) ‖ softmax(z_s/T)).

    student, teacher: logits [N, K]. Summed over classes and averaged over samples; T² keeps the gradient's size
    independent of T (Hinton et al. 2015, arXiv:1503.02531, §2).
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
