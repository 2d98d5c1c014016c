"""Late augmentation of `dataset.augment`, after crop, flip, warp and colours: RandAugment, erasing and mixing, on
the training device, the same for resident and streamed images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.config.augment import Augment
from kdrun.data.erasing import Erasing, noise_store
from kdrun.data.mixing import Mixing
from kdrun.data.policy import Policy
from kdrun.draws import ERASE, POLICY
from kdrun.streams import key_of


@dataclass
class LateView:
    """Draws for one view of one epoch: RandAugment before the normalisation, erasing after it."""

    policy: Policy | None
    erasing: Erasing | None


class Late:
    """Late augmentation of a loader; image sides are `side`."""

    def __init__(self, augment: Augment, seed: int, side: int, device: torch.device):
        self.augment, self.seed, self.side, self.device = augment, seed, side, device
        self.noise = noise_store(seed, 3 * side * side, device) if augment.erasing > 0 else None

    @property
    def active(self) -> bool:
        """Return True if there is any late augmentation."""
        return self.augment.randaugment > 0 or self.augment.erasing > 0 or self.augment.mixes

    def view(self, epoch: int, purpose: int, index: Tensor, order: Tensor | slice = slice(None)) -> LateView | None:
        """Return the draws of samples `index` [N] for the view `purpose`, or None if there are none. order: as in
        `Policy`."""
        policy, erasing = None, None
        if self.augment.randaugment > 0:
            policy = Policy(self.augment, key_of(self.seed, epoch, POLICY, purpose), index, self.device, order)
        if self.noise is not None:
            key = key_of(self.seed, epoch, ERASE, purpose)
            erasing = Erasing(self.augment, key, index, self.side, self.noise)
        return None if policy is None and erasing is None else LateView(policy, erasing)

    def mixing(self, epoch: int, index: Tensor) -> Mixing | None:
        """Return the mixing of samples `index` [N] in `epoch`; None if nothing is mixed."""
        if not self.augment.mixes:
            return None
        return Mixing(self.augment, self.seed, epoch, index, self.side, self.device)
