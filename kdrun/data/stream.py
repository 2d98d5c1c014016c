"""Class-folder sets of any size through DataLoader workers; the device normalises what they send as uint8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdrun.config.augment import Augment
from kdrun.data.augment import teacher_epoch, view_draws
from kdrun.data.decode import cannot_be_read, read_image, why_unreadable
from kdrun.data.late import Late, LateView
from kdrun.data.processes import outlive_group_signal
from kdrun.data.randaugment import counts_of, operations_of, strengthen, strong_draws
from kdrun.data.resident import Normalise, Stats, shuffled
from kdrun.data.splits import FileSet
from kdrun.data.transform import AugmentedView, PlainView
from kdrun.draws import STRONG_VIEW, TEACHER_VIEW, VIEW
from kdrun.hardware import available_cores
from kdrun.shares import Part, Share
from kdrun.structures import Batch


@dataclass(frozen=True)
class Sample:
    """One decoded file: image, teacher's image and the crop that becomes the strong view, uint8 [3, S, S], or its
    path and the reason why there is none."""

    image: Tensor | None
    teacher_image: Tensor | None
    label: int
    index: int
    problem: tuple[str, str] | None = None
    strong: Tensor | None = None


class Decoder(Dataset[Sample]):
    """(epoch, index) -> Sample. epoch -1 is the unaugmented view."""

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
        self.files, self.seed, self.augment, self.teacher_view, self.views = files, seed, augment, teacher_view, views
        self.plain, self.augmented = PlainView(size, resize), AugmentedView(augment, size, resize)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[Sample]:
        """The samples of one batch: drawn together, since a draw of one number takes as long as of many."""
        epoch, index = keys[0][0], [index for _, index in keys]
        if epoch < 0:
            return [self._sample(one, {}) for one in index]
        epochs = {VIEW: epoch}
        if self.teacher_view in ("independent", "fixed"):
            epochs[TEACHER_VIEW] = teacher_epoch(self.teacher_view, epoch)
        if "strong" in self.views:
            epochs[STRONG_VIEW] = epoch
        draws = {
            purpose: view_draws(self.augment, self.seed, drawn_as, purpose, torch.tensor(index))
            for purpose, drawn_as in epochs.items()
        }
        return [
            self._sample(one, {purpose: rows[row] for purpose, rows in draws.items()}) for row, one in enumerate(index)
        ]

    def _sample(self, index: int, draws: dict[int, Tensor]) -> Sample:
        """draws: of each augmented view, by purpose; none: the unaugmented view."""
        label, path = int(self.files.labels[index]), self.files.root / self.files.paths[index]
        try:
            pixels = torch.from_numpy(read_image(path, None).copy()).permute(2, 0, 1)
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and its own kinds for damaged files
            return Sample(None, None, label, index, (str(path), why_unreadable(error, path)))
        if not draws:
            return Sample(self.plain(pixels), None, label, index)
        made = {purpose: self.augmented(pixels, row) for purpose, row in draws.items()}
        other = self.plain(pixels) if self.teacher_view == "clean" else made.get(TEACHER_VIEW)
        return Sample(made[VIEW], other, label, index, strong=made.get(STRONG_VIEW))


class EpochBatches:
    """A batch sampler whose epoch is set from outside, so that the workers live on between epochs. part: of each batch;
    of batches in the set's own order, without a seed, whole ones in turn."""

    def __init__(self, count: int, batch_size: int, seed: int | None, part: Part, unit: int = 1):
        self.count, self.batch_size, self.seed, self.part, self.unit = count, batch_size, seed, part, unit
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def starts(self) -> range:
        """Where the batches begin."""
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
        """What this process takes of the batch that begins at `start`."""
        return self.part.cut(start, min(start + self.batch_size, self.count), self.unit)


@dataclass
class Packed:
    """A batch as the workers send it: uint8 images [N, 3, S, S], and (path, why) of the first that is damaged."""

    image: Tensor
    teacher_image: Tensor | None
    label: Tensor
    index: Tensor
    problem: tuple[str, str] | None = None
    strong: Tensor | None = None


