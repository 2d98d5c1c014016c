"""Visual and linguistic features of a CNN for a vision transformer."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import PairingError
from kdrun.methods.base import Method
from kdrun.methods.features import Embed
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def feature_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(teacher) ‖ softmax(student)) over the last axis, both [..., D]."""
    log_p, log_q = F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=-1).mean()


def decoupled_error(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Return the mean squared error of the target's logit plus that of the sum of all others; logits [N, K], label
    [N]."""
    difference = student - teacher
    target = difference.gather(1, label[:, None])[:, 0]
    return target.square().mean() + (difference.sum(dim=1) - target).square().mean()


def grid_tokens(x: Tensor, length: int) -> Tensor:
    """Resize a map [N, C, H, W] (bilinear) to the square grid of `length` patches: [N, length, C]."""
    side = math.isqrt(length)
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return x.flatten(2).transpose(1, 2)


class VLFKD(Method):
    """Compares a vision transformer's patches with a CNN's map in three ways: globally, patch by patch, and as mixtures
    of learned words.

    Paper: Zheng, Luo, Zhou, Wang, "Distilling Efficient Vision Transformers from CNNs for Semantic Segmentation"
        (C2VKD), 2023, arXiv:2310.07265; adapted to classification.

    Equation:
        L = ce_weight CE(z_s, y) + global_weight KL(P(mean f_t) || mean f_s) + patch_weight mean (f_s - R(f_t))^2
            + linguistic_weight mean over patches of KL(unit(A(W_t f_t)) || unit(W_s f_s))
            + pixel_weight (mean (z_s - z_t)_y^2 + mean (sum_k!=y (z_s - z_t)_k)^2)
        f_s: final patch tokens [N, L, D];   f_t: the teacher's last map on the same grid;   KL: of softmaxes
        P, R: Linear(C_t, D);   W: Linear to `words`;   A: self-attention over patches, or nothing

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in the published grid.
        global_weight: weight of the mean features' divergence. 0.5 there.
        patch_weight: weight of the patches' mean squared error. 0.3 there.
        linguistic_weight: weight of the divergence in the linguistic space. 0.2 there.
        pixel_weight: weight of the target's and the non-targets' squared errors. 1 there.
        words: width of the linguistic space. 128 there.
        attention: true: the teacher's side has one self-attention layer (one head, no residual). true in the report.

    Disagreements:
        The paper segments images; its pixel-wise term is here one of whole images, as in the published grid, whose
        notebook left the projectors out of the optimizer. They are trained here.
    """

    batch_terms = "sample"
    student_needs = frozenset({"tokens"})
    teacher_needs = frozenset({"maps"})
    teacher_stages = frozenset({-1})

    def __init__(
        self,
        *,
        ce_weight: float,
        global_weight: float,
        patch_weight: float,
        linguistic_weight: float,
        pixel_weight: float,
        words: int,
        attention: bool,
    ):
        super().__init__()
        self.ce_weight, self.global_weight, self.patch_weight = ce_weight, global_weight, patch_weight
        self.linguistic_weight, self.pixel_weight = linguistic_weight, pixel_weight
        self.words, self.attention = words, attention

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        if student.tokens is None:
            raise PairingError(
                "method vlfkd trains patch tokens, but this student has none. Students that have: vit_cifar_tiny, "
                "timm:deit_tiny_patch16_224; for a CNN student: capd, ofa, fitnet_joint."
            )
        if not teacher.maps:
            raise PairingError(
                "method vlfkd reads the teacher's last map, but this teacher has none (kdrun taps). Methods on "
                "logits run on every pair: kd, dkd, dist, lskd."
            )
        width, channels = student.tokens[1], teacher.maps[-1][0]
        self.whole = nn.Linear(channels, width)
        self.patch = nn.Linear(channels, width)
        self.student_words = Embed(width, self.words)
        self.teacher_words = nn.Linear(channels, self.words)
        self.mix = nn.MultiheadAttention(self.words, 1, batch_first=True) if self.attention else None

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and teacher.maps is not None and student.tokens is not None
        ours, last = student.tokens, teacher.maps[-1]
        theirs = grid_tokens(last, ours.shape[1])
        n, length, width = ours.shape
        words = self.student_words(ours.reshape(n * length, width)).view(n, length, -1)
        whole = feature_divergence(ours.mean(dim=1), self.whole(last.mean((2, 3))))
        linguistic = feature_divergence(words, self.linguistic(theirs))
        return {
            "ce": self.ce_weight * F.cross_entropy(student.logits, batch.label),
            "global": self.global_weight * whole,
            "patch": self.patch_weight * F.mse_loss(ours, self.patch(theirs)),
            "linguistic": self.linguistic_weight * linguistic,
            "pixel": self.pixel_weight * decoupled_error(student.logits, teacher.logits, batch.label),
        }

    def linguistic(self, patches: Tensor) -> Tensor:
        """Return the teacher's patches [N, L, C] as unit vectors in the linguistic space: [N, L, words]."""
        words = self.teacher_words(patches)
        if self.mix is not None:
            words, _ = self.mix(words, words, words, need_weights=False)
        return F.normalize(words, dim=2)
