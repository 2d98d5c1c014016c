"""Test set with changed colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdrun.config.options import setting
from kdrun.evaluation.testsets.base import DerivedSet, Draw


@dataclass(frozen=True)
class Colour(DerivedSet):
    """Colour jitter, grayscale, or a turned hue, as torchvision's v2 transforms make them.

    kind: jitter, grayscale or hue. brightness, contrast, saturation: jitter factors from [1 - x, 1 + x]; hue: a shift
    by up to x turns (defaults: MoCo v2's, Chen et al. 2020, arXiv 2003.04297). turn: the shift of kind=hue, in turns.
    """

    name = "colour"
    measures = "colour invariance"
    usual = "torchvision v2"
    libraries = ("numpy", "torch", "torchvision")
    seconds_per_megapixel = 0.5

    kind: str = setting("jitter", choices=("jitter", "grayscale", "hue"))
    brightness: float = setting(0.4, low=0)
    contrast: float = setting(0.4, low=0)
    saturation: float = setting(0.4, low=0)
    hue: float = setting(0.1, low=0, high=0.5)
    turn: float = setting(0.5, low=-0.5, high=0.5)

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        import torch
        from torchvision.transforms.v2 import functional

        pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1)))
        if self.kind == "grayscale":
            pixels = functional.rgb_to_grayscale(pixels, num_output_channels=3)
        elif self.kind == "hue":
            pixels = functional.adjust_hue(pixels, self.turn)
        else:
            generator = draw.generator()
            strengths = (self.brightness, self.contrast, self.saturation)
            steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
            factors = [float(generator.uniform(max(0.0, 1 - x), 1 + x)) for x in strengths]
            factors.append(float(generator.uniform(-self.hue, self.hue)))
            for step in generator.permutation(4).tolist():  # torchvision's ColorJitter shuffles its steps
                pixels = (*steps, functional.adjust_hue)[step](pixels, factors[step])
        return pixels.numpy().transpose(1, 2, 0).copy()
