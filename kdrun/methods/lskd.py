"""Logit standardisation."""

from __future__ import annotations

from torch import Tensor

from kdrun.methods.kd import KD
from kdrun.methods.losses import hard_label_loss, kl_divergence
from kdrun.structures import Batch, Outputs, Progress

EPSILON = 1e-7  # added to the standard deviation, as in the authors' code


def standardise(logits: Tensor) -> Tensor:
    """Standardise each row of logits [N, K] to mean 0 and unbiased standard deviation 1 (Sun et al. 2024,
    arXiv:2403.01427, alg. 1); invariant to a row's shift and positive scale."""
    mean, std = logits.mean(dim=1, keepdim=True), logits.std(dim=1, keepdim=True)
    return (logits - mean) / (std + EPSILON)


def lskd_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return T²·mean_n KL of the softened, standardised logits [N, K]; T divides after standardisation (alg. 1)."""
    return kl_divergence(standardise(student), standardise(teacher), temperature)


class LSKD(KD):
    """Matches the shape of the teacher's logits and leaves their mean and magnitude to the student.

    Paper: Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427.

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight T^2 mean_n KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T))
        Z(z) = (z - mean_k z) / (std_k z + 1e-7),   std over K - 1

    Hyperparameters:
        temperature: T, the paper's base temperature. 2 for most pairs; 3 for vgg13 teachers, resnet32x4 to WRN and
            ResNet-50 to MobileNetV2; 4 for resnet110 to resnet20.
        ce_weight: weight of the hard-label term. 0.1 in the paper.
        kd_weight: weight of the soft term, which carries T^2. 9 for most pairs; 12 for resnet110 to resnet20, 1 for
            ResNet-50 to MobileNetV2.

    Disagreements:
        None in the loss. The same standardisation in DKD is `method=dkd method.standardize=true` with both of its
        weights times 9 and T = 2; its published figures use per-pair weights that the released YAML does not contain.
        A student whose logits are all but constant gets gradients of order 1e4: a zero-initialised head needs
        optimizer.clip_norm.
    """

    batch_terms = "sample"

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "kd": self.kd_weight * lskd_loss(student.logits, teacher.logits, temperature=self.temperature),
        }
