"""Cost of a network and of a run: FLOPs and memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch


def forget_peak(device: torch.device) -> None:
    """Start the peak of a GPU's memory anew; that of a CPU process cannot be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU's allocator, or the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> int:
    """Return the free memory in bytes on the GPU, where what PyTorch keeps for reuse is free, or in the system."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not on Linux: half of the installed memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def count_flops(model: torch.nn.Module, image_size: int) -> int:
    """Return the floating-point operations of one image's forward pass (a multiply-add counts as two)."""
    from torch.utils.flop_counter import FlopCounterMode

    parameters = list(model.parameters())
    # The counter hooks what needs a gradient, and fails at a view of a parameter (a query expanded to the batch).
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    training = model.training
    counter = FlopCounterMode(display=False)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.no_grad(), counter:
            model.eval()
            model(torch.zeros(1, 3, image_size, image_size, device=parameters[0].device))
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
    return counter.get_total_flops()
