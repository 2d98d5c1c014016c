"""Cumulative spatial knowledge distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.deit import deit_loss, need_distilled
from kdrun.methods.features import must_repeat, smaller_grid
from kdrun.methods.losses import hard_label_loss
from kdrun.methods.srd import check_classifier, classified_map, reused_classifier
from kdrun.models.adapters import as_map
from kdrun.models.features import Tap
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

HEADS = frozenset({"heads", "tokens"})
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "quadratic": lambda done: (1 - done) ** 2,
    "cosine": lambda done: math.cos(math.pi / 2 * done),
}


def dense_logits(classifier: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply the classifier at every position of a map: [N, C, H, W] -> [N, K, H, W]."""
    n, channels, height, width = x.shape
    rows = classifier(x.permute(0, 2, 3, 1).reshape(-1, channels))
    return rows.reshape(n, height, width, -1).permute(0, 3, 1, 2)


def cskd_loss(student: Tensor, teacher: Tensor, *, local: float | Tensor, variant: str, temperature: float) -> Tensor:
    """Return the loss of student patch logits [N, L, K] against teacher logits [N, K, H, W], position by position.

    The target is local·z_t + (1 - local)·mean_hw z_t. Both are averaged to the smaller of the two grids. hard:
    CE(z_s/τ, argmax target), averaged over samples and positions; soft: τ²·KL summed over positions and averaged over
    samples (Zhao et al. 2023, arXiv:2307.08500, as in the authors' code).
    """
    ours, theirs = smaller_grid(as_map(student), teacher)
    target = local * theirs + (1 - local) * teacher.mean((2, 3), keepdim=True)
    if variant == "hard":
        taught, ours = target.argmax(dim=1), ours / temperature
        if must_repeat(ours):  # as rows: over maps it is not deterministic
            taught, ours = taught.flatten(), ours.permute(0, 2, 3, 1).flatten(0, 2)
        return F.cross_entropy(ours, taught)
    log_p, log_q = F.log_softmax(ours / temperature, dim=1), F.log_softmax(target / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class ThreeHeads(nn.Module):
    """Deployed network: the mean of the logits of class token, distillation token and patches. image [N, 3, H, W],
    as prepared by the student's tap, -> logits [N, K]. It adds no parameter to the student's, and runs only in eval
    mode."""

    def __init__(self, tap: Tap, head: nn.Module):
        super().__init__()
        self.student = tap.model
        # In a tuple, to keep the student's weights from entering the state dict a second time.
        self.shared = (tap, head)

    def forward(self, image: Tensor) -> Tensor:
        tap, head = self.shared
        out = tap.adapter(image, HEADS)
        assert out.tokens is not None
        return (2 * out.logits + head(out.tokens).mean(dim=1)) / 3  # in eval mode the logits are the two tokens' mean


class CSKD(Method):
    """Trains every patch of a vision transformer on the CNN's prediction there, and increasingly on that for the whole
    image.

    Paper: Zhao, Song, Liang, "Cumulative Spatial Knowledge Distillation for Vision Transformers", ICCV 2023,
        arXiv:2307.08500.

    Equation:
        L = (1 - alpha) CE(z_class, y) + alpha DeiT(z_dist, z_t) + cskd_weight D(z_patch, r z_dense + (1 - r) z_t)
        z_dense = classifier_t at every position of the teacher's last map,   z_t = mean_hw z_dense
        z_patch = distillation head at every patch, averaged to the teacher's grid;   r = 1 - e / E
        D: hard CE against the arg max, mean over positions, or soft T^2 KL, summed over positions
        at inference z = (z_class + z_dist + mean z_patch) / 3

    Hyperparameters:
        alpha: share of the distillation token's term. 0.5 in the paper.
        cskd_weight: weight of the patches' term. 1 in the paper.
        temperature: T of both. 1 in the paper.
        variant: of the patches' term, hard or soft. hard in the paper.
        deit_variant: of the distillation token's, hard or soft (see deit). hard in the paper.
        decay: how r falls from 1 to 0 over the epochs: linear, quadratic (1 - e/E)^2 or cosine cos(pi e / 2E). linear
            in the paper.

    Disagreements:
        The authors' soft terms are reduced differently, the patches' over samples and the token's over all elements;
        kdrun follows both. Their hard terms ignore the temperature; kdrun divides the student's logits by it, which
        changes nothing at 1. They pool 14x14 patches to 7x7; kdrun averages the finer grid to the coarser, whichever it
        is. The three-head mean is what is evaluated and stored: the weights are the student's own under the name
        `student.`, none are added, and without the patches the same weights predict the mean of two heads. Teachers as
        in srd.
    """

    batch_terms = "sample"
    takes_mixed = True
    deploys = True
    student_needs = HEADS
    teacher_needs = frozenset({"maps", "tokens"})
    teacher_stages = frozenset({-1})
    exceptions = {"reload": "inference averages three heads; the student alone would predict the mean of two"}

    def __init__(
        self,
        *,
        alpha: float,
        cskd_weight: float,
        temperature: float,
        variant: Literal["hard", "soft"],
        deit_variant: Literal["hard", "soft"],
        decay: Literal["linear", "quadratic", "cosine"],
    ):
        super().__init__()
        self.alpha, self.cskd_weight, self.temperature = alpha, cskd_weight, temperature
        self.variant, self.deit_variant, self.decay = variant, deit_variant, DECAYS[decay]

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        need_distilled(student, "cskd")
        classifier, _ = reused_classifier(student, teacher, "cskd")
        # In a tuple: these modules belong to the student and the teacher, not to this method's state.
        self.modules_of_others = (student.head_modules["dist"], classifier)

    def deployed(self, student: Tap) -> nn.Module:
        return ThreeHeads(student, self.modules_of_others[0])

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.heads is not None and student.tokens is not None
        head, classifier = self.modules_of_others
        check_classifier(classifier, teacher, "cskd", progress)
        dense = dense_logits(classifier, classified_map(teacher))
        token = deit_loss(
            student.heads["dist"], dense.mean((2, 3)), variant=self.deit_variant, temperature=self.temperature
        )
        patches = cskd_loss(
            head(student.tokens),
            dense,
            local=progress.number(lambda at: self.decay(at.epoch / at.epochs), torch.float64),
            variant=self.variant,
            temperature=self.temperature,
        )
        return {
            "ce": (1 - self.alpha) * hard_label_loss(student.logits, batch),
            "deit": self.alpha * token,
            "cskd": self.cskd_weight * patches,
        }
