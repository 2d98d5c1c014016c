"""Softmax regression: the teacher's own classifier judges the student's features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import PairingError
from kdrun.methods.base import Method
from kdrun.methods.features import adaptor, smaller_grid, stage_pairs
from kdrun.methods.losses import hard_label_loss
from kdrun.models.adapters import as_map
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

# Largest relative difference between a teacher's logits and its classifier on the mean of its last map; bf16 stays far
# below, a missing normalisation or activation far above.
LIKENESS = 0.1


def reused_classifier(student: Spec, teacher: Spec | None, method: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the teacher's classifier, and the shape of the map whose spatial mean it reads (`classified_map`).

    Raises PairingError if there is none: a classifier of a class token, of a flattened map, or of a layer that the taps
    do not reach, cannot classify a map.
    """
    assert teacher is not None
    stage_pairs(student, teacher, method)
    shape = teacher.maps[-1]
    if teacher.tokens is not None:
        length, width = teacher.tokens
        shape = (width, math.isqrt(length), math.isqrt(length))
    reason = ""
    if teacher.prefix:
        reason = "this teacher classifies a class token"
    elif teacher.classifier is None:
        reason = "this teacher has no single module from pooled vector to logits"
    elif teacher.pooled != shape[0]:
        reason = (
            f"this teacher's classifier reads {teacher.pooled} numbers but its last map has {shape[0]} channels "
            "(MobileNetV2 and ShuffleNetV2 provide the right map with teacher.kwargs {last_tap: conv})"
        )
    if reason or teacher.classifier is None:
        raise PairingError(
            f"method {method} feeds the mean of a map to the teacher's classifier, but {reason}. Methods that need no "
            "classifier: fitnet_joint, at, kd, dist."
        )
    return teacher.classifier, shape


def classified_map(teacher: Outputs) -> Tensor:
    """Return the teacher's last map [N, C, H, W]; for a transformer the final, normalised patch tokens on their
    grid."""
    if teacher.tokens is not None:
        return as_map(teacher.tokens)
    assert teacher.maps is not None
    return teacher.maps[-1]


def check_classifier(classifier: Callable[[Tensor], Tensor], teacher: Outputs, method: str, progress: Progress) -> None:
    """Raise PairingError unless the classifier maps the mean of the teacher's map to the teacher's logits, which
    shapes alone cannot show (a map tapped before its last batch norm, a norm after pooling). Checked only at the
    very first step, because it waits for the device."""
    if not progress.first:
        return
    found = classifier(classified_map(teacher).mean((2, 3)))
    if (found - teacher.logits).norm() > LIKENESS * teacher.logits.norm():
        raise PairingError(
            f"method {method} feeds the mean of a map to the teacher's classifier, but this teacher normalises or "
            "activates in between (for a WRN set teacher.preact_last_map=false). Methods that need no classifier: "
            "fitnet_joint, at, kd, dist."
        )


def feature_loss(adapted: Tensor, teacher: Tensor, means: bool = False) -> Tensor:
    """Return the mean over all elements of (f̂ - f_t)², maps [N, C, H, W], the larger one averaged to the smaller
    grid. means: compare the maps' spatial means [N, C] instead."""
    if means:
        return F.mse_loss(adapted.mean((2, 3)), teacher.mean((2, 3)))
    return F.mse_loss(*smaller_grid(adapted, teacher))


def cross_logits(adapted: Tensor, classifier: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ẑ [N, K]: the teacher's classifier applied to the student's adapted map [N, C_t, H, W], on its own
    grid."""
    return classifier(adapted.mean((2, 3)))


class SRD(Method):
    """Trains the student's last map to give the teacher's logits in the teacher's frozen classifier.

    Paper: Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation
        Learning", ICLR 2021; Yang, Zhu, Bulat, Martinez, Tzimiropoulos, "Knowledge Distillation Meets Open-Set
        Semi-Supervised Learning", IJCV 2024, arXiv:2205.06701. Form and weights of P3's table.

    Equation:
        L = ce_weight CE(z_s, y) + feature_weight mean (f^ - f_t)^2 + srd_weight mean (z^ - z_t)^2
        f^ = ReLU(BN(conv1x1(f_s))),   z^ = classifier_t(mean_hw f^)

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in P3's table.
        feature_weight: weight of the maps' mean squared error. 1 there (its A).
        srd_weight: weight of the raw logits' mean squared error over samples and classes. 2 there (its B), 1 in the
            authors' code.
        feature_means: true compares the maps' spatial means, as the authors' code does (SRD_ossl, distiller_zoo/AIN.py,
            experiment=srd_authors); false every position, as P3's table.

    Disagreements:
        The authors' code compares spatial means of the maps, P3's table every position, which is about 50 times as
        large. On different grids, which the table cannot run, kdrun averages the larger map to the smaller.
        torchdistill's SRDLoss is another paper. The teacher's classifier must read the mean of the map
        that is compared: a WRN's after its last batch norm and ReLU (preact_last_map=false), a mean-pooled
        transformer's final tokens; a class-token transformer is rejected.
    """

    batch_terms = "sample"
    takes_mixed = True
    name: ClassVar[str] = "srd"
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps", "tokens"})
    teacher_stages = frozenset({-1})

    def __init__(self, *, ce_weight: float, feature_weight: float, srd_weight: float, feature_means: bool = False):
        super().__init__()
        self.feature_means = feature_means
        self.ce_weight, self.feature_weight, self.srd_weight = ce_weight, feature_weight, srd_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        classifier, (channels, _, _) = reused_classifier(student, teacher, self.name)
        self.adaptor = adaptor(student.maps[-1][0], channels)
        # In a tuple: it belongs to the teacher, and to no optimizer or state dict.
        self.classifier: tuple[Callable[[Tensor], Tensor]] = (classifier,)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None
        (classifier,) = self.classifier
        check_classifier(classifier, teacher, self.name, progress)
        adapted = self.adaptor(student.maps[-1])
        cross = cross_logits(adapted, classifier)
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "feature": self.feature_weight * feature_loss(adapted, classified_map(teacher), self.feature_means),
            "srd": self.srd_weight * self.regression(cross, teacher.logits),
        }

    def regression(self, cross: Tensor, teacher: Tensor) -> Tensor:
        """Return the distance of the cross-network logits [N, K] from the teacher's [N, K]; a scalar."""
        return F.mse_loss(cross, teacher)
