"""Wide residual networks WRN-d-k (Zagoruyko & Komodakis 2016, arXiv:1605.07146), attribute names as RepDistiller's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel, conv1x1, conv3x3, init_normal_fan_out, pool_flatten
from kdrun.structures import Outputs


class PreActivationBlock(nn.Module):
    """Pre-activation block: BN-ReLU-conv3-BN-ReLU-conv3 plus shortcut. Where the width changes, the activated input
    feeds both branches and the shortcut is a bias-free 1x1 convolution; elsewhere the shortcut is the input itself."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.convShortcut = None if in_channels == out_channels else conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor, normalised: Tensor | None = None) -> Tensor:
        """Return the block's output for x [N, C, H, W]. normalised: bn1(x) if the caller has it already, so that no
        statistic is updated twice."""
        act = F.relu(self.bn1(x), inplace=True) if normalised is None else F.relu(normalised)
        out = F.relu(self.bn2(self.conv1(act)), inplace=True)
        out = self.conv2(out)
        return out + (x if self.convShortcut is None else self.convShortcut(act))


class Group(nn.Module):
    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            *(
                PreActivationBlock(
                    in_channels if position == 0 else out_channels, out_channels, stride if position == 0 else 1
                )
                for position in range(blocks)
            )
        )

    def normalise(self, x: Tensor) -> Tensor:
        """Apply bn1 of the first block: the pre-activation of the map that enters this group."""
        first = self.layer[0]
        assert isinstance(first, PreActivationBlock)
        return first.bn1(x)

    def forward(self, x: Tensor, normalised: Tensor | None) -> Tensor:
        first, *rest = self.layer.children()
        x = first(x, normalised)
        for block in rest:
            x = block(x)
        return x


class WideResNet(ZooModel):
    """WRN. Taps: stem and the raw (signed) output of groups 1 and 2; the last map is taken after the final BN and
    ReLU, or raw with `preact_last_map=True`, which is RepDistiller's and mdistiller's convention."""

    def __init__(self, depth: int, widen: int, num_classes: int, preact_last_map: bool = False):
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.preact_last_map = preact_last_map
        self.conv1 = conv3x3(3, widths[0])
        self.block1 = Group(blocks, widths[0], widths[1], 1)
        self.block2 = Group(blocks, widths[1], widths[2], 2)
        self.block3 = Group(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        init_normal_fan_out(self)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        stem = self.conv1(image)
        first = self.block1(stem, None)
        first_normalised = self.block2.normalise(first)
        second = self.block2(first, first_normalised)
        second_normalised = self.block3.normalise(second)
        raw = self.block3(second, second_normalised)
        normalised = self.bn1(raw)
        keep = "preact" in needs
        last = F.relu(normalised, inplace=not keep)
        pooled = pool_flatten(last)
        return Outputs(
            self.fc(pooled),
            maps=(stem, first, second, raw if self.preact_last_map else last),
            preact=(stem, first_normalised, second_normalised, normalised) if keep else None,
            pooled=pooled,
        )
