"""Augmentation: random draws, and batched crops, warps and colour jitter on the training device.

Every draw is a function of (seed, epoch, purpose, sample), so neither the batch, nor the number of workers, nor a
resume changes what a sample looks like in an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.augment import Augment
from kdrun.data.late import LateView
from kdrun.draws import uniform
from kdrun.streams import key_of


@dataclass
class Views:
    """Draws of one epoch for every sample, on the training device; fields that the augmentation does not use stay None.

    row, column [N] int64: the crop's corner in the padded image; flip [N] bool; theta [N, 2, 3]: inverse affine map;
    factors [N, 4]: brightness, contrast, saturation, hue; late: draws of the late augmentation.
    """

    row: Tensor
    column: Tensor
    flip: Tensor | None = None
    theta: Tensor | None = None
    factors: Tensor | None = None
    late: LateView | None = None


ATTEMPTS = 10  # to find an area that fits into the image, as in torchvision's RandomResizedCrop

# Columns of a view's draws: the crop's corner, the flip, a resized area's position, the angle, the colours, the areas.
CORNER, FLIP, PLACE, ANGLE, COLOURS = slice(0, 2), 2, slice(3, 5), 5, slice(6, 10)
AREAS = slice(10, 10 + 2 * ATTEMPTS)


def teacher_epoch(teacher_view: str, epoch: int) -> int:
    """Return the epoch whose augmented view the teacher sees in `epoch`: always the first, if it has one view for
    the whole run."""
    return 0 if teacher_view == "fixed" else epoch


def view_draws(augment: Augment, seed: int, epoch: int, purpose: int, index: Tensor) -> Tensor:
    """Return the draws for the views of samples `index` [N] in `epoch`: float64 [N, columns], as many as `augment`
    uses. purpose distinguishes the student's, the teacher's and the strong view."""
    read = 3
    if augment.warps or augment.jitters:
        read = AREAS.stop if augment.crop == "resized" else COLOURS.stop
    return uniform(key_of(seed, epoch, purpose), index, AREAS.stop, read)


def draw_views(augment: Augment, seed: int, epoch: int, count: int, purpose: int, device: torch.device) -> Views:
    """Draw the views of samples 0 … count-1 in `epoch`."""
    draws = view_draws(augment, seed, epoch, purpose, torch.arange(count, device=device))
    corner = (draws[:, CORNER] * (2 * augment.padding + 1)).long()
    views = Views(corner[:, 0].contiguous(), corner[:, 1].contiguous())
    if augment.flip > 0:
        views.flip = draws[:, FLIP] < augment.flip
    if augment.warps:
        views.theta = affine(augment, draws).float()
    if augment.jitters:
        views.factors = colour_factors(augment, draws).float()
    return views


def centre_views(augment: Augment, count: int, device: torch.device) -> Views:
    """Return the unaugmented view of every sample."""
    corner = torch.full((count,), augment.padding, device=device)
    return Views(corner, corner)


def colour_factors(augment: Augment, draws: Tensor) -> Tensor:
    """Return factors of brightness, contrast and saturation, and the shift of the hue, [N, 4], from a view's draws."""
    strengths = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    columns = [(2 * draw - 1) * strength for draw, strength in zip(draws[:, COLOURS].unbind(1), strengths, strict=True)]
    return torch.stack([*((1 + column).clamp(min=0) for column in columns[:3]), columns[3]], dim=1)


def area_and_ratio(augment: Augment, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return (share of the image's area, aspect ratio), both [N, ATTEMPTS], from a view's draws. The ratio is
    between 3/4 and 4/3, uniform on a logarithmic scale."""
    low, high = augment.resized_scale
    area, ratio = draws[:, AREAS].unflatten(1, (ATTEMPTS, 2)).unbind(2)
    return low + (high - low) * area, (math.log(4 / 3) * (2 * ratio - 1)).exp()


def area_shares(augment: Augment, draws: Tensor, aspect: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (width, height) [N] of a random area in sides of an image that is `aspect` times as high as wide, from
    a view's draws. The first of ATTEMPTS areas that fits is taken; if none fits, the first, cut to the image."""
    area, ratio = area_and_ratio(augment, draws)
    width, height = (area * ratio * aspect).sqrt(), (area / ratio / aspect).sqrt()
    first = ((width <= 1) & (height <= 1)).int().argmax(dim=1, keepdim=True)
    return width.gather(1, first).squeeze(1).clamp(max=1), height.gather(1, first).squeeze(1).clamp(max=1)


def shares_of(areas: Sequence[tuple[float, float]], aspect: float) -> tuple[float, float]:
    """Return `area_shares` of one image, from its areas and ratios: the same numbers up to the last bit of a square
    root, without a dozen tensors of one element."""
    found = [(math.sqrt(area * ratio * aspect), math.sqrt(area / ratio / aspect)) for area, ratio in areas]
    width, height = next((one for one in found if max(one) <= 1), found[0])
    return min(width, 1.0), min(height, 1.0)


def affine(augment: Augment, draws: Tensor) -> Tensor:
    """Return maps from output to input coordinates in [-1, 1], [N, 2, 3], from a view's draws: a random area,
    rotated."""
    angle = math.radians(augment.rotation) * (2 * draws[:, ANGLE] - 1)
    width = height = torch.ones_like(angle)
    x = y = torch.zeros_like(angle)
    if augment.crop == "resized":
        width, height = area_shares(augment, draws)
        across, down = (2 * draws[:, PLACE] - 1).unbind(1)
        x, y = (1 - width) * across, (1 - height) * down
    cos, sin = angle.cos(), angle.sin()
    rows = [[width * cos, -width * sin, x], [height * sin, height * cos, y]]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def warp(image: Tensor, theta: Tensor) -> Tensor:
    """Warp image [N, C, H, W] in [0, 1] bilinearly by an affine map; outside is black."""
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def jitter(image: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast, saturation, hue in this order, per sample: image [N, 3, H, W] in [0, 1], factors [N,
    4].

    Each step is torchvision's ColorJitter step, batched; torchvision also shuffles the order.
    """
    brightness, contrast, saturation, hue = (factors[:, i].view(-1, 1, 1, 1) for i in range(4))
    image = (image * brightness).clamp(0, 1)
    mean = grey(image).mean(dim=(1, 2, 3), keepdim=True)
    image = (mean + (image - mean) * contrast).clamp(0, 1)
    shade = grey(image)
    image = (shade + (image - shade) * saturation).clamp(0, 1)
    return rotate_hue(image, hue)


def grey(image: Tensor) -> Tensor:
    """Return luma [N, 1, H, W] by the ITU-R 601-2 weights."""
    red, green, blue = image.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def rotate_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turn the HSV hue by `shift` turns: image [N, 3, H, W] in [0, 1], shift [N, 1, 1, 1]."""
    red, green, blue = image.unbind(dim=1)
    value, low = image.amax(dim=1), image.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.remainder(hue / 6 + shift.squeeze(1), 1.0) * 6
    channels = []
    for offset in (5, 3, 1):  # f(n) = V - C·max(0, min(k, 4 - k, 1)), k = (n + H) mod 6
        k = torch.remainder(offset + hue, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)
