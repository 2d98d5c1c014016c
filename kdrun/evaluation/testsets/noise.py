"""Test set with local damage: Gaussian noise in one window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdrun.config.options import setting
from kdrun.errors import DataError
from kdrun.evaluation.testsets.base import DerivedSet, Draw


@dataclass(frozen=True)
class Noise(DerivedSet):
    """Additive Gaussian noise in one square window, clipped.

    window: the window's share of the side (published: 76 of 224 pixels). std: on the scale where white is 1. position:
    the window in the centre, or anywhere. shared_pattern: the same noise in every image.
    """

    name = "noise"
    measures = "robustness to local damage"
    usual = "Gaussian window"
    seconds_per_megapixel = 0.03

    window: float = setting(76 / 224, over=0, high=1)
    std: float = setting(2.0, over=0)
    position: str = setting("center", choices=("center", "random"))
    shared_pattern: bool = setting(False)

    def check_size(self, height: int, width: int) -> None:
        if round(self.window * min(height, width)) < 1:
            raise DataError(f"noise.window={self.window:g} is less than a pixel of {height}x{width}; make it larger.")

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        height, width, _ = image.shape
        tall, wide = round(self.window * height), round(self.window * width)
        generator = draw.generator()
        row, column = (height - tall) // 2, (width - wide) // 2
        if self.position == "random":
            row, column = int(generator.integers(height - tall + 1)), int(generator.integers(width - wide + 1))
        pattern = (draw.shared() if self.shared_pattern else generator).normal(0.0, self.std, (tall, wide, 3))
        made = image.copy()
        inside = made[row : row + tall, column : column + wide]
        inside[...] = np.round(np.clip(inside / 255 + pattern, 0, 1) * 255)
        return made
