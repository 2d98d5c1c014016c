"""Properties of this machine: cores, processor features, a compiler, the environment of child processes, and cache
folders."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return how many cores this process may use: those of its affinity mask, but no more than a container's quota."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return mask if quota is None else max(1, min(mask, int(quota)))


def cpu_quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPU time per second that this process's control groups grant it, in cores; None: no limit.

    Reads version 2 (cpu.max) and version 1 (cpu.cfs_quota_us), from the process's own group up to the root.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        place = (root / controllers if controllers else root) / group.lstrip("/")
        for folder in (place, *place.parents):
            limits.append(_limit(folder))
            if folder == root:
                break
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(folder: Path) -> float | None:
    """Return one control group's own limit in cores; None where it sets none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no such controller here, or "max"
        return None


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, and restore them afterwards. Libraries read them on import, so a
    spawned process can only be configured before it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def cpu_kind() -> str:
    """Return the CPU property that matters most for these networks: its widest matrix unit. ATEN_CPU_CAPABILITY=avx2
    and ONEDNN_MAX_CPU_ISA=AVX2 together hide what is beyond AVX2."""
    flags = cpu_flags()
    if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2" and os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2":
        return "AVX2"
    if "amx_bf16" in flags:
        return "AMX"
    if "avx512_bf16" in flags:
        return "AVX512_BF16"
    if "avx512f" in flags:
        return "AVX512"
    return "AVX2" if "avx2" in flags else platform.machine()


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    line = next((line for line in text.splitlines() if line.startswith("model name")), "")
    return line.partition(":")[2].strip() or platform.machine()


def compiler_missing(device: str) -> str:
    """Return why torch.compile cannot work here, or an empty string: on a CPU it needs a C++ compiler."""
    if device.startswith("cuda"):
        return ""
    compiler = os.environ.get("CXX") or next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        return "no C++ compiler (g++ or clang++) is installed"
    return ""


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of returning it to the system. Return True if it accepted.

    A training step frees and asks again for hundreds of megabytes of activations. By default much of that is unmapped
    and mapped anew, page by page, at every step: 370 page faults per image were counted in a plain PyTorch loop.
    """
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        return bool(libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_threshold, 2**30))
    except (OSError, AttributeError):  # musl has no mallopt
        return False


def user_cache() -> Path:
    """Return the folder for data of this user and machine rather than of a project: $XDG_CACHE_HOME/kdrun."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "kdrun"


def cache_home() -> Path:
    """Return the folder for data that can be recomputed and may be large: $KDRUN_CACHE, else the user's cache."""
    given = os.environ.get("KDRUN_CACHE")
    return Path(os.path.expanduser(given)) if given else user_cache()
