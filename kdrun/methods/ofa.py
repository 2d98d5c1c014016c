"""One-for-all distillation: stages of any architecture are compared in logit space."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import PairingError
from kdrun.methods.base import Method
from kdrun.methods.features import BatchNorm
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

FINAL_GRID = 7  # patches per side down to which a transformer's stages are merged
HEADS = 4  # attention heads of a projector's blocks


def ofa_loss(student: Tensor, teacher: Tensor, label: Tensor, *, eps: float, temperature: float) -> Tensor:
    """Return -mean_n Σ_k [(p_t + onehot(y))^ε - onehot(y)]·log softmax(z_s/T), p_t = softmax(z_t/T); no T².

    student, teacher: logits [N, K]; label [N]. ε = 1 is the soft cross-entropy, ε > 1 raises the true class's target
    (Hao et al. 2023, arXiv:2310.19444).
    """
    truth = F.one_hot(label, student.shape[1]).to(teacher.dtype)
    target = (F.softmax(teacher / temperature, dim=1) + truth) ** eps - truth
    return -(target * F.log_softmax(student / temperature, dim=1)).sum(dim=1).mean()


def separable(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build two depthwise-separable 3x3 convolutions, the first with stride 2, each followed by batch norm and ReLU
    (the authors' SepConv): [N, C, H, W] -> [N, out_channels, ⌈H/2⌉, ⌈W/2⌉]."""
    layers: list[nn.Module] = []
    for width, stride in ((in_channels, 2), (out_channels, 1)):
        layers += [
            nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, width, 1, bias=False),
            BatchNorm(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def map_projector(channels: int, steps: int, width: int, classes: int) -> nn.Sequential:
    """Build the projector of a stage map [N, C, H, W] to logits [N, K]: `steps` halvings that double the channels,
    the last to `width`, or a 1x1 convolution if there is no halving (the last stage); global average; linear."""
    halvings: list[nn.Module] = []
    for step in range(steps):
        inside = channels * 2**step
        halvings.append(separable(inside, width if step + 1 == steps else 2 * inside))
    body = halvings or [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Merge(nn.Module):
    """Patch merging as in Swin, of tokens on their grid: [N, H, W, D] -> [N, ⌈H/2⌉, ⌈W/2⌉, D]; an odd side is padded
    with zeros."""

    def __init__(self, width: int, activation: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, width, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.activation(self.reduction(self.norm(torch.cat(corners, dim=-1))))


class TokenProjector(nn.Module):
    """Projector of a transformer's stage map [N, D, H, W] and prefix tokens [N, P, D] to logits [N, K]: patches are
    merged as long as the grid has 14 or more per side, then come `blocks` transformer blocks, and the class token
    (or the mean of patches if there is none) is classified."""

    def __init__(self, width: int, grid: int, blocks: int, classes: int):
        super().__init__()
        from timm.models.vision_transformer import Block  # slow to import, but already imported for tokens

        merges = max(int(math.log2(grid / FINAL_GRID)), 0)
        last = merges - 1
        self.merge = nn.Sequential(
            *(Merge(width, nn.Identity() if 0 < i == last else nn.GELU()) for i in range(merges))
        )
        self.blocks = nn.Sequential(*(Block(width, math.gcd(HEADS, width)) for _ in range(blocks)))
        self.classify = nn.Linear(width, classes)

    def forward(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        patches = self.merge(x.permute(0, 2, 3, 1)).flatten(1, 2)
        if prefix is None or prefix.shape[1] == 0:
            return self.classify(self.blocks(patches).mean(dim=1))
        return self.classify(self.blocks(torch.cat([prefix, patches], dim=1))[:, 0])


def initialise(module: nn.Module) -> None:
    """Initialise convolutions Kaiming-normal over fan-out, and linear layers truncated normal 0.02 without bias, as
    the authors do."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class OFA(Method):
    """Lets every stage of the student predict the teacher's logits, so that features are never compared directly.

    Paper: Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in
        Knowledge Distillation", NeurIPS 2023, arXiv:2310.19444.

    Equation:
        L = ce_weight CE(z_s, y) + kd_weight ofa(z_s) + stage_weight sum over stages of ofa(P_i(f_i))
        ofa(z) = -mean_n sum_k [(p_t + m)^eps - m] log softmax(z / T),   p_t = softmax(z_t / T),   m = onehot(y)
        P_i of a CNN's stage i of S: S - i depthwise-separable halvings (the last stage: conv 1x1), average, linear
        P_i of a transformer's: patches merged towards 7x7, max(S - i, 1) blocks, class token, linear

    Hyperparameters:
        temperature: T; the loss carries no T^2. 1 in the authors' CIFAR-100 recipe.
        eps: exponent that raises the true class's target. 1 there; 1.5 in their ImageNet example.
        ce_weight: weight of the hard-label term. 1 there.
        kd_weight: weight of the term on the student's own logits. 1 there.
        stage_weight: weight of each stage's term. 1 there.

    Disagreements:
        The authors' code takes log(softmax), which is not finite at logits times 50. It reads `num_tokens` of timm 0.6,
        which newer timm calls num_prefix_tokens: a silent 0 there mixes the class token with patches. It taps a ViT
        after blocks 2, 4, 10 and 12 of 12, kdrun after each quarter; asks for grids that halve evenly, where kdrun pads
        with zeros; and counts from four stages, where kdrun takes as many as the network has. A student with a
        distillation token keeps it next to the class token, which is classified.
    """

    batch_terms = "sample"
    student_needs = frozenset({"maps", "tokens"})

    def __init__(self, *, temperature: float, eps: float, ce_weight: float, kd_weight: float, stage_weight: float):
        super().__init__()
        self.temperature, self.eps = temperature, eps
        self.ce_weight, self.kd_weight, self.stage_weight = ce_weight, kd_weight, stage_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.stems = student.stems
        shapes = student.maps[student.stems :]
        if not shapes:
            raise PairingError(
                "method ofa classifies the student's stages, but this student has none (kdrun taps lists a "
                "network's features). Methods on logits run on every pair: kd, dkd, dist, lskd."
            )
        self.on_tokens = student.tokens is not None
        width = max(feature_width(student), feature_width(teacher))
        self.projectors = nn.ModuleList()
        for stage, (channels, side, _) in enumerate(shapes, 1):
            left = len(shapes) - stage
            self.projectors.append(
                TokenProjector(channels, side, max(left, 1), student.num_classes)
                if self.on_tokens
                else map_projector(channels, left, width, student.num_classes)
            )
        self.projectors.apply(initialise)

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None
        stages = self.stage_logits(student)

        def loss(logits: Tensor) -> Tensor:
            return ofa_loss(logits, teacher.logits, batch.label, eps=self.eps, temperature=self.temperature)

        return {
            "ce": self.ce_weight * F.cross_entropy(student.logits, batch.label),
            "ofa": self.kd_weight * loss(student.logits),
            "ofa_stages": self.stage_weight * torch.stack([loss(logits) for logits in stages]).sum(),
        }

    def stage_logits(self, student: Outputs) -> list[Tensor]:
        """Return the projectors' logits of the stages: [N, K] each, shallow to deep."""
        assert student.maps is not None
        maps = student.maps[self.stems :]
        if not self.on_tokens:
            return [project(x) for project, x in zip(self.projectors, maps, strict=True)]
        prefixes = student.map_prefix or (None,) * len(maps)
        return [project(x, prefix) for project, x, prefix in zip(self.projectors, maps, prefixes, strict=True)]


def feature_width(spec: Spec) -> int:
    """Return the width of the classifier's input, or of the last map if there is no pooled vector; 0 if there is
    neither."""
    return spec.pooled or (spec.maps[-1][0] if spec.maps else 0)
