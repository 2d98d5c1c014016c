"""CIFAR ResNets: resnet8 … resnet110 and the four-fold wide resnet8x4, resnet32x4 (He et al. 2016, §4.2), the same with
shortcuts that have no weights, resnet20a … resnet110a, and ResNet-18/34/50 with a 3x3 stem. Attribute names match
RepDistiller's, those of the second kind akamaster/pytorch_resnet_cifar10's, so their checkpoints load as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel, conv1x1, conv3x3, init_kaiming_fan_out, pool_flatten
from kdrun.structures import Outputs


class BasicBlock(nn.Module):
    """Basic block: conv3-BN-ReLU-conv3-BN + shortcut; returns the sum before its ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, option: str):
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut_name = shortcut
        setattr(self, shortcut, make_shortcut(in_channels, width, stride, option))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return out + getattr(self, self.shortcut_name)(x)


class Bottleneck(nn.Module):
    """Bottleneck block: conv1-BN-ReLU-conv3-BN-ReLU-conv1-BN + shortcut; returns the sum before its ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str, option: str):
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, 4 * width)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut_name = shortcut
        setattr(self, shortcut, make_shortcut(in_channels, 4 * width, stride, option))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return out + getattr(self, self.shortcut_name)(x)


class PaddedShortcut(nn.Module):
    """Shortcut of every second pixel, with channels of zeros on both sides (option A): half of the new ones before
    the old."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.before, self.after = new_channels // 2, new_channels - new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def make_shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    """Return the shortcut: identity if the shape stays, else a 1x1 convolution with BN (option B), or no weights
    (option A)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    if option == "A":
        return PaddedShortcut(out_channels - in_channels)
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class CifarResNet(ZooModel):
    """CIFAR ResNet. Taps: stem, then each stage after its last ReLU; `preact` is the sum before that ReLU."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: list[int],
        widths: list[int],
        stem: int,
        num_classes: int,
        shortcut: str,
        classifier_name: str,
        option: str = "B",
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
                blocks.append(block(channels, width, stride, shortcut, option))
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
    """Build resnet-d, d = 6n + 2: three stages of n basic blocks with 16, 32, 64 channels; times 4 with a stem of
    32."""
    blocks = (depth - 2) // 6
    widths = [16 * wide, 32 * wide, 64 * wide]
    stem = 32 if wide == 4 else 16
    return CifarResNet(BasicBlock, [blocks] * 3, widths, stem, num_classes, shortcut="downsample", classifier_name="fc")


def resnet_padded(depth: int, num_classes: int) -> CifarResNet:
    """Build resnet-d as He et al. trained it on CIFAR-10: where a stage begins, the shortcut is subsampled and
    padded with zeros (option A), without weights. All weights start by Kaiming's rule over fan-in, as in akamaster's
    code."""
    blocks = [(depth - 2) // 6] * 3
    model = CifarResNet(BasicBlock, blocks, [16, 32, 64], 16, num_classes, "shortcut", "linear", option="A")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def resnet_imagenet_depth(depth: int, num_classes: int) -> CifarResNet:
    """Build ResNet-18/34/50 with a 3x3 stride-1 stem and no max-pooling, for images of 32 to 64 pixels."""
    block, depths = {
        18: (BasicBlock, [2, 2, 2, 2]),
        34: (BasicBlock, [3, 4, 6, 3]),
        50: (Bottleneck, [3, 4, 6, 3]),
    }[depth]
    widths = [64, 128, 256, 512]
    return CifarResNet(block, depths, widths, 64, num_classes, shortcut="shortcut", classifier_name="linear")
