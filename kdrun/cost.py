"""What a network and a run cost: operations and memory."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def count_flops(model: torch.nn.Module, image_size: int) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add counts two)."""
    from torch.utils.flop_counter import FlopCounterMode

    parameter = next(model.parameters())
    training = model.training
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    finally:
        model.train(training)
    return counter.get_total_flops()
