"""The reused teacher classifier."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import BatchNorm, resize_map, smaller_grid
from kdrun.methods.srd import check_classifier, classified_map, reused_classifier
from kdrun.models.features import Tap
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

MAPS = frozenset({"maps"})


def projector(in_channels: int, out_channels: int, bottleneck: int) -> nn.Sequential:
    """Build 1x1, 3x3 and 1x1 convolutions without bias, batch norm and ReLU after each; out_channels / bottleneck in
    the middle, as in the authors' code (Chen et al. 2022, arXiv:2203.14001)."""
    hidden = max(1, out_channels // bottleneck)
    layers: list[nn.Module] = []
    for a, b, size in ((in_channels, hidden, 1), (hidden, hidden, 3), (hidden, out_channels, 1)):
        layers += [nn.Conv2d(a, b, size, padding=size // 2, bias=False), BatchNorm(b), nn.ReLU()]
    return nn.Sequential(*layers)


class Reused(nn.Module):
    """Deployed network: the student's last map, the projector, the teacher's classifier. image [N, 3, H, W], as
    prepared by the student's tap, -> logits [N, K]."""

    def __init__(self, tap: Tap, projector: nn.Module, classifier: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.student = tap.model
        self.projector = projector
        self.classifier = classifier
        self.grid = grid
        self.tap = (tap,)  # in a tuple, to keep its weights from entering the state dict a second time

    def forward(self, image: Tensor) -> Tensor:
        maps = self.tap[0].adapter(image, MAPS).maps
        assert maps is not None
        return self.classifier(self.projector(resize_map(maps[-1], self.grid)).mean((2, 3)))


class SimKD(Method):
    """Trains only the student's features, so that the teacher's own classifier can be used on them.

    Paper: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
        arXiv:2203.14001.

    Equation:
        L = feature_weight mean (P(f_s) - f_t)^2
        P = 1x1, 3x3, 1x1 convolutions with BN and ReLU;   at inference z = classifier_t(mean_hw P(f_s))

    Hyperparameters:
        feature_weight: weight of the maps' mean squared error, the only term. 1 in the authors' code.
        bottleneck: the projector's inner width is C_t / bottleneck. 2 in the authors' code.

    Disagreements:
        The projector and a copy of the teacher's classifier belong to what is evaluated, counted and stored; some
        tables count the student alone. The student's own classifier is never trained, so no accuracy on training
        batches is shown. The larger map is averaged to the smaller grid before the projector, as in the authors' code.
        Teachers as in srd.
    """

    batch_terms = "sample"
    takes_mixed = True
    deploys = True
    trains_classifier = False
    student_needs = MAPS
    teacher_needs = frozenset({"maps", "tokens"})
    teacher_stages = frozenset({-1})
    exceptions = {
        "ce": "the only loss is the feature's mean squared error (Chen et al. 2022)",
        "reload": "inference needs the projector and the teacher's classifier",
    }

    def __init__(self, *, feature_weight: float, bottleneck: int):
        super().__init__()
        self.feature_weight, self.bottleneck = feature_weight, bottleneck

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        classifier, (channels, height, width) = reused_classifier(student, teacher, "simkd")
        own_channels, own_height, own_width = student.maps[-1]
        self.grid = (min(height, own_height), min(width, own_width))
        self.projector = projector(own_channels, channels, self.bottleneck)
        self.classifier = (copy.deepcopy(classifier).eval().requires_grad_(False),)

    def deployed(self, student: Tap) -> nn.Module:
        return Reused(student, self.projector, self.classifier[0], self.grid)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None
        check_classifier(self.classifier[0], teacher, "simkd", progress)
        source, target = smaller_grid(student.maps[-1], classified_map(teacher))
        return {"feature": self.feature_weight * F.mse_loss(self.projector(source), target)}
