"""What `auto` resolves to on this machine, and how a run's arithmetic is set up. Resolved once, recorded with the run
and pinned on resume: other precision, threads or compilation end in other weights."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kdrun.errors import ConfigError
from kdrun.hardware import compiler_missing, cpu_flags, cpu_name, keep_freed_memory
from kdrun.training import ranks
from kdrun.training.bf16_probe import bf16_speedup
from kdrun.training.threads import Share, free_threads

WORTH_IT = 1.03  # fp32 is the reference: it gives way to what is faster beyond the noise of the probe
DEFAULT_THREADS = torch.get_num_threads()  # PyTorch's own choice, before any run sets another


@dataclass(frozen=True)
class Numerics:
    """precision: fp32, tf32 or bf16. compile: whether the networks are compiled. threads: CPU threads. graphs: whether
    training steps are CUDA graphs. processes: how many train together, each on a device of its own."""

    device: str
    precision: str
    compile: bool
    threads: int
    deterministic: bool
    graphs: bool = False
    processes: int = 1

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def autocast(self) -> Any:
        """bf16 autocast, or nothing: weights, optimizer and losses are float32 either way."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    def apply(self) -> None:
        """Set threads, TF32, determinism and the allocator for this process."""
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        tf32 = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = not self.deterministic
        if self.deterministic and self.device.startswith("cuda"):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def unrepeatable(error: BaseException) -> str:
    """One line for PyTorch's refusal of an operation under `deterministic=true`; empty for any other error."""
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if not found:
        return ""
    return (
        f"deterministic=true: a network or the method needs {operation.split()[-1]}, which PyTorch cannot repeat bit "
        "by bit on CUDA. Leave deterministic=true out, or choose another network."
    )


def resolve_device(requested: str) -> str:
    """auto -> cuda:0 where there is one, else cpu; of several processes each gets a GPU of its own. Raises ConfigError
    for a device that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "auto" and not count:
        return "cpu"
    if requested in ("auto", "cuda") and ranks.now.size > 1:
        return own_gpu(count)
    if requested == "auto":
        return "cuda:0"
    if requested.startswith("cuda"):
        if ranks.now.size > 1:
            raise ConfigError(f"device={requested} is one GPU, and {ranks.now.size} processes train: say device=cuda.")
        index = int(requested.partition(":")[2] or 0)
        if index >= count:
            there = f"there are {count} GPU(s)" if count else "PyTorch sees no GPU here"
            raise ConfigError(f"device={requested}: {there}; use device=cpu or device=auto.")
        return f"cuda:{index}"
    return requested


def own_gpu(count: int) -> str:
    """Return the GPU of this one of several processes. Raises ConfigError where there are too few."""
    local = ranks.now.local
    if local >= count > 1 or not count:
        raise ConfigError(
            f"process {ranks.now.rank} of {ranks.now.size} is number {local + 1} on its machine, where there are "
            f"{count} GPU(s): start one process for each GPU, or set device=cpu."
        )
    return f"cuda:{local if count > 1 else 0}"  # a cluster may show each process one


def resolve_precision(requested: str, device: str) -> str:
    """auto -> bf16 where it trains faster than fp32: on GPUs since Ampere, on CPUs where a short probe says so."""
    cuda = device.startswith("cuda")
    if requested == "tf32" and not cuda:
        raise ConfigError("precision=tf32 needs a GPU; on a CPU choose fp32 or bf16.")
    if requested != "auto":
        return requested
    if cuda:
        return "bf16" if torch.cuda.get_device_capability(torch.device(device)) >= (8, 0) else "fp32"
    return "bf16" if cpu_bf16_speedup() > WORTH_IT else "fp32"


def cpu_bf16_speedup() -> float:
    """Return how many times as fast as in fp32 this CPU trains in bf16."""
    return bf16_speedup(f"{cpu_name()} {' '.join(sorted(cpu_flags()))}")


@dataclass(frozen=True)
class Resolved:
    """What settings mean here. notes: lines for the user; undecided: `compile=auto` still wants a timed probe."""

    numerics: Numerics
    notes: list[str]
    undecided: bool


def resolve(
    device: str, precision: str, compile: str, threads: int | None, deterministic: bool, graphs: str = "auto"
) -> Resolved:
    """Resolve every `auto` for this machine. Raises ConfigError for what it does not have."""
    processes = ranks.now.size
    place = resolve_device(device)
    missing = compiler_missing(place)
    if compile == "true" and missing:
        raise ConfigError(f"compile=true: {missing}; install g++ or set compile=false.")
    if graphs == "true":
        refuse_graphs()
    if graphs == "true" and not place.startswith("cuda"):
        raise ConfigError(
            f"graphs=true: CUDA graphs need a GPU, and this runs on {place}; choose graphs=auto or false."
        )
    cores = os.cpu_count() or 1
    if threads and threads > cores:
        raise ConfigError(
            f"threads={threads}: this machine has {cores} cores; leave threads out to use those that are free."
        )
    share = Share(threads, "as set") if threads else resolve_threads()
    precise = resolve_precision(precision, place)
    # auto is off until a GPU has shown that graphs and single kernels end in the same bits.
    numerics = Numerics(place, precise, compile == "true", share.threads, deterministic, graphs == "true", processes)
    notes = [f"{place}, {numerics.precision}, {share.threads} thread{'s' * (share.threads > 1)} ({share.reason})"]
    if compile == "auto" and missing:
        notes.append(f"compile=auto: {missing}, so the networks run uncompiled.")
    if processes > 1 and compile == "auto" and not missing:
        notes.append("compile=auto: with several processes the networks run uncompiled; compile=true compiles them.")
    return Resolved(numerics, notes, compile == "auto" and not missing and processes == 1)


def refuse_graphs() -> None:
    """Raise ConfigError where several processes train."""
    if ranks.now.size > 1:
        raise ConfigError("graphs=true: a graph records the steps of one device; leave it out with several processes.")


def resolve_threads() -> Share:
    """null -> $OMP_NUM_THREADS where it is set, else PyTorch's default or as many threads as there are cores free."""
    if "OMP_NUM_THREADS" in os.environ:
        return Share(DEFAULT_THREADS, "OMP_NUM_THREADS")
    share = free_threads()
    return replace(share, threads=min(share.threads, DEFAULT_THREADS))


def pinned(resolved: dict[str, Any], device: str) -> Numerics:
    """The numerics that a started run recorded, on the requested device. Raises ConfigError where this machine cannot
    honour them."""
    place = resolve_device(device)
    wanted = str(resolved["device"]).partition(":")[0]
    if place.partition(":")[0] != wanted:
        raise ConfigError(
            f"this run was started on {wanted}, this machine offers {place}: resume it there, or give it another "
            "seed or output_root."
        )
    if resolved["compile"] and (missing := compiler_missing(place)):
        raise ConfigError(f"this run was started compiled, but {missing}: install g++, or resume it elsewhere.")
    if resolved.get("graphs", False):  # older runs do not say
        refuse_graphs()
    return Numerics(
        place,
        resolved["precision"],
        resolved["compile"],
        resolved["threads"],
        resolved["deterministic"],
        resolved.get("graphs", False),
        ranks.now.size,
    )


def on_own_device(numerics: Numerics, requested: str) -> Numerics:
    """Return the numerics of process 0 with the device of this one."""
    if ranks.now.size == 1:
        return numerics
    own = replace(numerics, device=resolve_device(requested))
    if own.device.startswith("cuda"):
        torch.cuda.set_device(own.torch_device)
    return own
