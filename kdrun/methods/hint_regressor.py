"""The PyTorch tutorial's regressor."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import stage_pairs
from kdrun.methods.fitnet import hint_loss
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


class HintRegressor(Method):
    """Predicts the teacher's deepest map from the student's by one plain convolution.

    Paper: none; Chariton, "Knowledge Distillation Tutorial", PyTorch tutorials, 2023, after Romero et al. 2015,
        arXiv:1412.6550.

    Equation:
        L = ce_weight CE(z_s, y) + hint_weight mean (conv3x3(f_s) - f_t)^2

    Hyperparameters:
        ce_weight: weight of the hard-label term. 0.75 in the tutorial.
        hint_weight: weight of the map's mean squared error. 0.25 there.

    Disagreements:
        The tutorial keeps the convolution inside the student and so in its checkpoint; here it is a part of the method,
        which trains with the student and is gone afterwards. Its own figures put this row below the student alone. On
        different grids, which the tutorial cannot run, the larger map is averaged to the smaller grid.
    """

    batch_terms = "sample"
    takes_mixed = True
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps"})

    def __init__(self, *, ce_weight: float, hint_weight: float):
        super().__init__()
        self.ce_weight, self.hint_weight = ce_weight, hint_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        ((self.ours, self.theirs),) = stage_pairs(student, teacher, "hint_regressor", "last")
        assert teacher is not None
        self.teacher_stages = frozenset({self.theirs})
        self.regressor = nn.Conv2d(student.maps[self.ours][0], teacher.maps[self.theirs][0], 3, padding=1)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None and teacher.maps is not None
        hint = hint_loss(self.regressor(student.maps[self.ours]), teacher.maps[self.theirs])
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "hint": self.hint_weight * hint,
        }
