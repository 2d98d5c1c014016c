"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of normalised images, batched on the training device, with
timm's formulas.

A sample's appearance is a function of (seed, epoch, sample): each has its own random numbers (timm's mode `elem`), and
its partner is its neighbour in the epoch's order, which is in the same batch if the batch size is even.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kdrun.config.augment import Augment
from kdrun.data.erasing import within
from kdrun.draws import MIX, uniform
from kdrun.streams import key_of
from kdrun.structures import Mixed

KNOTS = 2048  # number of intervals in the table of a Beta distribution's quantiles


@cache
def quantiles(alpha: float) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha) at u = t^alpha / 2 for KNOTS + 1 even steps of t from 0 to 1:
    nearly linear in t, but not in u."""
    from scipy.special import betaincinv

    steps = torch.linspace(0, 1, KNOTS + 1, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, (steps**alpha / 2).numpy()))


def beta(draws: Tensor, alpha: float, table: Tensor) -> Tensor:
    """Transform draws [N] in [0, 1) to Beta(alpha, alpha), by its quantiles. table: `quantiles` on their device."""
    place = (2 * torch.minimum(draws, 1 - draws)).pow(1 / alpha) * KNOTS
    knot = place.long().clamp(max=KNOTS - 1)
    found = torch.lerp(table[knot], table[knot + 1], place - knot)
    return torch.where(draws < 0.5, found, 1 - found)


def cut_boxes(own: Tensor, across: Tensor, down: Tensor, side: int) -> Tensor:
    """Return CutMix's boxes [N, 4] around a centre drawn by `across` and `down`, with 1 - own of the image's area
    before being cut at its border."""
    cut = (side * (1 - own).sqrt()).floor()
    edges = []
    for centre in ((down * side).floor(), (across * side).floor()):
        before = torch.div(cut, 2, rounding_mode="floor")
        after = torch.div(cut + 1, 2, rounding_mode="floor")
        edges.append(((centre - before).clamp(0, side), (centre + after).clamp(0, side)))
    (top, bottom), (left, right) = edges
    return torch.stack([top, left, bottom, right], dim=1).long()


class Mixing:
    """Mixup and CutMix of samples `index` [N] in one epoch.

    kept [N]: weight of a sample's own image in mixup; box [N, 4]: area that CutMix takes from the other image, empty in
    mixup; share [N]: weight of a sample's own label.
    """

    def __init__(self, augment: Augment, seed: int, epoch: int, index: Tensor, side: int, device: torch.device):
        chosen, switch, amount, across, down = uniform(key_of(seed, epoch, MIX), index, 5).unbind(1)
        both = augment.mixup > 0 and augment.cutmix > 0
        cut = switch < (augment.cutmix_share if both else float(augment.cutmix > 0))
        found = torch.zeros_like(amount)
        for alpha, taken in ((augment.mixup, ~cut), (augment.cutmix, cut)):
            if alpha > 0:
                found = torch.where(taken, beta(amount, alpha, quantiles(alpha).to(index.device)), found)
        own = torch.where(chosen < augment.mix_probability, found, torch.ones_like(found))
        box = cut_boxes(own, across, down, side) * cut[:, None]
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        kept = torch.where(cut, torch.ones_like(own), own)
        self.box, self.side = box.to(device, non_blocking=True), side
        self.kept = kept.float().to(device, non_blocking=True)
        self.share = torch.where(cut, 1 - area / side**2, own).float().to(device, non_blocking=True)

    def __call__(self, image: Tensor, label: Tensor, rows: Tensor | slice) -> tuple[Tensor, Mixed]:
        """Mix a batch of the samples at `rows`, which begins at an even position of the epoch's order: images [n, 3,
        H, W], and the second half of their labels. The last sample of an odd batch is unchanged."""
        place = torch.arange(len(label), device=label.device)
        partner = place.bitwise_xor(1)
        partner = torch.where(partner < len(label), partner, place)
        weight = self.kept[rows].view(-1, 1, 1, 1) * ~within(self.box[rows], self.side, self.side)
        mixed = image * weight + image[partner] * (1 - weight)
        return mixed.contiguous(memory_format=torch.channels_last), Mixed(label[partner], self.share[rows])
