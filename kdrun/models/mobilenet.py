"""MobileNetV2 for 32-pixel images (Sandler et al. 2018) as the CIFAR distillation benchmarks use it: ReLU instead of
ReLU6, stride 1 in the second setting. Attribute names as RepDistiller's."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel, conv1x1, conv3x3, init_normal_fan_out, pool_flatten
from kdrun.structures import Outputs

# expansion, channels, repeats, first stride
SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
TAPPED = (1, 2, 4)  # maps f1, f2, f3 follow these settings


class InvertedResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            conv1x1(in_channels, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv3x3(hidden, hidden, stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv1x1(hidden, out_channels),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def conv_bn_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


class MobileNetV2(ZooModel):
    """MobileNetV2. Taps: stem, settings 2, 3, 5 (signed), then `last_tap="conv"`: after the 1280-channel convolution
    (P3's table, SRD) or `"block"`: the signed output of the last setting (RepDistiller, mdistiller)."""

    classifier_name = "classifier"

    def __init__(self, width: float, num_classes: int, last_tap: str = "conv"):
        super().__init__()
        if last_tap not in ("conv", "block"):
            raise ValueError(f"last_tap={last_tap!r}: choose conv or block")
        self.last_tap = last_tap
        channels = int(32 * width)
        self.conv1 = conv_bn_relu(conv3x3(3, channels, 2))
        self.blocks = nn.ModuleList()
        for expansion, out, repeats, stride in SETTINGS:
            out = int(out * width)
            layers = []
            for position in range(repeats):
                layers.append(InvertedResidual(channels, out, stride if position == 0 else 1, expansion))
                channels = out
            self.blocks.append(nn.Sequential(*layers))
        self.conv2 = conv_bn_relu(conv1x1(channels, 1280))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        init_normal_fan_out(self, linear_std=0.01)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        x = self.conv1(image)
        maps = [x]
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPPED:
                maps.append(x)
        last = self.conv2(x)
        maps.append(last if self.last_tap == "conv" else x)
        pooled = pool_flatten(last)
        return Outputs(self.classifier(pooled), tuple(maps), pooled=pooled)