def pack(samples: list[Sample]) -> Packed:
    """Stack the samples of a batch."""
    problem = next((sample.problem for sample in samples if sample.problem), None)
    if problem:
        return Packed(torch.empty(0), None, torch.empty(0), torch.empty(0), problem)
    good = [sample for sample in samples if sample.image is not None]
    images = [sample.image for sample in good if sample.image is not None]
    others = [sample.teacher_image for sample in good if sample.teacher_image is not None]
    strong = [sample.strong for sample in good if sample.strong is not None]
    return Packed(
        torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        torch.stack(others) if others else None,
        torch.tensor([sample.label for sample in good]),
        torch.tensor([sample.index for sample in good]),
        None,
        torch.stack(strong) if strong else None,
    )


class Stream:
    """What training and evaluation share: workers and packing."""

    def __init__(
        self,
        decoder: Decoder,
        batches: EpochBatches,
        workers: int | None,
        stats: Stats,
        device: torch.device,
    ):
        self.device, self.normalise = device, Normalise(stats, device)
        self.batches_of = batches
        count = min(available_cores(), 8) if workers is None else workers
        self.loader: DataLoader[Any] = DataLoader(
            decoder,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=count,
            collate_fn=pack,
            pin_memory=device.type == "cuda",
            persistent_workers=count > 0,
            worker_init_fn=outlive_group_signal,
            generator=torch.Generator(),  # otherwise every epoch would draw from the global one
        )

    def packed(self) -> Iterator[Packed]:
        """Raises DataError for a damaged file: with dataset.on_error=skip the set was made without those."""
        for packed in self.loader:
            if packed.problem:
                raise cannot_be_read(*packed.problem)
            yield packed

    def on_device(self, pixels: Tensor, late: LateView | None = None) -> Tensor:
        """uint8 [N, 3, S, S] -> normalised channels-last float32 on the device, with what `late` draws for it."""
        whole = slice(None)
        pixels = pixels.to(self.device, non_blocking=True)
        if late is not None and late.policy is not None:
            pixels = late.policy(pixels, whole, whole)
        image = self.normalise(pixels.permute(0, 2, 3, 1).contiguous())
        return image if late is None or late.erasing is None else late.erasing(image, whole)


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
        """Batches `start`, `start` + 1, … of `epoch`."""
        self.batches_of.epoch, self.batches_of.start = epoch, start
        for begin, packed in zip(self.batches_of.starts, self.packed(), strict=True):
            index, (_, share) = packed.index, self.batches_of.cut(begin)
            image = self.on_device(packed.image, self.late.view(epoch, VIEW, index))
            other, strong, mixed = image, None, None
            label, mixing = packed.label.to(self.device), self.late.mixing(epoch, index)
            if mixing is not None:
                image, mixed = mixing(image, label, slice(None))
                other = image
            if packed.teacher_image is not None:
                drawn_as, clean = teacher_epoch(self.teacher_view, epoch), self.teacher_view == "clean"
                late = None if clean else self.late.view(drawn_as, TEACHER_VIEW, index)
                other = self.on_device(packed.teacher_image, late)
            if packed.strong is not None:
                draws = strong_draws(self.seed, epoch, index)
                pixels, counts = packed.strong.to(self.device, non_blocking=True), counts_of(operations_of(draws))
                strong = self.on_device(strengthen(pixels, draws.to(self.device, non_blocking=True), counts))
            yield Batch(image, label, index.to(self.device), other, strong, mixed, share)


class StreamEval(Stream):
    """Unaugmented batches in the set's own order; of several processes each makes some of them."""

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
        """(image [N, 3, S, S], label [N])."""
        for packed in self.packed():
            yield self.on_device(packed.image), packed.label.to(self.device)


def measured_stats(data: FileSet, image_size: int, resize: str, workers: int | None, limit: int = 10_000) -> Stats:
    """Per-channel mean and standard deviation on [0, 1] over the training files, at most `limit` evenly spaced ones."""
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
