"""Overlap and correlation of two networks' class activation maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

TOP = 0.2  # share of the pixels that count as highlighted


def iou(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the intersection over union [N] of the highest fifth of the pixels of maps [N, H, W], including ties
    but not zeros; NaN if neither map has any."""
    a, b = _highest(ours), _highest(theirs)
    union = (a | b).sum(axis=1)
    return np.where(union > 0, (a & b).sum(axis=1) / np.maximum(union, 1), np.nan)


def _highest(maps: np.ndarray) -> np.ndarray:
    flat = maps.reshape(len(maps), -1)
    count = max(round(TOP * flat.shape[1]), 1)
    least = np.partition(flat, -count, axis=1)[:, -count]
    return (flat >= least[:, None]) & (flat > 0)


def pearson(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the linear correlation [N] of maps [N, H, W], the CC of Bylinskii et al. 2019; NaN if a map is
    constant."""
    a, b = (maps.reshape(len(maps), -1).astype(np.float64) for maps in (ours, theirs))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(scale > 1e-12, (a * b).sum(axis=1) / np.maximum(scale, 1e-12), np.nan)


def spearman(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the rank correlation [N] of maps [N, H, W], as Adebayo et al. 2018 compare saliency maps; NaN if one is
    constant."""
    return pearson(*(rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (ours, theirs)))


@dataclass(frozen=True)
class Overlap:
    """Overlap per image: iou, pearson, spearman [N], NaN if undefined. apart: their means if each map of the teacher
    is taken from the next image, which is the chance level (for example from both looking at the centre)."""

    each: dict[str, np.ndarray]
    apart: dict[str, float | None]

    @property
    def mean(self) -> dict[str, float | None]:
        return {name: known_mean(values) for name, values in self.each.items()}

    @property
    def undefined(self) -> int:
        """Return the number of images left out of a measure because a map is empty."""
        return int(np.isnan(np.stack(list(self.each.values()))).any(axis=0).sum())


def overlap(ours: np.ndarray, theirs: np.ndarray) -> Overlap:
    """Return the overlap of a student's maps [N, H, W] with its teacher's on the same images."""
    measures = (("iou", iou), ("pearson", pearson), ("spearman", spearman))
    shifted = np.roll(theirs, 1, axis=0)
    apart = {name: known_mean(measure(ours, shifted)) if len(ours) > 1 else None for name, measure in measures}
    return Overlap({name: measure(ours, theirs) for name, measure in measures}, apart)


def known_mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
