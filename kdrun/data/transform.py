"""Transforms of a decoded image of any size to the network's input size, augmented by a row of a view's draws or not
at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from kdrun.config.augment import Augment
from kdrun.data.augment import ANGLE, CORNER, FLIP, PLACE, area_and_ratio, colour_factors, shares_of

EVAL_CROP = 0.875  # 224 of 256: the share of the shorter side that the centre crop keeps


class PlainView:
    """Unaugmented view, uint8 [3, H, W] -> [3, size, size].

    resize: stretch (both sides to `size`), fit (the shorter side to `size`, then the centre) or crop (the shorter side
    to size / 0.875, then the centre).
    """

    def __init__(self, size: int, resize: str):
        self.size, self.resize = size, resize

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.resize == "stretch":
            return V.resize_image(pixels, [self.size, self.size])
        side = self.size if self.resize == "fit" else round(self.size / EVAL_CROP)
        return V.center_crop_image(V.resize_image(pixels, [side]), [self.size, self.size])


@dataclass(frozen=True)
class Drawn:
    """Draws of a view as plain numbers. areas: (area, aspect ratio) of the attempts; place: (left, top) of the area,
    as fractions; corner: (top, left) in the padded image; colours: brightness, contrast, saturation, hue."""

    flip: bool
    corner: tuple[int, int] | None = None
    areas: list[tuple[float, float]] | None = None
    place: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    colours: tuple[float, float, float, float] | None = None


class AugmentedView:
    """Augmented view, (uint8 [3, H, W], its draws) -> uint8 [3, size, size].

    torchvision's functions in the order of its usual transforms: crop, flip, rotation, then brightness, contrast,
    saturation and hue, whose order torchvision shuffles.
    """

    def __init__(self, augment: Augment, size: int, resize: str):
        self.augment, self.size, self.plain = augment, size, PlainView(size, resize)

    def drawn(self, draws: Tensor) -> list[Drawn]:
        """Interpret draws float64 [N, columns] of `view_draws` for all N samples at once, since a tensor of one
        number takes as long as one of many."""
        augment, resized = self.augment, self.augment.crop == "resized"
        columns: dict[str, list[Any]] = {"flip": (draws[:, FLIP] < augment.flip).tolist()}
        if augment.padding:
            columns["corner"] = (draws[:, CORNER] * (2 * augment.padding + 1)).long().tolist()
        if resized:
            columns["areas"] = torch.stack(area_and_ratio(augment, draws), dim=2).tolist()
            columns["place"] = draws[:, PLACE].tolist()
        if augment.rotation:
            columns["angle"] = (augment.rotation * (2 * draws[:, ANGLE] - 1)).tolist()
        if augment.jitters:
            columns["colours"] = colour_factors(augment, draws).tolist()
        return [Drawn(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def __call__(self, pixels: Tensor, drawn: Drawn) -> Tensor:
        image = self.plain(pixels) if drawn.areas is None else self.area(pixels, drawn.areas, drawn.place)
        if drawn.corner is not None:
            mode = "constant" if self.augment.crop_padding_mode == "zeros" else "reflect"
            padded = V.pad(image, [self.augment.padding], padding_mode=mode)
            image = V.crop(padded, *drawn.corner, self.size, self.size)
        if drawn.flip:
            image = V.horizontal_flip_image(image)
        if drawn.angle:
            image = V.rotate(image, drawn.angle, interpolation=InterpolationMode.BILINEAR)
        return image if drawn.colours is None else self.coloured(image, *drawn.colours)

    def area(self, pixels: Tensor, areas: list[tuple[float, float]], place: tuple[float, float]) -> Tensor:
        """Cut out a random area and resize it."""
        height, width = pixels.shape[-2:]
        across, down = shares_of(areas, height / width)
        across, down = max(round(across * width), 1), max(round(down * height), 1)
        left, top = int(place[0] * (width - across + 1)), int(place[1] * (height - down + 1))
        return V.resized_crop_image(pixels, top, left, down, across, [self.size, self.size])

    def coloured(self, image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
        """Change the image's colours."""
        image = V.adjust_saturation(V.adjust_contrast(V.adjust_brightness(image, brightness), contrast), saturation)
        return V.adjust_hue(image, hue)
