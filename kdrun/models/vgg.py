"""VGG with batch norm for 32-pixel images (Simonyan & Zisserman 2015): convolutions with bias, one Linear at the end.
Attribute names as RepDistiller's."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel, conv3x3, init_normal_fan_out, pool_flatten
from kdrun.structures import Outputs

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(ZooModel):
    """VGG. Taps: each of the five blocks after its last ReLU, before pooling; `preact` before that ReLU.

    Max-pooling follows blocks 0, 1, 2, and block 3 only for images of 64 pixels or more.
    """

    classifier_name = "classifier"

    def __init__(self, depth: int, num_classes: int):
        super().__init__()
        channels = 3
        for number, (width, convs) in enumerate(zip(WIDTHS, DEPTHS[depth], strict=True)):
            layers: list[nn.Module] = []
            for _ in range(convs):
                layers += [conv3x3(channels, width, bias=True), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            setattr(self, f"block{number}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(channels, num_classes)
        init_normal_fan_out(self, linear_std=0.01)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        overwrite = "preact" not in needs
        x, maps, preact = image, [], []
        for number in range(len(WIDTHS)):
            before = self.get_submodule(f"block{number}")(x)
            x = F.relu(before, inplace=overwrite)
            maps.append(x)
            preact.append(before)
            if number < 3 or (number == 3 and image.shape[-1] >= 64):
                x = F.max_pool2d(x, 2)
        pooled = pool_flatten(x)
        return Outputs(self.classifier(pooled), tuple(maps), None if overwrite else tuple(preact), pooled)
