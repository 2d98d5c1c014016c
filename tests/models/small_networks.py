"""Small networks that several test modules share. They are in a module of their own because kdrun imports the modules of a
run's own networks again, after which an object of an earlier class cannot be pickled."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class Small(nn.Module):
    """Two convolutions and a classifier, for images of any size."""

    def __init__(self, num_classes: int = CLASSES, width: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 6, 3, 2, padding=1)
        self.fc = nn.Linear(6, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3))

    def forward(self, x: Tensor):
        return self.fc(self.features(x))


class Tutorial(nn.Module):
    """The classic network for CIFAR-10, at 16 px."""

    def __init__(self, num_classes: int = CLASSES):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8 * 2 * 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.view(-1, 8 * 2 * 2))
