"""FitNets in two stages: the student up to the hint first, then logit matching from that start."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.options import OptimizerOptions
from kdrun.methods.base import Forward
from kdrun.methods.features import BatchNorm, smaller_grid, stage_pairs
from kdrun.methods.kd import KD
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

DECAYS_AT = (0.4, 0.7)  # epochs 20 and 35 of 50


def hint_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over all elements of (r(f_s) - f_t)², maps [N, C, H, W], on the smaller grid if the two differ.

    Romero et al. 2015, arXiv:1412.6550, eq. 3, as RepDistiller and mdistiller scale it: the paper has ½ of the sum.
    """
    return F.mse_loss(*smaller_grid(regressed, teacher))


def regressor(student: tuple[int, int, int], teacher: tuple[int, int, int]) -> nn.Sequential:
    """Build a convolution with bias, batch norm and ReLU from the student's map (C, H, W) to the teacher's channels
    and, if that is twice or half the student's, to its grid (RepDistiller's ConvReg); other grids are left to
    `hint_loss`."""
    (channels, side, _), (width, goal, _) = student, teacher
    conv: nn.Module
    if side == 2 * goal:
        conv = nn.Conv2d(channels, width, 3, stride=2, padding=1)
    elif goal == 2 * side:
        conv = nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
    else:
        conv = nn.Conv2d(channels, width, 1)
    return nn.Sequential(conv, BatchNorm(width), nn.ReLU())


def hint_pair(student: Spec, teacher: Spec | None, hint_stage: str, method: str) -> tuple[int, int]:
    """Return (student map, teacher map) of the stage called f1, f2 … in the literature: counted after the stem over
    the paired stages; the deepest pair if there are fewer."""
    pairs = stage_pairs(student, teacher, method)
    return pairs[min(int(hint_stage[1:]), len(pairs)) - 1]


class FitNet(KD):
    """Trains the student up to a middle layer to predict the teacher's, then distils the whole from that start.

    Paper: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
        arXiv:1412.6550, section 2 and algorithm 1.

    Equation:
        stage 1: L = mean (r(f_s) - f_t)^2,   r = ReLU(BN(conv(f_s)))
        stage 2: L = ce_weight CE(z_s, y) + kd_weight T^2 mean_n KL(softmax(z_t / T) || softmax(z_s / T))

    Hyperparameters:
        temperature: T of stage 2. 4 in P3's code.
        ce_weight: weight of the hard-label term in stage 2. 0.1 there.
        kd_weight: weight of the soft term in stage 2. 0.9 there; the paper anneals its own from 4 to 1.
        hint_stage: f1 to f4, the stage that hints, counted after the stem; the deepest one if a network has fewer.
            f3 in P3's code.
        hint_epochs: length of stage 1, whose rate falls to a tenth after 2/5 and 7/10 of it. 50 in P3's code (20, 35).
        hint_lr: rate of stage 1 (SGD), there the recipe's own: 0.05, but 0.01 for MobileNetV2 and ShuffleNet students.
        hint_momentum: momentum of stage 1. 0.9 there.
        hint_weight_decay: weight decay of stage 1. 5e-4 there.

    Disagreements:
        RepDistiller, mdistiller and the published table run a single stage under this name: see fitnet_joint. The
        regressor is their ConvReg; on grids that are neither equal nor twice or half of each other, which they bridge
        with a kernel of 1 + s - t or not at all, kdrun averages the larger map to the smaller grid.
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
        hint_stage: Literal["f1", "f2", "f3", "f4"],
        hint_epochs: int,
        hint_lr: float,
        hint_momentum: float,
        hint_weight_decay: float,
    ):
        super().__init__(temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
        self.hint_stage, self.hint_epochs, self.hint_lr = hint_stage, hint_epochs, hint_lr
        self.hint_momentum, self.hint_weight_decay = hint_momentum, hint_weight_decay

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.ours, self.theirs = hint_pair(student, teacher, self.hint_stage, "fitnet")
        self.teacher_stages = frozenset({self.theirs})
        self.regressor = regressor(student.maps[self.ours], teacher.maps[self.theirs])

    def preparation(self) -> OptimizerOptions:
        return OptimizerOptions(
            name="sgd",
            epochs=self.hint_epochs,
            batch_size=64,  # unused: the recipe's batch size applies
            lr=self.hint_lr,
            momentum=self.hint_momentum,
            weight_decay=self.hint_weight_decay,
            schedule="multistep",
            milestones=[max(1, round(share * self.hint_epochs)) for share in DECAYS_AT],
        )

    def prepare_losses(
        self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress
    ) -> dict[str, Tensor]:
        assert teacher is not None
        return {"hint": self.hint(student(batch.image), teacher(batch.teacher_image))}

    def hint(self, student: Outputs, teacher: Outputs) -> Tensor:
        assert student.maps is not None and teacher.maps is not None
        return hint_loss(self.regressor(student.maps[self.ours]), teacher.maps[self.theirs])
