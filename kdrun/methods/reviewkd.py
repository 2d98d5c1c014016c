"""Knowledge review."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.methods.base import Method
from kdrun.methods.features import BatchNorm, average_pool, need_pooled, stage_pairs
from kdrun.methods.losses import hard_label_loss, linear_ramp
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

GREATEST_WIDTH = 512  # of the fused maps
POOLED_GRIDS = (4, 2, 1)
Grid = tuple[int, int]


def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the hierarchical context loss: mean squared differences of two maps and of their averages on grids of 4, 2
    and 1, weighted 1, 1/2, 1/4, 1/8 and divided by the sum of the weights used; a scalar.

    student, teacher [N, C, H, W]. Grids that are not smaller than H are left out. Chen et al. 2021, arXiv:2104.09044.
    """
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for side in POOLED_GRIDS:
        if side < student.shape[2]:
            weight /= 2
            total += weight
            s, t = average_pool(student, (side, side)), average_pool(teacher, (side, side))
            loss = loss + weight * F.mse_loss(s, t)
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of a student map with the deeper level's output, into a teacher's shape.

    x [N, C_in, H, W], deeper [N, C_mid, h, w] (None at the deepest level, `fuses` false) -> output [N, C_out, *grid]
    and the fused map [N, C_mid, *grid] for the next level. Resizing is to the nearest position.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, grid: Grid, fuses: bool):
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), BatchNorm(width))
        self.conv2 = nn.Sequential(nn.Conv2d(width, out_channels, 3, padding=1, bias=False), BatchNorm(out_channels))
        self.gate = nn.Conv2d(2 * width, 2, 1) if fuses else None
        for block in (self.conv1, self.conv2):
            nn.init.kaiming_uniform_(block[0].weight, a=1)  # type: ignore[arg-type]

    def forward(self, x: Tensor, deeper: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.conv1(x)
        if self.gate is not None:
            assert deeper is not None
            deeper = _nearest(deeper, (x.shape[2], x.shape[3]))
            gates = self.gate(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        x = _nearest(x, self.grid)
        return self.conv2(x), x


def _nearest(x: Tensor, grid: Grid) -> Tensor:
    return x if tuple(x.shape[2:]) == grid else F.interpolate(x, size=grid, mode="nearest")


class ReviewKD(Method):
    """Matches each teacher stage with the student's stage of the same depth fused with all deeper ones.

    Teachers without maps before their last activations (vision transformers) are compared at their maps.

    Paper: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044.

    Equation:
        L = ce_weight CE(z_s, y) + min(e / warmup_epochs, 1) review_weight sum_levels HCL(out_l, f_t,l)
        x_l = g0 conv1x1(f_s,l) + g1 up(x_(l+1)),   (g0, g1) = sigmoid(conv1x1([.., ..])),   out_l = conv3x3(x_l)
        levels: stage maps (the teacher's before their last activation) and the pooled vectors;
        HCL: squared differences on the grid and on grids of 4, 2, 1, weighted 1, 1/2, 1/4, 1/8 over their sum

    Hyperparameters:
        ce_weight: weight of the hard-label term. 1 in mdistiller.
        review_weight: chosen per pair in the authors' script: 5 for most CIFAR-100 pairs, 0.6 for resnet56 to resnet20,
            1 for resnet110 to resnet32, 8 for ShuffleNetV2 (and, as recalled, MobileNetV2) students; 5 is the default
            here.
        warmup_epochs: epochs over which the term grows linearly, counted from 1. 20 in mdistiller.

    Disagreements:
        None in value. The authors train at batch 128, lr 0.1 (0.02 for ShuffleNets) with Nesterov momentum, mdistiller
        at batch 64, lr 0.05 without. mdistiller's configurations list grids and channels by hand for each pair; kdrun
        measures them and pairs the stages by resolution. The fused maps have min(512, pooled width of the student)
        channels in both.
    """

    batch_terms = "sample"
    takes_mixed = True
    student_needs = frozenset({"maps", "pooled"})
    teacher_needs = frozenset({"maps", "preact", "pooled"})

    def __init__(self, *, ce_weight: float, review_weight: float, warmup_epochs: int):
        super().__init__()
        self.ce_weight, self.review_weight, self.warmup_epochs = ce_weight, review_weight, warmup_epochs

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = stage_pairs(student, teacher, "reviewkd")
        deepest, target = need_pooled(student, "student", "reviewkd"), need_pooled(teacher, "teacher", "reviewkd")
        width = min(GREATEST_WIDTH, deepest)
        shapes = teacher.maps if teacher.preact is None else teacher.preact
        levels = [Fusion(deepest, width, target, (1, 1), fuses=False)]
        for i, j in reversed(self.pairs):
            channels, *grid = shapes[j]
            levels.append(Fusion(student.maps[i][0], width, channels, (grid[0], grid[1]), fuses=True))
        self.levels = nn.ModuleList(levels)  # deepest first

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        weight = progress.number(lambda at: linear_ramp(at.epoch, self.warmup_epochs) * self.review_weight)
        return {
            "ce": self.ce_weight * hard_label_loss(student.logits, batch),
            "review": weight * self.review(student, teacher),
        }

    def review(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the sum of the levels' losses, from the deepest up."""
        targets = teacher.maps if teacher.preact is None else teacher.preact
        assert student.maps is not None and student.pooled is not None
        assert targets is not None and teacher.pooled is not None
        inputs = [student.pooled[:, :, None, None], *(student.maps[i] for i, _ in reversed(self.pairs))]
        wanted = [teacher.pooled[:, :, None, None], *(targets[j] for _, j in reversed(self.pairs))]
        fused, losses = None, []
        for level, x, target in zip(self.levels, inputs, wanted, strict=True):
            output, fused = level(x, fused)
            losses.append(hcl_loss(output, target))
        return torch.stack(losses).sum()
