"""DeepNN and LightNN of the PyTorch knowledge-distillation tutorial (32-pixel images), with PyTorch's own
initialisation."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.models.layers import NOTHING, ZooModel
from kdrun.structures import Outputs


class TutorialNet(ZooModel):
    """Network of two convolutional groups, each ended by max-pooling, and a two-layer classifier.

    Taps: the two pooled group outputs (`preact` stays None: ReLU and pooling alternate). `pooled` is the flattened last
    map, the classifier's input; the tutorial's cosine loss reads it.
    """

    classifier_name = "classifier"
    stems = 0

    def __init__(self, groups: list[list[int]], hidden: int, num_classes: int, image_size: int):
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        channels = 3
        for widths in groups:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        flat = channels * (image_size // 2 ** len(groups)) ** 2
        self.classifier = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(hidden, num_classes)
        )

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        x, maps = image, []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in self.taps:
                maps.append(x)
        # The flattened vector has the order [C, H, W] in any memory format, as in the tutorial.
        pooled = x.flatten(1)
        return Outputs(self.classifier(pooled), tuple(maps), pooled=pooled)


def deepnn(num_classes: int, image_size: int = 32) -> TutorialNet:
    """Build the tutorial's teacher: convolutions of 128, 64 | 64, 32 channels, 512 hidden units."""
    return TutorialNet([[128, 64], [64, 32]], 512, num_classes, image_size)


def lightnn(num_classes: int, image_size: int = 32) -> TutorialNet:
    """Build the tutorial's student: convolutions of 16 | 16 channels, 256 hidden units."""
    return TutorialNet([[16], [16]], 256, num_classes, image_size)
