"""Resolution of `auto` settings on this machine, and setup of a run's arithmetic. Settings are resolved once,
recorded with the run and pinned on resume, since other precision, threads or compilation give other weights."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

import torch

from kdrun.display import plural
from kdrun.errors import ConfigError
from kdrun.hardware import compiler_missing, cpu_flags, cpu_name, keep_freed_memory
from kdrun.training import ranks
from kdrun.training.bf16_probe import bf16_speedup
from kdrun.training.threads import Share, free_threads

WORTH_IT = 1.03  # fp32 is the reference, replaced only by something faster beyond the probe's noise
DEFAULT_THREADS = torch.get_num_threads()  # PyTorch's default, before any run changes it


@dataclass(frozen=True)
class Numerics:
    """Numerics of a run. precision: fp32, tf32 or bf16; compile: True if the networks are compiled; threads: CPU
    threads; graphs: True if training steps are CUDA graphs; processes: number of processes that train together, each
    on its own device."""

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
        """Return a bf16 autocast context, or an empty one. Weights, optimizer and losses are float32 either way."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16)

    def apply(self) -> None:
        """Set threads, TF32, determinism and the allocator for this process."""
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        self.apply_tf32()
        torch.backends.cudnn.benchmark = not self.deterministic
        exact = self.deterministic and self.device.startswith("cuda")
        if exact:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if exact != torch.are_deterministic_algorithms_enabled():  # an earlier run of this process may have set it
            torch.use_deterministic_algorithms(exact)  # which imports the compiler: a second of every command

    def apply_tf32(self) -> None:
        """Set only TF32, which is a setting of the process."""
        tf32 = self.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def unrepeatable(error: BaseException) -> str:
    """Return one line for PyTorch's rejection of an operation under `deterministic=true`; an empty string for any
    other error."""
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    if not found:
        return ""
    return (
        f"deterministic=true: a network or the method needs {operation.split()[-1]}, which PyTorch cannot repeat bit "
        "by bit on CUDA. Leave out deterministic=true, or choose another network."
    )


