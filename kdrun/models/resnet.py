"""CIFAR ResNets: resnet8 … resnet110 and the four-fold wide resnet8x4, resnet32x4 (He et al. 2016, §4.2), and
ResNet-18/34/50 with a 3x3 stem. Attribute names match RepDistiller's, so its checkpoints load as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel, conv1x1, conv3x3, init_kaiming_fan_out, pool_flatten
from kdrun.structures import Outputs


class BasicBlock(nn.Module):
    """conv3-BN-ReLU-conv3-BN + shortcut; returns the sum before its ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_name = shortcut
        setattr(self, shortcut, make_shortcut(in_channels, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return out + getattr(self, self.shortcut_name)(x)


class Bottleneck(nn.Module):
    """conv1-BN-ReLU-conv3-BN-ReLU-conv1-BN + shortcut; returns the sum before its ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut_name = shortcut
        setattr(self, shortcut, make_shortcut(in_channels, 4 * width, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return out + getattr(self, self.shortcut_name)(x)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Identity where the shape stays, else a 1x1 convolution with BN (option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class CifarResNet(ZooModel):
    """Taps: stem, then each stage after its last ReLU; `preact` is the sum before that ReLU."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: list[int],
        widths: list[int],
        stem: int,
        num_classes: int,
        shortcut: str,
        classifier_name: str,
    ):
        super().__init__()
        self.classifier_name = classifier_name
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        self.stage_names = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for number, (name, depth, width) in enumerate(zip(self.stage_names, depths, widths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                blocks.append(block(channels, width, stride, shortcut))
                channels = width * block.expansion
            setattr(self, name, nn.Sequential(*blocks))
        setattr(self, classifier_name, nn.Linear(channels, num_classes))
        init_kaiming_fan_out(self)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        overwrite = "preact" not in needs
        before = self.bn1(self.conv1(image))
        x = F.relu(before, inplace=overwrite)
        maps, preact = [x], [before]
        for name in self.stage_names:
            for block in self.get_submodule(name).children():
                before = block(x)
                x = F.relu(before, inplace=overwrite)
            maps.append(x)
            preact.append(before)
        pooled = pool_flatten(x)
        return Outputs(self.get_classifier()(pooled), tuple(maps), None if overwrite else tuple(preact), pooled)


def resnet_cifar(depth: int, num_classes: int, wide: int = 1) -> CifarResNet:
    """resnet-d, d = 6n + 2, three stages of n basic blocks with 16, 32, 64 channels; times 4 with a stem of 32."""
    blocks = (depth - 2) // 6
    widths = [16 * wide, 32 * wide, 64 * wide]
    stem = 32 if wide == 4 else 16
    return CifarResNet(BasicBlock, [blocks] * 3, widths, stem, num_classes, shortcut="downsample", classifier_name="fc")


def resnet_imagenet_depth(depth: int, num_classes: int) -> CifarResNet:
    """ResNet-18/34/50 with a 3x3 stride-1 stem and no max-pooling, for images of 32 to 64 pixels."""
    block, depths = {
        18: (BasicBlock, [2, 2, 2, 2]),
        34: (BasicBlock, [3, 4, 6, 3]),
        50: (Bottleneck, [3, 4, 6, 3]),
    }[depth]
    widths = [64, 128, 256, 512]
    return CifarResNet(block, depths, widths, 64, num_classes, shortcut="shortcut", classifier_name="linear")
