"""Resident data sets: small sets (such as CIFAR) as one uint8 tensor on the training device, without workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.augment import Augment
from kdrun.data.augment import Views, centre_views, draw_views, jitter, teacher_epoch, warp
from kdrun.data.late import Late
from kdrun.data.mixing import Mixing
from kdrun.data.randaugment import counts_of, operations_of, strengthen, strong_draws
from kdrun.data.splits import ArraySet
from kdrun.draws import ORDER, STRONG_VIEW, TEACHER_VIEW, VIEW, permutation
from kdrun.shares import Part, Share
from kdrun.streams import key_of
from kdrun.structures import Batch

Stats = tuple[list[float], list[float]]
CACHED = 2**17  # numbers that `Normalise` processes at a time


class Normalise:
    """Normalisation of uint8 [N, H, W, 3] to (x / 255 - mean) / std as float32 [N, 3, H, W] in channels-last memory."""

    def __init__(self, stats: Stats, device: torch.device):
        mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in stats)
        self.scale, self.shift = 1 / (255 * std), -mean / std
        self.mean, self.std = mean.view(3, 1, 1), std.view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.device.type != "cpu":
            return pixels.float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
        # The same by whole rows, since a loop over three channels takes a CPU three times as long, and in chunks that
        # fit its caches.
        width, rows = pixels.shape[2], pixels.flatten(0, 1).flatten(1)
        scale, shift = self.scale.repeat(width), self.shift.repeat(width)
        made = torch.empty(rows.shape, dtype=torch.float32)
        few = max(CACHED // (3 * width), 1)
        for part, place in zip(rows.split(few), made.split(few), strict=True):
            place.copy_(part).mul_(scale).add_(shift)
        return made.view(pixels.shape).permute(0, 3, 1, 2)

    def unit(self, image: Tensor) -> Tensor:
        """Normalise images that are floats in [0, 1], [N, 3, H, W]."""
        return ((image - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


class PaddedImages:
    """All training images, padded once; any window is one strided gather."""

    def __init__(self, images: np.ndarray, augment: Augment, device: torch.device):
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        pad = augment.padding
        self.side = pixels.shape[1]
        if pad:
            # Padding pixels, before normalisation: zeros are black, as in RandomCrop(padding=4).
            mode = "constant" if augment.crop_padding_mode == "zeros" else "reflect"
            pixels = torch.cat([self._pad(part, pad, mode) for part in pixels.split(4096)])
        self.store = pixels.to(device).contiguous().view(-1)
        side = self.side + 2 * pad
        self.row_bytes, self.image_bytes = side * 3, side * side * 3
        last = (self.side - 1) * self.row_bytes + self.side * 3
        self.windows = self.store.as_strided(
            (self.store.numel() - last + 1, self.side, self.side * 3), (1, self.row_bytes, 1)
        )

    @staticmethod
    def _pad(pixels: Tensor, pad: int, mode: str) -> Tensor:
        channels_first = pixels.permute(0, 3, 1, 2)
        if mode == "reflect":  # not implemented for uint8
            return F.pad(channels_first.float(), (pad,) * 4, mode=mode).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return F.pad(channels_first, (pad,) * 4).permute(0, 2, 3, 1).contiguous()

    def crop(self, index: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return windows uint8 [N, H, W, 3] of samples `index` whose corners are (row, column) in the padded image."""
        start = index * self.image_bytes + row * self.row_bytes + column * 3
        return self.windows[start].view(-1, self.side, self.side, 3)


@dataclass
class Drawn:
    """Draws of an epoch: the order of the samples, [num_samples], and how each of them looks, to the teacher too if
    that is another view."""

    order: Tensor
    views: Views
    teacher_views: Views | None
    mixing: Mixing | None = None
    strong: Strong | None = None


