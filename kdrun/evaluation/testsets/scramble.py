"""Test set with the patches of each image in random order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdrun.config.options import setting
from kdrun.errors import DataError
from kdrun.evaluation.testsets.base import DerivedSet, Draw


@dataclass(frozen=True)
class Scramble(DerivedSet):
    """Non-overlapping patches, permuted at random for each image.

    grid: patches along a side; null: the published 7 if it divides the side (224), else 8, else 4. offset: the
    patches begin half a patch from the border, so that no vision transformer's patch coincides with one; the outer
    half-patch frame stays in place.
    """

    name = "scramble"
    measures = "permutation invariance, locality"
    usual = "permuted patches"
    seconds_per_megapixel = 0.03

    grid: int | None = setting(None, low=2)
    offset: bool = setting(False)

    def grid_for(self, height: int, width: int) -> int:
        if self.grid is not None:
            return self.grid
        return next((grid for grid in (7, 8, 4) if height % grid == 0 and width % grid == 0), 7)

    def check_size(self, height: int, width: int) -> None:
        grid = self.grid_for(height, width)
        if height % grid or width % grid:
            fits = [count for count in range(2, min(height, width)) if height % count == 0 and width % count == 0]
            raise DataError(
                f"scramble.grid={grid} does not divide {height}x{width} images; these do: {', '.join(map(str, fits))}."
            )
        if self.offset and (grid < 3 or min(height, width) // grid < 2):
            raise DataError(
                f"scramble.offset=true with scramble.grid={grid} leaves nothing to permute at {height}x{width}: take "
                "grid=3 or more and patches of two pixels or more."
            )

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        height, width, _ = image.shape
        grid = self.grid_for(height, width)
        tall, wide = height // grid, width // grid
        top, left = (tall // 2, wide // 2) if self.offset else (0, 0)
        count = grid - 1 if self.offset else grid
        made = image.copy()
        area = made[top : top + count * tall, left : left + count * wide]
        patches = area.reshape(count, tall, count, wide, 3).transpose(0, 2, 1, 3, 4).reshape(-1, tall, wide, 3)
        patches = patches[draw.generator().permutation(count * count)]
        area[...] = patches.reshape(count, count, tall, wide, 3).transpose(0, 2, 1, 3, 4).reshape(area.shape)
        return made