def resolve_device(requested: str) -> str:
    """Resolve auto to cuda:0 if there is one, else cpu; each of several processes gets its own GPU. Raises
    ConfigError for a missing device."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "auto" and not count:
        return "cpu"
    if requested in ("auto", "cuda") and ranks.now.size > 1:
        return own_gpu(count)
    if requested == "auto":
        return "cuda:0"
    if requested.startswith("cuda"):
        if ranks.now.size > 1:
            raise ConfigError(f"device={requested} is one GPU, but {ranks.now.size} processes train: use device=cuda.")
        index = int(requested.partition(":")[2] or 0)
        if index >= count:
            there = f"this machine has {plural(count, 'GPU')}" if count else "PyTorch sees no GPU here"
            raise ConfigError(f"device={requested}: {there}; use device=cpu or device=auto.")
        return f"cuda:{index}"
    return requested


def own_gpu(count: int) -> str:
    """Return the GPU of this process, one of several. Raises ConfigError if there are too few."""
    local = ranks.now.local
    if local >= count > 1 or not count:
        raise ConfigError(
            f"process {ranks.now.rank} of {ranks.now.size} is number {local + 1} on its machine, which has "
            f"{plural(count, 'GPU')}: start one process for each GPU, or set device=cpu."
        )
    return f"cuda:{local if count > 1 else 0}"  # a cluster may expose one GPU to each process


def resolve_precision(requested: str, device: str) -> str:
    """Resolve auto to bf16 if it trains faster than fp32: on GPUs since Ampere, on CPUs if a short probe shows it."""
    cuda = device.startswith("cuda")
    if requested == "tf32" and not cuda:
        raise ConfigError("precision=tf32 needs a GPU; on a CPU choose fp32 or bf16.")
    if requested != "auto":
        return requested
    if cuda:
        return "bf16" if torch.cuda.get_device_capability(torch.device(device)) >= (8, 0) else "fp32"
    return "bf16" if cpu_bf16_speedup() > WORTH_IT else "fp32"


def cpu_bf16_speedup() -> float:
    """Return the speed of bf16 training relative to fp32 on this CPU."""
    return bf16_speedup(f"{cpu_name()} {' '.join(sorted(cpu_flags()))}")


@dataclass(frozen=True)
class Resolved:
    """Resolved settings on this machine. notes: lines for the user; undecided: True if `compile=auto` still needs a
    timed probe."""

    numerics: Numerics
    notes: list[str]
    undecided: bool


def resolve(
    device: str, precision: str, compile: str, threads: int | None, deterministic: bool, graphs: str = "auto"
) -> Resolved:
    """Resolve every `auto` for this machine. Raises ConfigError for something that it does not have."""
    processes = ranks.now.size
    place = resolve_device(device)
    missing = compiler_missing(place)
    if compile == "true" and missing:
        raise ConfigError(f"compile=true: {missing}; install g++ or set compile=false.")
    if graphs == "true":
        refuse_graphs()
    if graphs == "true" and not place.startswith("cuda"):
        raise ConfigError(
            f"graphs=true: CUDA graphs need a GPU, but this runs on {place}; choose graphs=auto or false."
        )
    cores = os.cpu_count() or 1
    if threads and threads > cores:
        raise ConfigError(
            f"threads={threads}: this machine has {plural(cores, 'core')}; leave out threads to use the free ones."
        )
    share = Share(threads, "as set") if threads else resolve_threads()
    precise = resolve_precision(precision, place)
    # auto means off until a GPU has shown that graphs and single kernels give the same bits.
    numerics = Numerics(place, precise, compile == "true", share.threads, deterministic, graphs == "true", processes)
    notes = [f"{place}, {numerics.precision}, {plural(share.threads, 'thread')} ({share.reason})"]
    if compile == "auto" and missing:
        notes.append(f"compile=auto: {missing}, so the networks run uncompiled.")
    if processes > 1 and compile == "auto" and not missing:
        notes.append("compile=auto: with several processes the networks run uncompiled; compile=true compiles them.")
    return Resolved(numerics, notes, compile == "auto" and not missing and processes == 1)


def refuse_graphs() -> None:
    """Raise ConfigError if several processes train."""
    if ranks.now.size > 1:
        raise ConfigError("graphs=true: a graph records the steps of one device; leave it out with several processes.")


def resolve_threads() -> Share:
    """Resolve null to $OMP_NUM_THREADS if set, else to PyTorch's default or the number of free cores."""
    if "OMP_NUM_THREADS" in os.environ:
        return Share(DEFAULT_THREADS, "OMP_NUM_THREADS")
    share = free_threads()
    return replace(share, threads=min(share.threads, DEFAULT_THREADS))


def pinned(resolved: dict[str, Any], device: str) -> Numerics:
    """Return the numerics that a started run recorded, on the requested device. Raises ConfigError if this machine
    cannot provide them."""
    place = resolve_device(device)
    wanted = str(resolved["device"]).partition(":")[0]
    if place.partition(":")[0] != wanted:
        raise ConfigError(
            f"this run was started on {wanted}, but this machine offers {place}: resume it there, or use another "
            "seed or output_root."
        )
    if resolved["compile"] and (missing := compiler_missing(place)):
        raise ConfigError(f"this run was started compiled, but {missing}: install g++, or resume it elsewhere.")
    if resolved.get("graphs", False):  # not recorded by older runs
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
    """Return the numerics of process 0 with this process's device."""
    if ranks.now.size == 1:
        return numerics
    own = replace(numerics, device=resolve_device(requested))
    if own.device.startswith("cuda"):
        torch.cuda.set_device(own.torch_device)
        refuse_shared_gpu(str(torch.cuda.get_device_properties(own.torch_device).uuid))
    return own


def refuse_shared_gpu(uuid: str) -> None:
    """Raise ConfigError if two of the processes that train together have the same GPU: NCCL cannot connect them.
    uuid: identifier of this process's GPU."""
    gpus = ranks.now.everyone(int.from_bytes(sha256(uuid.encode()).digest()[:7], "big"))
    if len(set(gpus)) < len(gpus):
        raise ConfigError(
            f"{len(gpus)} processes train one run, but have {plural(len(set(gpus)), 'GPU')}: start one process for "
            "each GPU, or set device=cpu."
        )
