"""Published weights files that a recipe needs. Nothing is downloaded here: for a missing file, one line tells where
to put it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdrun.errors import DataError
from kdrun.files import sha256_of
from kdrun.models.hub import hub_folder

if TYPE_CHECKING:
    import torch

PIXELS_AT_ONCE = 2**20  # pixels per batch on a GPU: 64 images of 128 px, 20 of 224


@dataclass(frozen=True)
class Pretrained:
    """Weights of torchvision's `network`, under the name that torchvision downloads them by."""

    network: str
    file: str

    def find(self, weights: str | None, setting: str, instead: str) -> Path:
        """Return the file `weights`, or the one in torch hub's folder of checkpoints.

        setting: the setting that requires it; instead: an alternative without weights; both as typed. Raises DataError.
        """
        place = hub_folder() / self.file if weights is None else Path(os.path.expanduser(weights))
        if place.is_file():
            return place
        ways = f"or use {instead}, which needs no network."
        if weights is not None:
            raise DataError(f"{setting} weights={weights}: no such file; give torchvision's {self.file}, {ways}")
        raise DataError(
            f"{setting} needs {self.network}'s weights, but {place} is missing (nothing is downloaded unasked): put "
            f"https://download.pytorch.org/models/{self.file} there, give weights=FILE, {ways}"
        )


def content_of(place: Path) -> str:
    """Return the SHA-256 of a file, read only once as long as it does not change."""
    status = place.stat()
    return _content(place, status.st_mtime_ns, status.st_size)


@cache
def _content(place: Path, changed: int, size: int) -> str:

    return sha256_of(place)


@contextmanager
def fixed_arithmetic() -> Iterator[None]:
    """Fix the arithmetic in this block (one thread on the CPU, one choice of kernels on a GPU), so that an image
    gives the same bytes in any process."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            yield
    finally:
        torch.set_num_threads(threads)


def batch_size(device: str, height: int, width: int) -> int:
    """Return how many images of this size pass through a network at once: a fixed number, since another one would be
    rounded differently; one on the CPU."""
    return max(PIXELS_AT_ONCE // (height * width), 1) if device.startswith("cuda") else 1


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Apply ImageNet's normalisation to [N, 3, H, W] in [0, 1]."""
    mean, std = _statistics(images)
    return (images - mean) / std


def in_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Invert `normalised`, clipped to [0, 1]."""
    mean, std = _statistics(images)
    return (images * std + mean).clamp(0, 1)


def _statistics(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (like.new_tensor(each)[:, None, None] for each in values)
    return mean, std
