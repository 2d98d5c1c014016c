"""ShuffleNet V1 (Zhang et al. 2018, 3 groups) and V2 (Ma et al. 2018, ×1) with the 1x1 stem of the CIFAR distillation
benchmarks. Attribute names as RepDistiller's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel, channel_shuffle, conv1x1, conv3x3, pool_flatten
from kdrun.structures import Outputs


class UnitV1(nn.Module):
    """Unit of ShuffleNet V1: grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1. With stride 2 the pooled
    input is concatenated, so the branch yields out - in channels. Returns the sum (or concatenation) before its
    ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int):
        super().__init__()
        self.stride = stride
        out = out_channels - in_channels if stride == 2 else out_channels
        hidden = out // 4
        self.groups = 1 if in_channels == 24 else groups
        self.conv1 = conv1x1(in_channels, hidden, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = conv3x3(hidden, hidden, stride, groups=hidden)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, out, groups=groups)
        self.bn3 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(channel_shuffle(out, self.groups))), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        return out + x


class ShuffleNetV1(ZooModel):
    """ShuffleNet V1. Taps: stem and the three stages after their last ReLU; `preact` before it."""

    classifier_name = "linear"

    def __init__(self, num_classes: int, groups: int = 3):
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        channels = 24
        for number, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            blocks = []
            for position in range(units):
                blocks.append(UnitV1(channels, width, 2 if position == 0 else 1, groups))
                channels = width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, num_classes)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        overwrite = "preact" not in needs
        before = self.bn1(self.conv1(image))
        x = F.relu(before, inplace=overwrite)
        maps, preact = [x], [before]
        for number in (1, 2, 3):
            for unit in self.get_submodule(f"layer{number}").children():
                before = unit(x)
                x = F.relu(before, inplace=overwrite)
            maps.append(x)
            preact.append(before)
        pooled = pool_flatten(x)
        return Outputs(self.linear(pooled), tuple(maps), None if overwrite else tuple(preact), pooled)


class UnitV2(nn.Module):
    """Unit of ShuffleNet V2: half of the channels pass unchanged; the other half: 1x1, depthwise 3x3, 1x1;
    concatenated and shuffled."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.kept = half
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit's output and, for pre-activation taps, the unshuffled concatenation before the last ReLU."""
        kept, x = x[:, : self.kept], x[:, self.kept :]
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        before = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        return channel_shuffle(torch.cat([kept, F.relu(before)], 1), 2), torch.cat([kept, before], 1)


class DownUnitV2(nn.Module):
    """Downsampling unit of ShuffleNet V2: halves the resolution; both branches see all channels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = out_channels // 2
        self.conv1 = conv3x3(in_channels, in_channels, 2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))), inplace=True)
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = F.relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))), inplace=True)
        return channel_shuffle(torch.cat([left, right], 1), 2)


class ShuffleNetV2(ZooModel):
    """ShuffleNet V2. Taps: stem and the three stages; `last_tap="conv"` takes the 1024-channel convolution's output
    instead of stage 3 (SRD); the default `"stage"` is RepDistiller's and mdistiller's."""

    classifier_name = "linear"

    def __init__(self, num_classes: int, last_tap: str = "stage"):
        super().__init__()
        if last_tap not in ("stage", "conv"):
            raise ValueError(f"last_tap={last_tap!r}: choose stage or conv")
        self.last_tap = last_tap
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        channels = 24
        for number, (width, units) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            stage = [DownUnitV2(channels, width), *(UnitV2(width) for _ in range(units))]
            setattr(self, f"layer{number}", nn.Sequential(*stage))
            channels = width
        self.conv2 = conv1x1(channels, 1024)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        keep = "preact" in needs
        before = self.bn1(self.conv1(image))
        x = F.relu(before)
        maps, preact = [x], [before]
        for number in (1, 2, 3):
            down, *units = self.get_submodule(f"layer{number}").children()
            x = down(x)
            for unit in units:
                x, before = unit(x)
            maps.append(x)
            preact.append(before)
        last_before = self.bn2(self.conv2(x))
        last = F.relu(last_before)
        if self.last_tap == "conv":
            maps[-1], preact[-1] = last, last_before
        pooled = pool_flatten(last)
        return Outputs(self.linear(pooled), tuple(maps), tuple(preact) if keep else None, pooled)
