"""Speed of bf16 training relative to fp32 on this CPU, timed once and stored in the user's cache folder.

The processor's flags are not enough: some server CPUs run bf16 instructions at half the rate of fp32.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from kdrun.errors import KdrunError
from kdrun.files import read_json, write_json
from kdrun.hardware import user_cache

ROUNDS = 3
CHANNELS, SIDE, IMAGES = 32, 16, 32  # of the timed block: the middle of a CIFAR network
CHOSEN_BY = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")  # a user may disable CPU features


@cache
def bf16_speedup(machine: str) -> float:
    """Return the speed of a training step in bf16 relative to fp32 on the CPU.

    machine: identifies the processor; the result is stored for it and for this version of PyTorch.
    """
    about = [machine, torch.__version__, *(os.environ.get(name, "") for name in CHOSEN_BY)]
    place = user_cache() / f"bf16-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.json"
    try:
        return float(read_json(place)["speedup"])
    except (KdrunError, KeyError, TypeError, ValueError):  # not measured yet, or damaged
        found = measured_speedup()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"speedup": found, "measured_on": about})
    except (KdrunError, OSError):  # no writable home: measured again next time
        pass
    return found


def measured_speedup() -> float:
    """Time a small block's steps in both types alternately, in CPU time of one thread, so that other work on the
    machine has little effect."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            steps = {dtype: training_step(dtype) for dtype in (torch.float32, torch.bfloat16)}
        spent: dict[torch.dtype, list[float]] = {dtype: [] for dtype in steps}
        for _ in range(ROUNDS + 1):
            for dtype, step in steps.items():
                begun = time.thread_time()
                step()
                spent[dtype].append(time.thread_time() - begun)
    finally:
        torch.set_num_threads(threads)
    return min(spent[torch.float32][1:]) / min(spent[torch.bfloat16][1:])


def training_step(dtype: torch.dtype) -> Callable[[], None]:
    """Return a step, forward and backward, of two convolutions with batch norm, computed as in a run in `dtype`."""
    layers = [
        part
        for _ in range(2)
        for part in (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    ]
    block = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    image = torch.ones(IMAGES, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    image += 0.1 * torch.arange(SIDE)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = block(image)
        F.mse_loss(out.float(), image).backward()

    return step
