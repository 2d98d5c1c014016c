"""Images that are kept at the size of training, as a loader reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdrun.data.arrays import read_array


@dataclass(frozen=True)
class Resized:
    """Images uint8 [N, S, S, 3] in a file that each process maps for itself. rows: those that are meant; None: all."""

    file: Path
    rows: np.ndarray | None = None

    @cached_property
    def images(self) -> np.ndarray:
        # Copy-on-write mapping: the pages stay shared with the file, and torch may wrap them without a warning.
        return read_array(self.file, mmap_mode="c")

    def __getitem__(self, index: int) -> Tensor:
        """Return an image as uint8 [3, S, S], channels last in memory, like a decoded file."""
        row = index if self.rows is None else int(self.rows[index])
        return torch.from_numpy(self.images[row]).permute(2, 0, 1)

    def take(self, index: np.ndarray) -> Resized:
        return replace(self, rows=index if self.rows is None else self.rows[index])

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "rows": self.rows}  # the images go nowhere by pickling
