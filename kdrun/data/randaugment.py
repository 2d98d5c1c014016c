"""The strong view: RandAugment and Cutout on uint8 images, batched by operation on the training device.

Operations, ranges and Cutout are those of the multi-level and logit-standardisation code (there written as
RandAugment(2, 10); the 10 is never read): two of 14 operations with replacement, each with a magnitude drawn uniformly
from its range, then a square whose side is drawn up to half the image's. Everything is integer arithmetic or acts on
pixels one by one, so that a sample looks the same in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrun.draws import STRONG, uniform
from kdrun.streams import key_of

ROUNDS = 2
CUTOUT_SHARE = 0.5  # largest side of the square, in sides of the image
CUTOUT_COLOUR = (125, 123, 114)

Operation = Callable[[Tensor, Tensor], Tensor]  # (image uint8 [n, 3, H, W], how much [n, 1, 1, 1]) -> image


def strong_draws(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return the draws of samples `index` [N], float64 [N, 7] in [0, 1): operation and magnitude of each round, then
    side and centre of the square."""
    return uniform(key_of(seed, epoch, STRONG), index, 2 * ROUNDS + 3)


def operations_of(draws: Tensor) -> Tensor:
    """Return positions in `OPERATIONS`, int64 [N, ROUNDS]."""
    return (draws[:, : 2 * ROUNDS : 2] * len(OPERATIONS)).long()


def counts_of(operations: Tensor, kinds: int | None = None) -> list[list[int]]:
    """Count how many samples of `operations` [N, rounds], on the host, drew each of `kinds` operations, by round."""
    return [column.bincount(minlength=kinds or len(OPERATIONS)).tolist() for column in operations.unbind(1)]


def strengthen(image: Tensor, draws: Tensor, counts: list[list[int]]) -> Tensor:
    """Augment image uint8 [N, 3, H, W] by its `draws`. counts: `counts_of` them, which the host needs to launch one
    kernel per operation; reading them from the device here would make it wait."""
    operations = operations_of(draws)
    for step in range(ROUNDS):
        level = draws[:, 2 * step + 1].float()
        image = one_each(image, operations[:, step], level, counts[step], OPERATIONS)
    return cutout(image, draws[:, 2 * ROUNDS :].float())


def one_each(
    image: Tensor, chosen: Tensor, level: Tensor, counts: list[int], operations: Sequence[Operation]
) -> Tensor:
    """Apply operations[chosen[i]] to image i at level[i]: one call per operation, on the samples that drew it."""
    places = chosen.argsort(stable=True)
    levels = level[places].view(-1, 1, 1, 1)
    parts = zip(operations, image[places].split(counts), levels.split(counts), strict=True)
    done = torch.cat([apply(part, at) for apply, part, at in parts if len(part)])
    return torch.empty_like(done).index_copy_(0, places, done)


def blend(low: Tensor, image: Tensor | int, factor: Tensor) -> Tensor:
    """Return low + factor·(image - low), clipped to 0 … 255 and truncated to uint8 as in Pillow."""
    low = low.float()
    return (low + factor * (image - low)).clamp(0, 255).to(torch.uint8)


def shade(image: Tensor) -> Tensor:
    """Return Pillow's luma [n, 1, H, W] of image uint8 [n, 3, H, W], as int32 in 0 … 255."""
    red, green, blue = image.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def brightness(image: Tensor, factor: Tensor) -> Tensor:
    return blend(torch.zeros_like(image), image, factor)


def colour(image: Tensor, factor: Tensor) -> Tensor:
    return blend(shade(image), image, factor)


