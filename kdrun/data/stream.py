"""Streamed data sets: class folders of any size, read by DataLoader workers as uint8 and normalised on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdrun.config.augment import Augment
from kdrun.data.augment import teacher_epoch, view_draws
from kdrun.data.decode import cannot_be_read, why_unreadable
from kdrun.data.late import Late, LateView
from kdrun.data.packed import Packed, on_device
from kdrun.data.pixels import read_pixels
from kdrun.data.processes import outlive_group_signal
from kdrun.data.randaugment import counts_of, operations_of, strengthen, strong_draws
from kdrun.data.resident import Normalise, Stats, shuffled
from kdrun.data.splits import FileSet
from kdrun.data.transform import AugmentedView, PlainView
from kdrun.draws import STRONG_VIEW, TEACHER_VIEW, VIEW
from kdrun.hardware import available_cores
from kdrun.shares import Part, Share
from kdrun.structures import Batch

View = Callable[[Tensor], Tensor]  # uint8 [3, H, W] -> [3, S, S]

FEW_IMAGES = 2000
AS_IT_IS = "stretch"  # how an image is resized that has its size already


def as_sent(packed: Any) -> Any:
    """Return a batch unchanged: it was packed by the worker that read it."""
    return packed


class Decoder(Dataset[Packed]):
    """Data set for a DataLoader: keys (epoch, index) of a batch -> the batch. epoch -1 is the unaugmented view."""

    def __init__(
        self,
        files: FileSet,
        size: int,
        resize: str,
        augment: Augment,
        seed: int,
        teacher_view: str,
        views: tuple[str, ...] = (),
    ):
        self.files, self.size, self.seed, self.augment = files, size, seed, augment
        self.teacher_view, self.views = teacher_view, views
        if files.resized is not None:
            resize = AS_IT_IS
        self.plain, self.augmented = PlainView(size, resize), AugmentedView(augment, size, resize)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Packed:
        """Decode each file once for all of its views, written to their places in the batch."""
        epoch, index = keys[0][0], torch.tensor([index for _, index in keys])
        views = self.views_of(epoch, index)
        made: dict[str, Any] = {
            name: torch.empty(len(keys), self.size, self.size, 3, dtype=torch.uint8) for name in views
        }
        for row, one in enumerate(index.tolist()):
            path = os.path.join(self.files.root, self.files.paths[one])
            try:
                pixels = read_pixels(path) if self.files.resized is None else self.files.resized[one]
            except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and own types for damage
                nothing = torch.empty(0)
                return Packed(nothing, nothing, nothing, problem=(path, why_unreadable(error, path)))
            for name, view in views.items():
                made[name][row] = view[row](pixels).permute(1, 2, 0)
        return Packed(label=torch.from_numpy(self.files.labels)[index], index=index, **made)

    def views_of(self, epoch: int, index: Tensor) -> dict[str, list[View]]:
        """Return the views of samples `index` [N], by name in `Packed`: N functions of the decoded image."""
        plain: list[View] = [self.plain] * len(index)
        if epoch < 0:
            return {"image": plain}
        purposes = {"image": (VIEW, epoch)}
        if self.teacher_view in ("independent", "fixed"):
            purposes["teacher_image"] = TEACHER_VIEW, teacher_epoch(self.teacher_view, epoch)
        if "strong" in self.views:
            purposes["strong"] = STRONG_VIEW, epoch
        made: dict[str, list[View]] = {"teacher_image": plain} if self.teacher_view == "clean" else {}
        for name, (purpose, drawn_as) in purposes.items():
            drawn = self.augmented.drawn(view_draws(self.augment, self.seed, drawn_as, purpose, index))
            made[name] = [partial(self.augmented, drawn=one) for one in drawn]
        return made


class EpochBatches:
    """Batch sampler whose epoch is set from outside, so that the workers persist between epochs. part: this
    process's part of each batch; without a seed (the set's own order), processes take whole batches in turn."""

    def __init__(self, count: int, batch_size: int, seed: int | None, part: Part, unit: int = 1):
        self.count, self.batch_size, self.seed, self.part, self.unit = count, batch_size, seed, part, unit
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def starts(self) -> range:
        """Return the starts of the batches."""
        if self.seed is None:
            return self.part.turns(self.count, self.batch_size)
        return range(self.start * self.batch_size, self.count, self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.seed is None:
            for start in self.starts:
                yield [(-1, index) for index in range(start, min(start + self.batch_size, self.count))]
            return
        order = shuffled(self.count, self.seed, self.epoch, torch.device("cpu"))
        for start in self.starts:
            window, _ = self.cut(start)
            yield [(self.epoch, int(index)) for index in order[window]]

    def cut(self, start: int) -> tuple[slice, Share | None]:
        """Return this process's part of the batch that begins at `start`."""
        return self.part.cut(start, min(start + self.batch_size, self.count), self.unit)


def workers_for(images: int, device: torch.device) -> int:
    """Return the default number of reading processes: one per core; none for a small set on a CPU, where each of them
    takes seconds to start and the cores of training to read."""
    return 0 if device.type == "cpu" and images < FEW_IMAGES else min(available_cores(), 8)


