"""RandAugment as timm's recipes have it, `rand-mM-nN-mstdS-inc1`: what DeiT and most recipes after it train with.

Fifteen operations; each of N rounds draws one of them with replacement and skips it with probability 1/2. Its magnitude
is normal around M of 10. timm resamples bicubically and fills with the mean colour; here what is turned, sheared or
moved is the nearest pixel, and black beyond the border, so that a sample looks the same in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdrun.config.options import Augment
from kdrun.data import randaugment as kernels
from kdrun.data.randaugment import Operation, counts_of, one_each
from kdrun.draws import uniform

LARGEST = 10.0  # magnitude
APPLIED = 0.5  # probability of each operation that was drawn
DRAWS = 4  # of a round: the operation, whether it is applied, its magnitude and its sign


def invert(image: Tensor, _: Tensor) -> Tensor:
    return 255 - image


def solarize_add(image: Tensor, added: Tensor) -> Tensor:
    """Brighten what is darker than 128."""
    return torch.where(image < 128, (image + added).clamp(max=255).to(torch.uint8), image)


def rising(kernel: Operation) -> Operation:
    """Brightness and its kin by a factor that moves from 1 to 1.9 or 0.1."""
    return lambda image, at: kernel(image, (1 + at * (0.9 / LARGEST)).clamp(min=0.1).float())


def signed(kernel: Operation, reach: float) -> Operation:
    """An operation by up to `reach`, in either direction."""
    return lambda image, at: kernel(image, (at * (reach / LARGEST)).float())


def share(at: Tensor, whole: int) -> Tensor:
    """The magnitude's share of `whole`, rounded down."""
    return (at.abs() / LARGEST * whole).floor()


# (image uint8 [n, 3, H, W], signed magnitude float64 [n, 1, 1, 1] in -10 … 10) -> image; the last one changes nothing.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": kernels.autocontrast,
    "Equalize": kernels.equalize,
    "Invert": invert,
    "Rotate": signed(kernels.rotate, 30.0),
    # At 10 no bit would be left: timm's image is black there with older Pillows, and an error with newer ones.
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
    """(positions in `OPERATIONS` int64, signed magnitudes float64), both [N, rounds], for samples `index` [N]."""
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

    order: in which the samples come; the host must know what each batch drew, to launch one kernel per operation, and
    is told once for all of `order`.
    """

    def __init__(
        self, augment: Augment, key: int, index: Tensor, device: torch.device, order: Tensor | slice = slice(None)
    ):
        chosen, level = policy_draws(augment, key, index)
        self.on_host = chosen[order].cpu()
        self.chosen, self.level = (drawn.to(device, non_blocking=True) for drawn in (chosen, level))

    def __call__(self, image: Tensor, rows: Tensor | slice, window: slice) -> Tensor:
        """image uint8 [n, 3, H, W] of the samples at `rows` of `index`, which stand at `window` of the order."""
        chosen, level = self.chosen[rows], self.level[rows]
        for step, counts in enumerate(counts_of(self.on_host[window], len(OPERATIONS))):
            image = one_each(image, chosen[:, step], level[:, step], counts, tuple(OPERATIONS.values()))
        return image