def contrast(image: Tensor, factor: Tensor) -> Tensor:
    grey = shade(image)
    mean = (grey.sum(dim=(1, 2, 3), keepdim=True) + grey[0].numel() // 2) // grey[0].numel()
    return blend(mean, image, factor)


def sharpness(image: Tensor, factor: Tensor) -> Tensor:
    """Blend towards a 3x3 mean in which the centre counts five times, or away from it; the border is unchanged."""
    wide = image.int()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = wide.clone()
    smooth[..., 1:-1, 1:-1] = (box + 4 * wide[..., 1:-1, 1:-1] + 6) // 13
    return blend(smooth, image, factor)


def posterize(image: Tensor, bits: Tensor) -> Tensor:
    """Keep this many of the highest bits, rounded down."""
    cleared = 8 - bits.int()
    return ((image.int() >> cleared) << cleared).to(torch.uint8)


def solarize(image: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(image < threshold, image, 255 - image)


def autocontrast(image: Tensor, _: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.autocontrast(image)


def equalize(image: Tensor, _: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.equalize(image)


def identity(image: Tensor, _: Tensor) -> Tensor:
    return image


def rotate(image: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre."""
    angle = degrees * (-math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    x, y = image.shape[3] / 2, image.shape[2] / 2
    return resample(image, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def shear_x(image: Tensor, slope: Tensor) -> Tensor:
    return resample(image, (1, slope, 0), (0, 1, 0))


def shear_y(image: Tensor, slope: Tensor) -> Tensor:
    return resample(image, (1, 0, 0), (slope, 1, 0))


def translate_x(image: Tensor, share: Tensor) -> Tensor:
    return resample(image, (1, 0, share * image.shape[3]), (0, 1, 0))


def translate_y(image: Tensor, share: Tensor) -> Tensor:
    return resample(image, (1, 0, 0), (0, 1, share * image.shape[2]))


Row = tuple[Tensor | float, Tensor | float, Tensor | float]


def resample(image: Tensor, to_x: Row, to_y: Row) -> Tensor:
    """Apply Pillow's nearest-neighbour affine transform: the pixel at (x, y) is the one that contains (a·x + b·y +
    c, d·x + e·y + f), measured at pixel centres, or black outside. to_x = (a, b, c), to_y = (d, e, f)."""
    n, channels, height, width = image.shape
    y = torch.arange(height, device=image.device).view(1, 1, -1, 1) + 0.5
    x = torch.arange(width, device=image.device).view(1, 1, 1, -1) + 0.5
    column, row = (torch.floor(a * x + b * y + c).long() for a, b, c in (to_x, to_y))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).expand(n, channels, -1, -1)
    found = image.reshape(n, channels, -1).gather(2, place.reshape(n, channels, -1)).view_as(image)
    return torch.where(inside, found, torch.zeros_like(found))


def cutout(image: Tensor, draws: Tensor) -> Tensor:
    """Paint a square grey. draws [N, 3] in [0, 1): its side over half the image's, and its centre's x and y."""
    height, width = image.shape[2:]
    side = CUTOUT_SHARE * width * draws[:, 0]
    inside = []
    for size, centre in ((width, draws[:, 1] * width), (height, draws[:, 2] * height)):
        first = (centre - side / 2).clamp(min=0).floor()[:, None]
        at = torch.arange(size, device=image.device)
        inside.append((at >= first) & (at <= first + side[:, None]))
    painted = inside[1][:, None, :, None] & inside[0][:, None, None, :]
    channels = zip(image.split(1, dim=1), CUTOUT_COLOUR, strict=True)
    return torch.cat([channel.masked_fill(painted, value) for channel, value in channels], dim=1)


@dataclass(frozen=True)
class Drawn:
    """Operation of the strong view: `kernel` at a magnitude between low and high, by a level in [0, 1)."""

    kernel: Operation
    low: float = 0
    high: float = 0

    def __call__(self, image: Tensor, level: Tensor) -> Tensor:
        return self.kernel(image, self.low + (self.high - self.low) * level)


OPERATIONS: tuple[Operation, ...] = (
    Drawn(autocontrast),
    Drawn(brightness, 0.05, 0.95),
    Drawn(colour, 0.05, 0.95),
    Drawn(contrast, 0.05, 0.95),
    Drawn(equalize),
    Drawn(identity),
    Drawn(posterize, 4, 8),
    Drawn(rotate, -30, 30),
    Drawn(sharpness, 0.05, 0.95),
    Drawn(shear_x, -0.3, 0.3),
    Drawn(shear_y, -0.3, 0.3),
    Drawn(solarize, 0, 256),
    Drawn(translate_x, -0.3, 0.3),
    Drawn(translate_y, -0.3, 0.3),
)
