"""Transformed views of normalised images, batched on the training device and drawn from a method's own random
stream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.data.augment import warp
from kdrun.draws import Draws

# No paper states strengths; with these an image stays recognisable. Brightness and noise: in standard deviations.
ROTATION = 15.0  # degrees either way
CROP = 0.8  # smallest side of the crop, in sides of the image
BRIGHTNESS, CONTRAST, COLOUR = 0.4, 0.4, 0.2  # colour: contrast of each channel by itself
NOISE = 0.1
CELLS, MASKED = 8, 0.1  # patches per side, share of them masked

SETTINGS, NOISES, PATCHES = range(3)  # purposes of the draws
PURPOSES = 3


def transformed(image: Tensor, probability: float, draws: Draws, index: Tensor) -> Tensor:
    """Transform each image of a batch [N, C, H, W] with `probability`: crop, shift, rotate, jitter the colour, add
    noise and mask patches. Pixels outside the image and masked pixels get the mean colour, 0.

    index [N]: the samples' indices, which determine their random numbers.
    """
    channels = image.shape[1]
    drawn = draws.uniform(SETTINGS, index, 7 + channels, 1, 1).float()
    chosen, place, contrast, brightness, colour = drawn.split([1, 4, 1, 1, channels], dim=1)
    view = warp(image, affine_maps(place.flatten(1).T))
    view = view * (1 + CONTRAST * (2 * contrast - 1)) * (1 + COLOUR * (2 * colour - 1))
    view = view + BRIGHTNESS * (2 * brightness - 1)
    view = view + NOISE * draws.normal(NOISES, index, *image.shape[1:])
    shown = draws.uniform(PATCHES, index, 1, CELLS, CELLS) >= MASKED
    kept = F.interpolate(shown.to(image.dtype), size=image.shape[-2:])
    return torch.where(chosen < probability, view * kept, image).contiguous(memory_format=torch.channels_last)


def affine_maps(draws: Tensor) -> Tensor:
    """Convert draws [4, N] in [0, 1) (scale, shifts, angle) to inverse affine maps [N, 2, 3] from output to input
    coordinates."""
    scale = CROP + (1 - CROP) * draws[0]
    x, y = ((1 - scale) * (2 * draw - 1) for draw in draws[1:3])
    angle = math.radians(ROTATION) * (2 * draws[3] - 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([torch.stack([cos, -sin, x], dim=1), torch.stack([sin, cos, y], dim=1)], dim=1)
