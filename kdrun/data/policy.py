"""RandAugment as in timm's recipes, `rand-mM-nN-mstdS-inc1`, used by DeiT and most later recipes.

Fifteen operations; each of N rounds draws one of them with replacement and skips it with probability 1/2. Its magnitude
is normal around M out of 10. timm resamples bicubically and fills with the mean colour; here rotation, shear and shift
use the nearest pixel, and black outside the image, so that a sample looks the same in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdrun.config.augment import Augment
from kdrun.data import randaugment as kernels
from kdrun.data.randaugment import Operation, counts_of, one_each
from kdrun.draws import uniform

LARGEST = 10.0  # magnitude
APPLIED = 0.5  # probability of applying a drawn operation
DRAWS = 4  # per round: the operation, whether to apply it, its magnitude and its sign


def invert(image: Tensor, _: Tensor) -> Tensor:
    return 255 - image


def solarize_add(image: Tensor, added: Tensor) -> Tensor:
    """Brighten pixels darker than 128."""
    return torch.where(image < 128, (image + added).clamp(max=255).to(torch.uint8), image)


def rising(kernel: Operation) -> Operation:
    """Return brightness and similar operations with a factor between 1 and 1.9, or 1 and 0.1."""
    return lambda image, at: kernel(image, (1 + at * (0.9 / LARGEST)).clamp(min=0.1).float())


def signed(kernel: Operation, reach: float) -> Operation:
    """Return an operation with an amount of up to `reach`, in either direction."""
    return lambda image, at: kernel(image, (at * (reach / LARGEST)).float())


def share(at: Tensor, whole: int) -> Tensor:
    """Return the magnitude's share of `whole`, rounded down."""
    return (at.abs() / LARGEST * whole).floor()


# (image uint8 [n, 3, H, W], signed magnitude float64 [n, 1, 1, 1] in -10 … 10) -> image; the last one is the identity.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": kernels.autocontrast,
    "Equalize": kernels.equalize,
    "Invert": invert,
    "Rotate": signed(kernels.rotate, 30.0),
    # At magnitude 10 no bit would be left: timm then gives a black image with older Pillow versions, an error with
    # newer.
    "PosterizeIncreasing": lambda image, at: kernels.posterize(image, (4 - share(at, 4)).clamp(min=1)),
    "SolarizeIncreasing": lambda image, at: kernels.solarize(image, 256 - share(at, 256)),
    "SolarizeAdd": lambda image, at: solarize_add(image, share(at, 110)),
    "ColorIncreasing": rising(kernels.colour),
    "ContrastIncreasing": rising(kernels.contrast),
    "BrightnessIncreasing": rising(kernels.brightness),
    "SharpnessIncreasing": rising(kernels.sharpness),
    "ShearX": signed(kernels.shear_x, 0.3),
    "ShearY": signed(kernels.shear_y, 0.3),
    "TranslateXRel": signed(kernels.translate_x, 0.45),
    "TranslateYRel": signed(kernels.translate_y, 0.45),
    "skipped": kernels.identity,
}


def policy_draws(augment: Augment, key: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return (positions in `OPERATIONS` int64, signed magnitudes float64), both [N, rounds], for samples `index`
    [N]."""
    rounds = augment.randaugment
    drawn = uniform(key, index, DRAWS * rounds).unflatten(1, (rounds, DRAWS))
    operation, applied, magnitude, sign = drawn.unbind(2)
    skipped = len(OPERATIONS) - 1
    chosen = torch.where(applied < APPLIED, (operation * skipped).long(), skipped)
    normal = torch.special.ndtri(magnitude.clamp(min=2.0**-54))
    level = (augment.randaugment_magnitude + augment.randaugment_std * normal).clamp(0, LARGEST)
    return chosen, torch.where(sign < 0.5, -level, level)


class Policy:
    """RandAugment of samples `index` [N] in one epoch, on `device`.

    order: the order of the samples. The host must know the operations of each batch to launch one kernel per operation,
    and reads them once for all of `order`.
    """

    def __init__(
        self, augment: Augment, key: int, index: Tensor, device: torch.device, order: Tensor | slice = slice(None)
    ):
        chosen, level = policy_draws(augment, key, index)
        self.on_host = chosen[order].cpu()
        self.chosen, self.level = (drawn.to(device, non_blocking=True) for drawn in (chosen, level))

    def __call__(self, image: Tensor, rows: Tensor | slice, window: slice) -> Tensor:
        """Apply the policy to image uint8 [n, 3, H, W] of the samples at `rows` of `index`, at position `window` of
        the order."""
        chosen, level = self.chosen[rows], self.level[rows]
        for step, counts in enumerate(counts_of(self.on_host[window], len(OPERATIONS))):
            image = one_each(image, chosen[:, step], level[:, step], counts, tuple(OPERATIONS.values()))
        return image
