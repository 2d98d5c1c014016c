"""One decoded image of any size -> the network's input size, augmented by a row of a view's draws or not at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from kdrun.config.augment import Augment
from kdrun.data.augment import ANGLE, CORNER, FLIP, PLACE, area_shares, colour_factors

EVAL_CROP = 0.875  # 224 of 256: the share of the shorter side that the centre crop keeps


class PlainView:
    """The unaugmented view, uint8 [3, H, W] -> [3, size, size].

    resize: stretch (both sides to `size`), fit (the shorter side to `size`, then the centre) or crop (the shorter side
    to size / 0.875, then the centre).
    """

    def __init__(self, size: int, resize: str):
        self.size, self.resize = size, resize

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.resize == "stretch":
            return V.resize(pixels, [self.size, self.size], antialias=True)
        side = self.size if self.resize == "fit" else round(self.size / EVAL_CROP)
        return V.center_crop(V.resize(pixels, [side], antialias=True), [self.size, self.size])


class AugmentedView:
    """An augmented view, (uint8 [3, H, W], draws float64 [columns] of `view_draws`) -> uint8 [3, size, size].

    torchvision's functions in the order of its usual transforms: crop, flip, rotation, then brightness, contrast,
    saturation and hue, whose order torchvision shuffles.
    """

    def __init__(self, augment: Augment, size: int, resize: str):
        self.augment, self.size, self.plain = augment, size, PlainView(size, resize)

    def __call__(self, pixels: Tensor, draws: Tensor) -> Tensor:
        augment, draws = self.augment, draws[None]
        image = self.area(pixels, draws) if augment.crop == "resized" else self.plain(pixels)
        if augment.padding:
            mode = "constant" if augment.crop_padding_mode == "zeros" else "reflect"
            top, left = (draws[0, CORNER] * (2 * augment.padding + 1)).long().tolist()
            padded = V.pad(image, [augment.padding], padding_mode=mode)
            image = V.crop(padded, top, left, self.size, self.size)
        if augment.flip and draws[0, FLIP] < augment.flip:
            image = V.horizontal_flip(image)
        if augment.rotation:
            angle = augment.rotation * (2 * float(draws[0, ANGLE]) - 1)
            image = V.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
        return self.coloured(image, draws) if augment.jitters else image

    def area(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """A random area, resized."""
        height, width = pixels.shape[-2:]
        shares = torch.stack(area_shares(self.augment, draws, height / width))[:, 0].tolist()
        across, down = max(round(shares[0] * width), 1), max(round(shares[1] * height), 1)
        left, top = draws[0, PLACE].tolist()
        return V.resized_crop(
            pixels,
            int(top * (height - down + 1)),
            int(left * (width - across + 1)),
            down,
            across,
            [self.size, self.size],
            antialias=True,
        )

    def coloured(self, image: Tensor, draws: Tensor) -> Tensor:
        """Brightness, contrast, saturation, hue."""
        brightness, contrast, saturation, hue = colour_factors(self.augment, draws)[0].tolist()
        image = V.adjust_saturation(V.adjust_contrast(V.adjust_brightness(image, brightness), contrast), saturation)
        return V.adjust_hue(image, hue)
