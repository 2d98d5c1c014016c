"""Building blocks of feature methods: stage pairing, resizing between grids, adaptors, embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import PairingError
from kdrun.models.features import pair_maps
from kdrun.structures import Spec


def stage_pairs(student: Spec, teacher: Spec | None, method: str, stages: str = "all") -> list[tuple[int, int]]:
    """Return [(student map, teacher map)], shallow to deep, for a method that compares stages. `stages` is "all", or
    "last" for the deepest pair only.

    Raises PairingError if one of the networks has no maps.
    """
    assert teacher is not None
    pairs = pair_maps(student, teacher)
    if not pairs:
        silent = "student" if not student.maps[student.stems :] else "teacher"
        raise PairingError(
            f"method {method} compares stage maps, but the {silent} has none (kdrun taps lists a network's "
            "features). Methods on logits run on every pair: kd, dkd, dist, lskd."
        )
    return pairs[-1:] if stages == "last" else pairs


def need_pooled(spec: Spec | None, role: str, method: str) -> int:
    """Return the width of the pooled vector. Raises PairingError if the network has none."""
    assert spec is not None
    if spec.pooled is None:
        raise PairingError(f"method {method} compares pooled vectors, but the {role} has none (kdrun taps).")
    return spec.pooled


def must_repeat(x: Tensor) -> bool:
    """Return True if gradients of `x` must be deterministic: some of PyTorch's operations on CUDA are not, and raise
    an error under `deterministic=true`."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def average_pool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Pool [N, C, H, W] -> [N, C, *size] by adaptive averages; with deterministic gradients if required."""
    return averaged(averaged(x, 2, size[0]), 3, size[1]) if must_repeat(x) else F.adaptive_avg_pool2d(x, size)


def averaged(x: Tensor, dim: int, size: int) -> Tensor:
    """Average adaptively along one dimension: over equal parts if possible, else over overlapping windows."""
    length = x.shape[dim]
    if length % size == 0:
        return x.unflatten(dim, (size, length // size)).mean(dim + 1)
    part = torch.arange(size, device=x.device)
    start, end = part * length // size, -(-(part + 1) * length // size)
    place = start[:, None] + torch.arange(-(-length // size) + 1, device=x.device)
    share = (place < end[:, None]) / (end - start)[:, None]
    windows = x.index_select(dim, place.clamp(max=length - 1).flatten()).unflatten(dim, tuple(place.shape))
    return (windows * share.view(*place.shape, *[1] * (x.dim() - dim - 1))).sum(dim + 1)


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [N, C, H, W] -> [N, C, *size]: averaged to a smaller grid, interpolated (bilinear) to a larger one."""
    if x.shape[-2:] == size:
        return x
    if x.shape[-2] >= size[0] and x.shape[-1] >= size[1]:
        return average_pool(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)  # deterministic where required


def smaller_grid(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps on the smaller of their grids."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    return resize_map(a, size), resize_map(b, size)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics if a batch has only one value per channel (the last batch
    of an epoch over a 1x1 map), which has no variance."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def adaptor(in_channels: int, out_channels: int) -> nn.Sequential:
    """Build the adaptor from a student's channels to a teacher's: conv 1x1 without bias, N(0, √(2/C_out)); batch
    norm; ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / out_channels))
    return nn.Sequential(conv, BatchNorm(out_channels), nn.ReLU())


class Embed(nn.Module):
    """Linear embedding to `width`, then L2 normalisation: [N, D] -> [N, width] on the unit sphere."""

    def __init__(self, in_features: int, width: int):
        super().__init__()
        self.linear = nn.Linear(in_features, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x), dim=1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: float | Tensor) -> Tensor:  # type: ignore[override]
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.scale * grad, None


def reverse_gradient(x: Tensor, scale: float | Tensor) -> Tensor:
    """Return `x` unchanged, with its gradient multiplied by -scale (Ganin & Lempitsky 2015, arXiv:1409.7495, eq.
    4-5)."""
    return _Reverse.apply(x, scale)  # type: ignore[return-value]
