"""FitNets in one stage: hint and logits together."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdrun.methods.fitnet import hint_loss, hint_pair, regressor
from kdrun.methods.kd import KD
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


class FitNetJoint(KD):
    """Predicts a middle layer of the teacher, together with its logits and the labels.

    Paper: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
        arXiv:1412.6550; one stage as in P3's table (there FitNet, elsewhere "FitNet-like" or "Hints").

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight T^2 mean_n KL(softmax(z_t / T) || softmax(z_s / T))
            + hint_weight mean (r(f_s) - f_t)^2,   r = ReLU(BN(conv(f_s)))

    Hyperparameters:
        temperature: T. 4 in P3's table.
        ce_weight: weight of the hard-label term. 0.1 there (its 1 - A), 1 in RepDistiller and mdistiller.
        kd_weight: weight of the soft term. 0.9 there (its A), 0 in RepDistiller and mdistiller.
        hint_weight: weight of the hint. 2 there (its B), 100 in RepDistiller and mdistiller.
        hint_stage: f1 to f4, the stage that hints, counted after the stem; the deepest one if a network has fewer.
            f3 there, f2 in RepDistiller and mdistiller.

    Disagreements:
        The paper trains in two stages (fitnet). RepDistiller's and mdistiller's row has no KD term and weighs the hint
        50 times as much. OFAKD sums 1x1 convolutions over all stages; the PyTorch tutorial's regressor has neither
        batch norm nor ReLU (hint_regressor). Grids as in fitnet.
    """

    batch_terms = "sample"
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps"})

    def __init__(
        self,
        *,
        temperature: float,
        ce_weight: float,
        kd_weight: float,
        hint_weight: float,
        hint_stage: Literal["f1", "f2", "f3", "f4"],
    ):
        super().__init__(temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
        self.hint_weight, self.hint_stage = hint_weight, hint_stage

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.ours, self.theirs = hint_pair(student, teacher, self.hint_stage, "fitnet_joint")
        self.teacher_stages = frozenset({self.theirs})
        self.regressor = regressor(student.maps[self.ours], teacher.maps[self.theirs])

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None and teacher.maps is not None
        hint = hint_loss(self.regressor(student.maps[self.ours]), teacher.maps[self.theirs])
        return {**super().losses(batch, student, teacher, progress), "hint": self.hint_weight * hint}
