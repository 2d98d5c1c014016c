"""Layers and helpers that the CIFAR families share."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.structures import Outputs

NOTHING: frozenset[str] = frozenset()


class ZooModel(nn.Module):
    """Network that returns its stage maps natively, without hooks or side effects.

    A family implements `outputs`; `classifier_name` is the attribute that maps pooled [N, D] to logits [N, K].
    """

    classifier_name = "fc"
    stems = 1  # number of leading maps that belong to the stem, which no method pairs

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        """Return the requested outputs for image [N, 3, H, W]. `preact` is kept only if `needs` names it: otherwise
        activations overwrite it, which saves a pass through memory."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        return self.outputs(image).logits

    def get_classifier(self) -> nn.Module:
        """Return the module that maps pooled [N, D] to logits [N, K]."""
        return self.get_submodule(self.classifier_name)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)


def pool_flatten(x: Tensor) -> Tensor:
    """Pool globally by averaging: [N, C, H, W] -> [N, C]."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups: [N, C, H, W] -> [N, C, H, W]."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def init_normal_fan_out(model: nn.Module, linear_std: float | None = None) -> None:
    """Initialise as WRN, VGG and MobileNetV2 in the CIFAR benchmarks: conv ~ N(0, √(2/(k²·C_out))), biases 0; Linear
    weights N(0, linear_std) or PyTorch's default. Batch norm starts at 1/0 by default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if linear_std is not None:
                nn.init.normal_(module.weight, 0.0, linear_std)
            nn.init.zeros_(module.bias)


def init_kaiming_fan_out(model: nn.Module) -> None:
    """Initialise conv ~ Kaiming normal over fan-out (which divides the fan by the groups); the rest keeps PyTorch's
    default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
