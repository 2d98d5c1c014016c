"""Augmentation: what is drawn, and batched crops, warps and colour jitter on the training device.

Randomness is counter-based: every draw is a function of (seed, epoch, sample, purpose), so neither the batch, nor the
number of workers, nor a resume changes what a sample looks like in an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.options import Augment


def uniform(seed: int, epoch: int, index: np.ndarray, count: int, purpose: int = 0) -> np.ndarray:
    """Numbers in [0, 1) as float64 [len(index), count]: SplitMix64's finaliser over a counter made of the arguments."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(_mix(np.uint64(seed)) + np.uint64(epoch)) + np.uint64(purpose))
        counter = index.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
        bits = _mix(_mix(counter + key) + key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.uint64 | np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): golden-ratio step, then the finaliser."""
    x = np.asarray(x, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Views:
    """One epoch's draws for every sample, on the training device; fields that the augmentation ignores stay None.

    row, column [N] int64: the crop's corner in the padded image; flip [N] bool; theta [N, 2, 3]: inverse affine map;
    factors [N, 4]: brightness, contrast, saturation, hue.
    """

    row: Tensor
    column: Tensor
    flip: Tensor | None = None
    theta: Tensor | None = None
    factors: Tensor | None = None


def draw_views(augment: Augment, seed: int, epoch: int, count: int, purpose: int, device: torch.device) -> Views:
    """Views of samples 0 … count-1 in `epoch`; purpose tells independent draws apart (student's, teacher's)."""
    draws = uniform(seed, epoch, np.arange(count), 12, purpose)
    span = 2 * augment.padding + 1
    corner = np.floor(draws[:, :2] * span).astype(np.int64)
    views = Views(_put(corner[:, 0], device), _put(corner[:, 1], device))
    if augment.flip > 0:
        views.flip = _put(draws[:, 2] < augment.flip, device)
    if augment.warps:
        views.theta = _put(_affine(augment, draws[:, 3:8]).astype(np.float32), device)
    if augment.jitters:
        strengths = np.array([augment.brightness, augment.contrast, augment.saturation, augment.hue])
        factors = (2 * draws[:, 8:12] - 1) * strengths
        factors[:, :3] = np.maximum(1 + factors[:, :3], 0)
        views.factors = _put(factors.astype(np.float32), device)
    return views


def centre_views(augment: Augment, count: int, device: torch.device) -> Views:
    """The unaugmented view of every sample."""
    corner = torch.full((count,), augment.padding, device=device)
    return Views(corner, corner)


def _put(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _affine(augment: Augment, draws: np.ndarray) -> np.ndarray:
    """Maps output to input coordinates in [-1, 1], [N, 2, 3]: a random area (draws 0-3), then a rotation (draw 4)."""
    angle = np.deg2rad(augment.rotation) * (2 * draws[:, 4] - 1)
    width = height = np.ones(len(draws))
    x = y = np.zeros(len(draws))
    if augment.crop == "resized":
        low, high = augment.resized_scale
        area = low + (high - low) * draws[:, 0]
        ratio = np.exp(math.log(4 / 3) * (2 * draws[:, 1] - 1))
        width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
        x, y = (1 - width) * (2 * draws[:, 2] - 1), (1 - height) * (2 * draws[:, 3] - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [[width * cos, -width * sin, x], [height * sin, height * cos, y]]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def warp(image: Tensor, theta: Tensor) -> Tensor:
    """Bilinear affine warp of image [N, C, H, W] in [0, 1]; outside is black."""
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def jitter(image: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue in this order, per sample: image [N, 3, H, W] in [0, 1], factors [N, 4].

    Each step is torchvision's ColorJitter step, batched; torchvision also shuffles the order.
    """
    brightness, contrast, saturation, hue = (factors[:, i].view(-1, 1, 1, 1) for i in range(4))
    image = (image * brightness).clamp(0, 1)
    mean = grey(image).mean(dim=(1, 2, 3), keepdim=True)
    image = (mean + (image - mean) * contrast).clamp(0, 1)
    shade = grey(image)
    image = (shade + (image - shade) * saturation).clamp(0, 1)
    return rotate_hue(image, hue)


def grey(image: Tensor) -> Tensor:
    """Luma [N, 1, H, W] by the ITU-R 601-2 weights."""
    weights = torch.tensor([0.2989, 0.587, 0.114], device=image.device).view(1, 3, 1, 1)
    return (image * weights).sum(dim=1, keepdim=True)


def rotate_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turn the HSV hue by `shift` turns: image [N, 3, H, W] in [0, 1], shift [N, 1, 1, 1]."""
    red, green, blue = image.unbind(dim=1)
    value, low = image.amax(dim=1), image.amin(dim=1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.remainder(hue / 6 + shift.squeeze(1), 1.0) * 6
    channels = []
    for offset in (5, 3, 1):  # f(n) = V - C·max(0, min(k, 4 - k, 1)), k = (n + H) mod 6
        k = torch.remainder(offset + hue, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)
