"""Convolutions in bf16 on a CPU, where oneDNN's own way is slow.

- Small maps, on a CPU with AMX: oneDNN reorders the weights in every call, which takes longer than the convolution if a
  map has few positions. They are matrix products here. Without AMX these are no faster.
- Depthwise convolutions: oneDNN has no fast bf16 gradient with a stride, for kernels above 3×3 and for tiny maps. It is
  computed in float32 here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.hardware import cpu_kind
from kdrun.training.precision import Numerics

Convolution = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# Largest map, in positions, of which products are at least as fast, by kernel size. Above it the copies of 3×3
# neighbourhoods take longer than the reorders.
LARGEST = {1: 64, 3: 16}
TINY = 4  # positions


def choose_convolutions(model: nn.Module, numerics: Numerics) -> None:
    """Let the model's convolutions use the faster ways in bf16 on a CPU, and PyTorch's own everywhere else."""
    here = numerics.precision == "bf16" and numerics.torch_device.type == "cpu" and not numerics.compile
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__dict__.pop("_conv_forward", None)
            if here and (faster := faster_convolution(module)):
                module.__dict__["_conv_forward"] = faster


def faster_convolution(module: nn.Conv2d) -> Convolution | None:
    """Return the function of image, weight and bias that replaces the module's own, or None."""
    if module.dilation != (1, 1) or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    side = module.kernel_size[0]
    if 1 < module.groups == module.in_channels:
        return partial(depthwise, stride=module.stride, padding=module.padding)
    same = module.stride == (1, 1) and module.padding == (side // 2, side // 2)
    if cpu_kind() == "AMX" and same and module.groups == 1 and module.kernel_size == (side, side) and side in LARGEST:
        return dense
    return None


def dense(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve [N, C, H, W] with [D, C, k, k], k odd, stride 1, zeros beyond the edge: [N, D, H, W]."""
    side = weight.shape[-1]
    small = image.dim() == 4 and image.shape[2] * image.shape[3] <= LARGEST[side]
    if not (small and image.is_contiguous(memory_format=torch.channels_last) and in_bf16()):
        return F.conv2d(image, weight, bias, padding=side // 2)
    return apart(Product.apply if torch.is_grad_enabled() else product, image, weight, bias)


def depthwise(
    image: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """Convolve each channel of [N, C, H, W] with its own kernels of [D, 1, k, l]."""
    fast = stride == (1, 1) and weight.shape[2:] == (3, 3) and image.shape[-2:].numel() > TINY
    if fast or image.dim() != 4 or not (in_bf16() and torch.is_grad_enabled()):
        return F.conv2d(image, weight, bias, stride, padding, groups=image.shape[-3])
    return apart(Depthwise.apply, image, weight, bias, stride, padding)


def in_bf16() -> bool:
    """Return True under bf16 autocast, except inside a compiler or torch.func: they know PyTorch's own convolution."""
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return torch.is_autocast_enabled("cpu") and not traced


def apart(function: Callable[..., Any], image: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Return the function of bf16 tensors, without autocast, which would decide on each of its operations."""
    cast = [None if tensor is None else tensor.bfloat16() for tensor in (image, weight, bias)]
    with torch.autocast("cpu", enabled=False):
        return function(*cast, *rest)


def product(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve by one product of neighbourhoods and weights."""
    n, _, h, w = image.shape
    near, kernels = neighbourhoods(image, weight.shape[-1]), weight.permute(0, 2, 3, 1).flatten(1).t()
    out = torch.empty((n, len(weight), h, w), dtype=image.dtype, memory_format=torch.channels_last)
    rows = out.permute(0, 2, 3, 1).view(-1, len(weight))  # autograd lets nobody change a returned view in place
    if bias is None:
        torch.mm(near, kernels, out=rows)
    else:
        torch.addmm(bias, near, kernels, out=rows)
    return out


def neighbourhoods(image: Tensor, side: int) -> Tensor:
    """Return the side × side surroundings of each position: [N·H·W, side·side·C]."""
    n, c, h, w = image.shape
    last = image.permute(0, 2, 3, 1)
    if side == 1:
        return last.reshape(-1, c)
    edge = side // 2
    padded = F.pad(last, (0, 0, edge, edge, edge, edge))
    batch, row, column, channel = padded.stride()
    near = padded.as_strided((n, h, w, side, side, c), (batch, row, column, row, column, channel))
    return near.reshape(n * h * w, -1)


class Product(torch.autograd.Function):
    """Convolution by `product`, with its gradients as products too."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(image, weight)
        return product(image, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        n, c, h, w = image.shape
        d, _, side, _ = weight.shape
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, d)
        by_image, by_weight, by_bias = None, None, None
        if ctx.needs_input_grad[0]:
            turned = [weight[:, :, i, j] for i in reversed(range(side)) for j in reversed(range(side))]
            by_image = (neighbourhoods(gradient, side) @ torch.cat(turned)).view(n, h, w, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            by_weight = (rows.t() @ neighbourhoods(image, side)).view(d, side, side, c).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            by_bias = rows.sum(0)
        return by_image, by_weight, by_bias


class Depthwise(torch.autograd.Function):
    """Depthwise convolution in bf16 with gradients in float32."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(image, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(image, weight, bias, stride, padding, groups=image.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, weight = ctx.saved_tensors
        full = [tensor.float() for tensor in (gradients[0], image, weight)]
        shape, mask = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), image.shape[1]), list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.convolution_backward(*full, [len(weight)], *shape, mask)
        return *(None if item is None else item.to(image.dtype) for item in found), None, None
