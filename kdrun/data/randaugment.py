"""The strong view: RandAugment and Cutout on uint8 images, batched by operation on the training device.

Operations, ranges and Cutout are those of the multi-level and logit-standardisation code (there written as
RandAugment(2, 10); the 10 is never read): two of 14 operations with replacement, each with a magnitude drawn uniformly
from its range, then a square whose side is drawn up to half the image's. Everything is integer arithmetic or acts on
pixels one by one, so that a sample looks the same in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdrun.draws import STRONG, uniform
from kdrun.streams import key_of

ROUNDS = 2
CUTOUT_SHARE = 0.5  # largest side of the square, in sides of the image
CUTOUT_COLOUR = (125, 123, 114)

Operation = Callable[[Tensor, Tensor], Tensor]  # (image uint8 [n, 3, H, W], level [n, 1, 1, 1] in [0, 1)) -> image


def strong_draws(seed: int, epoch: int, index: Tensor) -> Tensor:
    """The draws of samples `index` [N], float64 [N, 7] in [0, 1): operation and magnitude of each round, then side and
    centre of the square."""
    return uniform(key_of(seed, epoch, STRONG), index, 2 * ROUNDS + 3)


def operations_of(draws: Tensor) -> Tensor:
    """Positions in `OPERATIONS`, int64 [N, ROUNDS]."""
    return (draws[:, : 2 * ROUNDS : 2] * len(OPERATIONS)).long()


def counts_of(operations: Tensor) -> list[list[int]]:
    """How many samples of `operations` [N, ROUNDS], on the host, drew each operation, by round."""
    return [column.bincount(minlength=len(OPERATIONS)).tolist() for column in operations.unbind(1)]


def strengthen(image: Tensor, draws: Tensor, counts: list[list[int]]) -> Tensor:
    """image uint8 [N, 3, H, W] augmented by its `draws`. counts: `counts_of` them, which the host must know to launch
    one kernel per operation; taken from the device here, they would make it wait."""
    operations = operations_of(draws)
    for step in range(ROUNDS):
        image = _one_each(image, operations[:, step], draws[:, 2 * step + 1].float(), counts[step])
    return cutout(image, draws[:, 2 * ROUNDS :].float())


def _one_each(image: Tensor, operation: Tensor, level: Tensor, counts: list[int]) -> Tensor:
    """Apply OPERATIONS[operation[i]] to image i: one call per operation, on the samples that drew it."""
    places = operation.argsort(stable=True)
    levels = level[places].view(-1, 1, 1, 1)
    parts = zip(OPERATIONS, image[places].split(counts), levels.split(counts), strict=True)
    done = torch.cat([apply(part, at) for apply, part, at in parts if len(part)])
    return torch.empty_like(done).index_copy_(0, places, done)


def _between(low: float, high: float, level: Tensor) -> Tensor:
    return low + (high - low) * level


def blend(low: Tensor, image: Tensor | int, factor: Tensor) -> Tensor:
    """low + factor·(image - low), truncated to uint8 as Pillow does; factor in [0, 1]."""
    low = low.float()
    return (low + factor * (image - low)).to(torch.uint8)


def shade(image: Tensor) -> Tensor:
    """Pillow's luma [n, 1, H, W] of image uint8 [n, 3, H, W], as int32 in 0 … 255."""
    red, green, blue = image.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def brightness(image: Tensor, level: Tensor) -> Tensor:
    return blend(torch.zeros_like(image), image, _between(0.05, 0.95, level))


def colour(image: Tensor, level: Tensor) -> Tensor:
    return blend(shade(image), image, _between(0.05, 0.95, level))


def contrast(image: Tensor, level: Tensor) -> Tensor:
    grey = shade(image)
    mean = (grey.sum(dim=(1, 2, 3), keepdim=True) + grey[0].numel() // 2) // grey[0].numel()
    return blend(mean, image, _between(0.05, 0.95, level))


def sharpness(image: Tensor, level: Tensor) -> Tensor:
    """Towards a 3x3 mean in which the centre counts five times; the border stays."""
    wide = image.int()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = wide.clone()
    smooth[..., 1:-1, 1:-1] = (box + 4 * wide[..., 1:-1, 1:-1] + 6) // 13
    return blend(smooth, image, _between(0.05, 0.95, level))


def posterize(image: Tensor, level: Tensor) -> Tensor:
    """Keep the 4 to 7 highest bits."""
    cleared = 8 - _between(4, 8, level).int()
    return ((image.int() >> cleared) << cleared).to(torch.uint8)


def solarize(image: Tensor, level: Tensor) -> Tensor:
    return torch.where(image < _between(0, 256, level), image, 255 - image)


def autocontrast(image: Tensor, level: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.autocontrast(image)


def equalize(image: Tensor, level: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.equalize(image)


def identity(image: Tensor, level: Tensor) -> Tensor:
    return image


def rotate(image: Tensor, level: Tensor) -> Tensor:
    """Up to 30° either way about the centre."""
    angle = _between(-30, 30, level) * (-math.pi / 180)  # Pillow's angles run counter-clockwise
    cos, sin = angle.cos(), angle.sin()
    x, y = image.shape[3] / 2, image.shape[2] / 2
    return resample(image, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def shear_x(image: Tensor, level: Tensor) -> Tensor:
    return resample(image, (1, _between(-0.3, 0.3, level), 0), (0, 1, 0))


def shear_y(image: Tensor, level: Tensor) -> Tensor:
    return resample(image, (1, 0, 0), (_between(-0.3, 0.3, level), 1, 0))


def translate_x(image: Tensor, level: Tensor) -> Tensor:
    return resample(image, (1, 0, _between(-0.3, 0.3, level) * image.shape[3]), (0, 1, 0))


def translate_y(image: Tensor, level: Tensor) -> Tensor:
    return resample(image, (1, 0, 0), (0, 1, _between(-0.3, 0.3, level) * image.shape[2]))


Row = tuple[Tensor | float, Tensor | float, Tensor | float]


def resample(image: Tensor, to_x: Row, to_y: Row) -> Tensor:
    """Pillow's nearest-neighbour affine transform: the pixel at (x, y) is the one that contains (a·x + b·y + c,
    d·x + e·y + f), measured at pixel centres, or black outside. to_x = (a, b, c), to_y = (d, e, f)."""
    n, channels, height, width = image.shape
    y = torch.arange(height, device=image.device).view(1, 1, -1, 1) + 0.5
    x = torch.arange(width, device=image.device).view(1, 1, 1, -1) + 0.5
    column, row = (torch.floor(a * x + b * y + c).long() for a, b, c in (to_x, to_y))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).expand(n, channels, -1, -1)
    found = image.reshape(n, channels, -1).gather(2, place.reshape(n, channels, -1)).view_as(image)
    return torch.where(inside, found, torch.zeros_like(found))


def cutout(image: Tensor, draws: Tensor) -> Tensor:
    """Paint a square grey: draws [N, 3] in [0, 1) are its side over half the image's, and its centre's x and y."""
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


OPERATIONS: tuple[Operation, ...] = (
    autocontrast,
    brightness,
    colour,
    contrast,
    equalize,
    identity,
    posterize,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    solarize,
    translate_x,
    translate_y,
)
