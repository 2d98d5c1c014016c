"""Plain PyTorch loop as the baseline for the engine, as in tutorials and in the public projects of this field: float32,
NCHW, a DataLoader that transforms image by image, default SGD. It keeps no meters and no feature lists, so it is faster
than those projects."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdrun.data.resident import Stats
from kdrun.data.splits import ArraySet
from kdrun.training.bench.timing import Step


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Data set as torchvision.datasets.CIFAR100: an array to a PIL image, then the transforms."""

    def __init__(self, data: ArraySet, stats: Stats, padding: int | None, flip: float):
        from torchvision import transforms

        augment: list[Any] = []
        if padding:
            augment.append(transforms.RandomCrop(data.images.shape[1], padding=padding))
        if flip:
            augment.append(transforms.RandomHorizontalFlip(flip))
        self.data = data
        self.transform = transforms.Compose([*augment, transforms.ToTensor(), transforms.Normalize(*stats)])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        image = Image.fromarray(np.asarray(self.data.images[index]))
        return torch.as_tensor(self.transform(image)), int(self.data.labels[index])


def forever(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


class PlainLoop:
    """Plain loop for knowledge distillation (T = 4, weights 0.1 and 0.9) of `teacher` into `student`, one batch per
    call."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data: ArraySet,
        stats: Stats,
        padding: int,
        flip: float,
        batch_size: int,
        device: torch.device,
    ):
        self.student, self.teacher = student.to(device), teacher.to(device)
        self.student.train()
        self.teacher.eval()
        images = PlainImages(data, stats, padding, flip)
        self.batches = forever(DataLoader(images, batch_size=batch_size, shuffle=True, drop_last=True))
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.device = device

    def step(self) -> int:
        image, label = next(self.batches)
        image, label = image.to(self.device), label.to(self.device)
        with torch.no_grad():
            taught = self.teacher(image)
        logits = self.student(image)
        soft = F.kl_div(F.log_softmax(logits / 4, dim=1), F.softmax(taught / 4, dim=1), reduction="batchmean") * 16
        loss = 0.1 * F.cross_entropy(logits, label) + 0.9 * soft
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return len(label)

    def load(self) -> int:
        """Run only the input pipeline."""
        return len(next(self.batches)[1])


def evaluation_pass(model: nn.Module, data: ArraySet, stats: Stats, batch_size: int, device: torch.device) -> Step:
    """Return a step that computes top-1 over the whole test set, batch by batch."""
    loader = DataLoader(PlainImages(data, stats, None, 0.0), batch_size=batch_size)

    def step() -> int:
        model.to(device).eval()
        correct = 0
        with torch.no_grad():
            for image, label in loader:
                correct += int((model(image.to(device)).argmax(1) == label.to(device)).sum())
        return len(data)

    return step


def plain_steps(
    student: nn.Module,
    teacher: nn.Module,
    train: ArraySet,
    test: ArraySet,
    stats: Stats,
    padding: int,
    flip: float,
    batch_size: int,
    device: str,
    threads: int,
) -> dict[str, Step]:
    """Return the units of work to be timed: a training step, a pass over the test set, a batch of the input
    pipeline."""
    torch.set_num_threads(threads)
    where = torch.device(device)
    loop = PlainLoop(student, teacher, train, stats, padding, flip, batch_size, where)
    return {
        "train": loop.step,
        "eval": evaluation_pass(copy.deepcopy(student), test, stats, batch_size, where),
        "input": loop.load,
    }