class ResidentTrain:
    """Shuffled, augmented training batches; the last one may be small. Everything is a function of (seed, epoch).

    views: views to make in addition to the usual one; "strong" fills `Batch.strong` from its own crop and flip. part:
    this process's images of each batch, if several processes share them; `batch_size` is that of all processes
    together.
    """

    def __init__(
        self,
        data: ArraySet,
        *,
        batch_size: int,
        seed: int,
        stats: Stats,
        augment: Augment,
        teacher_view: str,
        device: torch.device,
        views: tuple[str, ...] = (),
        part: Part = Part(),  # noqa: B008 (a tuple)
    ):
        self.part, self.unit = part, augment.stays_together
        self.own_batch_size = part.most(batch_size, self.unit)
        self.batch_size, self.seed, self.augment, self.teacher_view = batch_size, seed, augment, teacher_view
        self.views = views
        self.device = device
        self.num_samples = len(data)
        self.labels = torch.from_numpy(data.labels)
        self.images = PaddedImages(data.images, augment, device)
        self.device_labels = self.labels.to(device)
        self.normalise = Normalise(stats, device)
        self.late = Late(augment, seed, self.images.side, device)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch_size)

    @property
    def teacher_sees_the_same(self) -> bool:
        """Return True if each sample looks the same to the teacher in every epoch."""
        return self.augment.same_for_teacher(self.teacher_view)

    def teacher_images(self) -> Iterator[Tensor]:
        """Yield the teacher's images of the samples in their own order, in full batches: the last one is filled with
        the first samples. Only if `teacher_sees_the_same`."""
        assert self.teacher_sees_the_same
        size = self.own_batch_size
        order = torch.arange(-(-self.num_samples // size) * size, device=self.device) % self.num_samples
        views = self._teacher_views(0, order)
        if views is None:  # no augmentation
            views = centre_views(self.augment, self.num_samples, self.device)
        for start in range(0, self.num_samples, size):
            window = slice(start, start + size)
            yield self.view(order[window], views, window)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start` + 1, … of `epoch`."""
        drawn = self.draw(epoch)
        for step in range(start, self.steps_per_epoch):
            begin = step * self.batch_size
            window, share = self.part.cut(begin, min(begin + self.batch_size, self.num_samples), self.unit)
            yield self.batch(drawn.order[window], drawn, window, share)

    def draw(self, epoch: int) -> Drawn:
        """Draw everything random in `epoch`."""
        order = shuffled(self.num_samples, self.seed, epoch, self.device)
        strong = Strong(self, epoch, order) if "strong" in self.views else None
        teacher_views = self._teacher_views(epoch, order)
        mixing = self.late.mixing(epoch, self.everything)
        return Drawn(order, self._draw(epoch, VIEW, order), teacher_views, mixing, strong)

    def batch(self, index: Tensor, drawn: Drawn, window: slice = slice(0), share: Share | None = None) -> Batch:
        """Return samples `index` [N], at position `window` of the epoch's order, as they look in this epoch. The
        position is used if there are late or strong views. share: this process's part of the batch."""
        image, label, mixed = self.view(index, drawn.views, window), self.device_labels[index], None
        if drawn.mixing is not None:
            image, mixed = drawn.mixing(image, label, index)
        other = image if drawn.teacher_views is None else self.view(index, drawn.teacher_views, window)
        strong = None if drawn.strong is None else drawn.strong(index, window)
        return Batch(image, label, index, other, strong, mixed, share)

    @property
    def recordable(self) -> bool:
        """Return True if every batch is made by the same operations, independent of its samples."""
        return not self.views and not self.late.active

    @property
    def everything(self) -> Tensor:
        """Return the index of every sample."""
        return torch.arange(self.num_samples, device=self.device)

    def _draw(self, epoch: int, purpose: int, order: Tensor) -> Views:
        views = draw_views(self.augment, self.seed, epoch, self.num_samples, purpose, self.device)
        if purpose != STRONG_VIEW:  # has its own
            views.late = self.late.view(epoch, purpose, self.everything, order)
        return views

    def _teacher_views(self, epoch: int, order: Tensor) -> Views | None:
        if self.teacher_view == "same":
            return None
        if self.teacher_view == "clean":
            return centre_views(self.augment, self.num_samples, self.device)
        return self._draw(teacher_epoch(self.teacher_view, epoch), TEACHER_VIEW, order)

    def view(self, index: Tensor, views: Views, window: slice = slice(0)) -> Tensor:
        """Return the normalised images of samples `index`, at position `window` of the epoch's order, as drawn in
        `views`."""
        image, late = self.drawn(index, views), views.late
        if late is not None and late.policy is not None:
            image = late.policy(as_pixels(image), index, window).permute(0, 2, 3, 1).contiguous()
        image = self.normalise(image) if image.dtype == torch.uint8 else self.normalise.unit(image)
        return image if late is None or late.erasing is None else late.erasing(image, index)

    def drawn(self, index: Tensor, views: Views) -> Tensor:
        """Return the images before normalisation: uint8 [N, H, W, 3] or, if warped or jittered, floats in [0, 1] [N,
        3, H, W]."""
        pixels = self.images.crop(index, views.row[index], views.column[index])
        if views.flip is not None:
            pixels = torch.where(views.flip[index].view(-1, 1, 1, 1), pixels.flip(2), pixels)
        if views.theta is None and views.factors is None:
            return pixels
        image = pixels.permute(0, 3, 1, 2).float() / 255
        if views.theta is not None:
            image = warp(image, views.theta[index])
        if views.factors is not None:
            image = jitter(image, views.factors[index])
        return image


class Strong:
    """Strong views of one epoch: RandAugment and Cutout before the normalisation, on their own crop and flip."""

    def __init__(self, loader: ResidentTrain, epoch: int, order: Tensor):
        self.loader = loader
        self.views = loader._draw(epoch, STRONG_VIEW, order)
        self.draws = strong_draws(loader.seed, epoch, loader.everything)
        self.operations = operations_of(self.draws)[order].cpu()  # once per epoch: see `strengthen`

    def __call__(self, index: Tensor, window: slice) -> Tensor:
        """Return the strong views of samples `index` [N], at position `window` of the epoch's order: normalised [N,
        3, H, W]."""
        pixels = as_pixels(self.loader.drawn(index, self.views))
        strong = strengthen(pixels, self.draws[index], counts_of(self.operations[window]))
        return self.loader.normalise(strong.permute(0, 2, 3, 1).contiguous())


def as_pixels(image: Tensor) -> Tensor:
    """Return the output of `ResidentTrain.drawn` as uint8 [N, 3, H, W]."""
    return image.permute(0, 3, 1, 2) if image.dtype == torch.uint8 else (255 * image).round().to(torch.uint8)


class ResidentEval:
    """Unaugmented batches in the set's own order; several processes share the batches."""

    def __init__(
        self,
        data: ArraySet,
        *,
        batch_size: int,
        stats: Stats,
        device: torch.device,
        part: Part = Part(),  # noqa: B008
    ):
        self.batch_size, self.part = batch_size, part
        self.num_samples = len(data)
        self.images = torch.from_numpy(np.ascontiguousarray(data.images)).to(device)
        self.labels = torch.from_numpy(data.labels).to(device)
        self.normalise = Normalise(stats, device)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (image [N, 3, H, W], label [N])."""
        for start in self.part.turns(self.num_samples, self.batch_size):
            window = slice(start, start + self.batch_size)
            yield self.normalise(self.images[window]), self.labels[window]


def shuffled(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """Return the order of an epoch's samples: a permutation of 0 … count-1, a function of (seed, epoch)."""
    return permutation(key_of(seed, epoch, ORDER), count, device)


def measured_stats(images: np.ndarray) -> Stats:
    """Return the per-channel mean and standard deviation of uint8 images [N, H, W, 3], on the scale [0, 1]."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000].reshape(-1, 3).astype(np.float64) / 255
        total, squares, count = total + part.sum(axis=0), squares + (part**2).sum(axis=0), count + len(part)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return [round(float(v), 6) for v in mean], [round(float(v), 6) for v in std]
