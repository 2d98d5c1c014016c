"""Attention transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.features import smaller_grid, stage_pairs
from kdrun.methods.kd import KD
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec


def attention_map(x: Tensor, power: float = 2.0) -> Tensor:
    """Return the attention map of [N, C, H, W]: [N, H·W], the mean over channels of |x|^power, with unit norm for
    each sample."""
    energy = x.square() if power == 2 else x.abs().pow(power)
    return F.normalize(energy.mean(1).flatten(1), dim=1)


def attention_loss(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Return the mean over N·H·W of (Q_s - Q_t)² at one stage, for maps [N, C, H, W] of any channels.

    On different grids the larger map is averaged to the smaller before the power. Zagoruyko & Komodakis 2017,
    arXiv:1612.03928, as in their code.
    """
    a, b = smaller_grid(student, teacher)
    return F.mse_loss(attention_map(a, power), attention_map(b, power))


class AT(KD):
    """Attention maps: the student matches the spatial energy of the teacher's maps at every stage.

    Paper: Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
        Networks via Attention Transfer", ICLR 2017, arXiv:1612.03928, section 3.1.

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight T^2 mean_n KL(softmax(z_t / T) || softmax(z_s / T))
            + at_weight sum_stages mean (Q_s - Q_t)^2,   Q = F / |F|,  F = mean_c |f|^power

    Hyperparameters:
        temperature: T. 4 in P3's table.
        ce_weight: weight of the hard-label term. 0.1 in P3's table (its 1 - A), 1 in RepDistiller and mdistiller.
        kd_weight: weight of the soft term. 0.9 in P3's table, whose row is AT + KD; 0 in RepDistiller and mdistiller,
            whose row is AT alone.
        at_weight: weight of the sum over stages. 1000 in all three.
        power: how strongly large activations count. 2 in all three and in the authors' code; the paper also tries 1
            and 4.

    Disagreements:
        RepDistiller, mdistiller and P3's table average over samples and positions; torchdistill's "paper" mode sums
        norms that are not squared. All pair stages by their position in a list, which mispairs networks of different
        depth (P3 left its MobileNetV2 cells blank); kdrun pairs by resolution.
    """

    batch_terms = "sample"
    student_needs = frozenset({"maps"})
    teacher_needs = frozenset({"maps"})

    def __init__(self, *, temperature: float, ce_weight: float, kd_weight: float, at_weight: float, power: float = 2.0):
        super().__init__(temperature=temperature, ce_weight=ce_weight, kd_weight=kd_weight)
        self.at_weight, self.power = at_weight, power

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.pairs = stage_pairs(student, teacher, "at")

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.maps is not None and teacher.maps is not None
        stages = [attention_loss(student.maps[ours], teacher.maps[theirs], self.power) for ours, theirs in self.pairs]
        return {
            **super().losses(batch, student, teacher, progress),
            "at": self.at_weight * torch.stack(stages).sum(),
        }