class Stream:
    """Stream of packed batches, shared by training and evaluation: workers and packing."""

    def __init__(
        self,
        decoder: Decoder,
        batches: EpochBatches,
        workers: int | None,
        stats: Stats,
        device: torch.device,
    ):
        self.device, self.normalise = device, Normalise(stats, device)
        self.copies = torch.cuda.Stream(device=device) if device.type == "cuda" else None
        self.batches_of = batches
        count = workers_for(len(decoder.files), device) if workers is None else workers
        self.loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=count,
            collate_fn=as_sent,
            pin_memory=device.type == "cuda",
            persistent_workers=count > 0,
            worker_init_fn=outlive_group_signal,
            generator=torch.Generator(),  # otherwise every epoch would draw from the global generator
        )

    def packed(self) -> Iterator[tuple[Packed, Tensor]]:
        """Yield each batch on the device, and its index on the host."""
        return on_device(self.read(), self.device, self.copies)

    def read(self) -> Iterator[Packed]:
        """Yield the batches. Raises DataError for a damaged file: with dataset.on_error=skip the set excludes these
        beforehand."""
        for packed in self.loader:
            if packed.problem:
                raise cannot_be_read(*packed.problem)
            yield packed

    def finished(self, pixels: Tensor, late: LateView | None = None) -> Tensor:
        """Convert uint8 [N, S, S, 3] to normalised channels-last float32, with the late augmentation `late`."""
        whole = slice(None)
        if late is not None and late.policy is not None:
            pixels = channels_last(late.policy(channels_first(pixels), whole, whole))
        image = self.normalise(pixels)
        return image if late is None or late.erasing is None else late.erasing(image, whole)


def channels_first(pixels: Tensor) -> Tensor:
    """Convert [N, H, W, 3] to [N, 3, H, W], in memory too."""
    return pixels.permute(0, 3, 1, 2).contiguous()


def channels_last(pixels: Tensor) -> Tensor:
    """Convert [N, 3, H, W] to [N, H, W, 3], in memory too."""
    return pixels.permute(0, 2, 3, 1).contiguous()


class StreamTrain(Stream):
    """Shuffled, augmented training batches read from files. views, part: as in `ResidentTrain`; RandAugment and Cutout
    run on the device."""

    def __init__(
        self,
        data: FileSet,
        *,
        image_size: int,
        resize: str,
        batch_size: int,
        seed: int,
        stats: Stats,
        augment: Augment,
        teacher_view: str,
        workers: int | None,
        device: torch.device,
        views: tuple[str, ...] = (),
        part: Part = Part(),  # noqa: B008
    ):
        decoder = Decoder(data, image_size, resize, augment, seed, teacher_view, views)
        order = EpochBatches(len(data), batch_size, seed, part, augment.stays_together)
        super().__init__(decoder, order, workers, stats, device)
        self.num_samples = len(data)
        self.labels = torch.from_numpy(data.labels)
        self.batch_size, self.seed, self.teacher_view = batch_size, seed, teacher_view
        self.late = Late(augment, seed, image_size, device)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start` + 1, … of `epoch`."""
        self.batches_of.epoch, self.batches_of.start = epoch, start
        for begin, (packed, index) in zip(self.batches_of.starts, self.packed(), strict=True):
            _, share = self.batches_of.cut(begin)
            image = self.finished(packed.image, self.late.view(epoch, VIEW, index))
            other, strong, mixed, mixing = image, None, None, self.late.mixing(epoch, index)
            if mixing is not None:
                image, mixed = mixing(image, packed.label, slice(None))
                other = image
            if packed.teacher_image is not None:
                drawn_as, clean = teacher_epoch(self.teacher_view, epoch), self.teacher_view == "clean"
                late = None if clean else self.late.view(drawn_as, TEACHER_VIEW, index)
                other = self.finished(packed.teacher_image, late)
            if packed.strong is not None:
                draws = strong_draws(self.seed, epoch, index)
                pixels, counts = channels_first(packed.strong), counts_of(operations_of(draws))
                pixels = strengthen(pixels, draws.to(self.device, non_blocking=True), counts)
                strong = self.finished(channels_last(pixels))
            yield Batch(image, packed.label, packed.index, other, strong, mixed, share)


class StreamEval(Stream):
    """Unaugmented batches in the set's own order; several processes share the batches."""

    def __init__(
        self,
        data: FileSet,
        *,
        image_size: int,
        resize: str,
        batch_size: int,
        stats: Stats,
        workers: int | None,
        device: torch.device,
        part: Part = Part(),  # noqa: B008
    ):
        decoder = Decoder(data, image_size, resize, Augment(crop="none", flip=0.0), 0, "same")
        super().__init__(decoder, EpochBatches(len(data), batch_size, None, part), workers, stats, device)
        self.num_samples, self.batch_size = len(data), batch_size

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (image [N, 3, S, S], label [N])."""
        for packed, _ in self.packed():
            yield self.finished(packed.image), packed.label


def measured_stats(data: FileSet, image_size: int, resize: str, workers: int | None, limit: int = 10_000) -> Stats:
    """Return the per-channel mean and standard deviation on [0, 1] over the training files, at most `limit` evenly
    spaced ones."""
    chosen = data.take(np.unique(np.linspace(0, len(data) - 1, min(limit, len(data))).astype(int)))
    device = torch.device("cpu")
    loader = StreamEval(
        chosen,
        image_size=image_size,
        resize=resize,
        batch_size=64,
        stats=([0.0] * 3, [1.0] * 3),
        workers=workers,
        device=device,
    )
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for image, _ in loader.batches():
        flat = image.double().permute(0, 2, 3, 1).reshape(-1, 3)
        total, squares, count = total + flat.sum(0), squares + (flat**2).sum(0), count + len(flat)
    mean = total / max(count, 1)
    std = (squares / max(count, 1) - mean**2).clamp(min=1e-12).sqrt()
    return [round(v, 6) for v in mean.tolist()], [round(v, 6) for v in std.tolist()]
