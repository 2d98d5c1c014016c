"""Convolution floor: the speed of a training step if only its convolutions took time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.training.bench.timing import median_seconds

Key = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True)
class Convolution:
    """Distinct convolution: its shapes, and how often a forward pass runs it."""

    image: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    count: int
    first: bool  # its input is the images, which need no gradient


def convolutions(model: nn.Module, batch_size: int, image_size: int) -> list[Convolution]:
    """Return the convolutions of one forward pass, in the order of their first use."""
    found: dict[Key, int] = {}

    def record(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        padding = module.padding if isinstance(module.padding, tuple) else (0, 0)
        key = (tuple(inputs[0].shape), tuple(module.weight.shape), module.stride, padding, module.groups)
        found[key] = found.get(key, 0) + 1

    handles = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[arg-type]
    training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()
            model(torch.zeros(batch_size, 3, image_size, image_size, device=parameter.device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return [Convolution(*key, count=count, first=key[0][1] == 3) for key, count in found.items()]


def floor_seconds(
    model: nn.Module, batch_size: int, image_size: int, dtype: torch.dtype, device: torch.device, backward: bool
) -> float:
    """Return the seconds that the model's convolutions take one by one, channels-last, at their real shapes:
    forward, and with `backward` also the gradients of weights and inputs."""
    return sum(
        convolution.count * convolution_seconds(convolution, dtype, device, backward)
        for convolution in convolutions(model, batch_size, image_size)
    )


def convolution_seconds(convolution: Convolution, dtype: torch.dtype, device: torch.device, backward: bool) -> float:
    c = convolution
    layout = {"memory_format": torch.channels_last}
    image = torch.randn(c.image, device=device).to(dtype).contiguous(**layout)
    weight = torch.randn(c.weight, device=device).to(dtype).contiguous(**layout)
    stride, padding = list(c.stride), list(c.padding)

    def forward() -> Tensor:
        return F.conv2d(image, weight, None, stride, padding, 1, c.groups)

    seconds = median_seconds(forward, device)
    if not backward:
        return seconds
    gradient = torch.randn_like(forward())
    for mask in ([False, True, False], [True, False, False])[: 1 if c.first else 2]:

        def back(mask: list[bool] = mask) -> object:
            return torch.ops.aten.convolution_backward(
                gradient, image, weight, None, stride, padding, [1, 1], False, [0, 0], c.groups, mask
            )

        seconds += median_seconds(back, device)
    return seconds


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Return the FLOP/s of a large matrix product: the practical ceiling of the device's matrix units."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: a @ b, device)
