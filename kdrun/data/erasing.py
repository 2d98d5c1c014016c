"""Random erasing of normalised images (Zhong et al. 2020), batched on the training device, with the numbers and the
pixel noise of timm's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdrun.config.augment import Augment
from kdrun.draws import ERASE, normal, uniform
from kdrun.streams import key_of

AREA, ASPECT = (0.02, 1 / 3), 0.3  # shares of the image; height over width, or the reverse
ATTEMPTS = 10  # to find a box that fits into the image
NOISE = 2**20  # stored normal numbers, of which each erased box reads a random window

# Columns of the draws of an erased box: its presence, corner, noise, areas and aspects.
CHOSEN, TOP, LEFT, START, SIZES = 0, 1, 2, 3, slice(4, 4 + 2 * ATTEMPTS)


def within(box: Tensor, height: int, width: int) -> Tensor:
    """Return the mask of pixels in their image's box, bool [N, 1, H, W]; box [N, 4]: top, left, bottom, right,
    the last two beyond it."""
    top, left, bottom, right = box.view(-1, 4, 1, 1).unbind(1)
    y = torch.arange(height, device=box.device).view(1, -1, 1)
    x = torch.arange(width, device=box.device).view(1, 1, -1)
    return ((y >= top) & (y < bottom) & (x >= left) & (x < right))[:, None]


def erased_boxes(probability: float, draws: Tensor, side: int) -> Tensor:
    """Return boxes [N, 4] from draws [N, columns]: the first of ATTEMPTS areas and aspects that fits; an empty box
    if there is none."""
    low, high = AREA
    area, aspect = draws[:, SIZES].unflatten(1, (ATTEMPTS, 2)).unbind(2)
    area, aspect = (low + (high - low) * area) * side**2, (math.log(1 / ASPECT) * (2 * aspect - 1)).exp()
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (height < side) & (width < side)
    first = fits.int().argmax(dim=1, keepdim=True)
    height, width = height.gather(1, first)[:, 0], width.gather(1, first)[:, 0]
    top, left = (draws[:, TOP] * (side - height + 1)).floor(), (draws[:, LEFT] * (side - width + 1)).floor()
    box = torch.stack([top, left, top + height, left + width], dim=1)
    return (box * ((draws[:, CHOSEN] < probability) & fits.any(dim=1))[:, None]).long()


def noise_store(seed: int, size: int, device: torch.device) -> Tensor:
    """Return standard normal numbers [NOISE + size]."""
    return normal(key_of(seed, ERASE), torch.arange(NOISE + size, device=device), 1)[:, 0]


class Erasing:
    """Erased boxes of samples `index` [N] in one view of one epoch, filled with noise pixel by pixel."""

    def __init__(self, augment: Augment, key: int, index: Tensor, side: int, noise: Tensor):
        draws = uniform(key, index, SIZES.stop)
        self.box = erased_boxes(augment.erasing, draws, side).to(noise.device, non_blocking=True)
        self.start = (draws[:, START] * NOISE).long().to(noise.device, non_blocking=True)
        size = 3 * side * side
        self.noise, self.side = noise.as_strided((NOISE, size), (1, 1)), side

    def __call__(self, image: Tensor, rows: Tensor | slice) -> Tensor:
        """Erase the boxes in image float32 [n, 3, H, W] of the samples at `rows`."""
        noise = self.noise[self.start[rows]].view(-1, self.side, self.side, 3).permute(0, 3, 1, 2)
        return torch.where(within(self.box[rows], self.side, self.side), noise, image)
