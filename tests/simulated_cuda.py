"""A GPU that is not there: tensors that say they are on cuda:0, compute on the CPU, and refuse to mix with its tensors.

`with simulated_cuda() as gpu: main(["train", …, "device=cuda"])` runs the code as it is. The kernels are the CPU's, so a
run must end in the bits of device=cpu. `gpu` counts what the host would have waited for. CUDA graphs are simulated too:
a capture executes nothing that lasts, refuses what CUDA refuses, and a replay runs the same kernels with the same
numbers at the same addresses. Not simulated: torch.compile, the algorithms of cuDNN and cuBLAS, pinned memory, streams
that overlap, memory that runs out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

import kdrun

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PACKAGE = str(Path(kdrun.__file__).parent)

# Operations whose result, or its shape, the host needs.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}
WAITS |= {"is_nonzero", "bincount"}
NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "is_same_size"}
NO_KERNEL |= {"_reshape_alias", "lift_fresh", "alias"}
NOT_TENSORS = {"_local_scalar_dense", "equal", "is_nonzero", "is_same_size"}
INDEXING = {"index", "_unsafe_index", "index_put_", "_index_put_impl_", "index_put"}
SCALARS_TOO = {"cat", "stack", "index_copy_", "index_copy", "_fused_sgd_", "_fused_adam_", "_fused_adamw_"}


# What a kernel overwrites without its schema saying so.
UNSAID = {"aten::native_batch_norm": ("running_mean", "running_var")}


class Mixed(RuntimeError):
    """Tensors of both devices in one operation."""


class Placed(Tensor):
    """A tensor that says it is on cuda:0; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> Placed:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device=CPU
        )
        made.held = real
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Placed:
        made = Placed(self.held.clone()).requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)  # type: ignore[attr-defined]
        return memo.setdefault(id(self), made)  # type: ignore[return-value]

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def record_stream(self, stream: Any) -> None:
        assert isinstance(stream, Stream)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory.")

    __array__ = numpy

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert GPU.current is not None, "the simulated device is gone"
        return GPU.current.run(func, args, kwargs or {})


def held(x: Any) -> Any:
    return x.held if isinstance(x, Placed) else x


def on_gpu(*values: Any) -> bool:
    return any(isinstance(x, Placed) for x in tree_leaves(values))


def names_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def place() -> str:
    """The line of kdrun that is being run."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"


def storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr() or id(x)


@dataclass
class Kernel:
    """One operation: its name, its numbers, the tensors that it was given, and what it returned."""

    func: Any
    args: Any
    kwargs: Any
    out: list[Tensor]
    where: str

    @property
    def name(self) -> str:
        return self.func._schema.name.partition("::")[2]

    def numbers(self) -> list[Any]:
        leaves = tree_leaves((self.args, self.kwargs))
        return [x for x in leaves if isinstance(x, int | float | bool) and not isinstance(x, Tensor)]

    def tensors(self) -> list[Tensor]:
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]


@dataclass
class GPU:
    """The events on the simulated device. syncs: where the host waited for it; copies: where it was sent host memory;
    launches: of kernels. kernels: every operation, while something records."""

    syncs: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    kernels: list[Kernel] | None = None
    graph: Graph | None = None  # that is being captured
    replays: int = 0
    inside: int = 0  # calls of functions on its tensors: what they make without naming a device is on it too

    current = None  # the one that is switched on

    def sync(self, what: str) -> None:
        if self.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} ({place()})")
        self.syncs[f"{what} {place()}"] += 1

    def copy(self, what: str) -> None:
        if self.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} ({place()})")
        self.copies[f"{what} {place()}"] += 1

    def to_gpu(self, x: Tensor, what: str) -> Placed:
        self.copy(what)
        made = Placed(x.detach().clone())
        return made.requires_grad_(x.requires_grad)  # type: ignore[return-value]

    def to_host(self, x: Placed, what: str) -> Tensor:
        self.sync(what)
        return x.held.detach().clone()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation below autograd."""
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        makes = not leaves and (self.inside > 0 or names_gpu(kwargs.get("device")))
        if not makes and not on_gpu(leaves):
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        self.check_devices(name, args, leaves)
        self.check_waits(name, args, kwargs)
        if "device" in kwargs:
            kwargs = {key: value for key, value in kwargs.items() if key != "device" or name != "_to_copy"}
            kwargs |= {"device": CPU} if "device" in kwargs else {}
        given, named = tree_map(held, (args, kwargs))
        if self.graph is not None:
            self.graph.protect(func, given, named)
        out = func(*given, **named)
        if name in NOT_TENSORS:
            return out
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        kernel = Kernel(func, given, named, made, "" if self.kernels is None else place())
        if self.kernels is not None:
            self.kernels.append(kernel)
        if not (func.is_view or name in NO_KERNEL):
            self.launches += 1
            if self.graph is not None:
                self.graph.kernels.append(kernel)
        if self.graph is not None:
            self.graph.note(made, [x for x in tree_leaves((given, named)) if isinstance(x, Tensor)])
        known = {id(x.held): x for x in leaves if isinstance(x, Placed)}
        placed = tree_map(
            lambda x: known.get(id(x)) if id(x) in known else Placed(x) if isinstance(x, Tensor) else x, out
        )
        # A tensor that was given another shape in place learns it.
        return (
            return_and_correct_aliasing(func, args, kwargs, placed) if torch.Tag.inplace_view in func.tags else placed
        )

    def check_devices(self, name: str, args: Any, leaves: list[Tensor]) -> None:
        plain = [x for x in leaves if not isinstance(x, Placed)]
        if not plain:
            return
        if name == "copy_":
            (self.copy if on_gpu(args[0]) else self.sync)("copy_ from the other device")
        elif name in INDEXING and on_gpu(args[0]) and all(any(x is y for y in tree_leaves(args[1])) for x in plain):
            self.copy("index on the CPU")
        elif any(x.dim() > 0 for x in plain) or name in SCALARS_TOO:
            raise Mixed(f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu! ({place()})")

    def check_waits(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name in WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.sync(name)
        if name in INDEXING:
            masks = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)]
            if masks and not (name.startswith("index_put") and isinstance(args[2], Tensor) and args[2].dim() == 0):
                self.sync("index by a mask")


class Graph:
    """torch.cuda.CUDAGraph: the kernels of a capture."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.made: list[Tensor] = []  # all of the capture's own, so that no address is given away while the graph lives
        self.own: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def protect(self, func: Any, args: Any, kwargs: Any) -> None:
        """Remember what a kernel is about to overwrite: a capture runs nothing."""
        for position, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if not written and argument.name not in UNSAID.get(func._schema.name, ()):
                continue
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            for x in tree_leaves(given):
                if isinstance(x, Tensor) and storage(x) not in self.own and storage(x) not in self.before:
                    whole = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())  # type: ignore[arg-type]
                    self.before[storage(x)] = whole, whole.clone()

    def note(self, made: list[Tensor], given: list[Tensor]) -> None:
        known = {storage(x) for x in given}
        self.made.extend(made)
        self.own.update(storage(x) for x in made if storage(x) not in known)

    def restore(self) -> None:
        for whole, kept in self.before.values():
            whole.copy_(kept)
        self.before.clear()

    def replay(self) -> None:
        gpu = GPU.current
        assert gpu is not None and gpu.graph is None
        gpu.replays += 1
        gpu.launches += 1
        with _disable_current_modes():
            for kernel in self.kernels:
                fresh = [x for x in tree_leaves(kernel.func(*kernel.args, **kernel.kwargs)) if isinstance(x, Tensor)]
                given = {storage(x) for x in kernel.tensors()}
                for kept, made in zip(kernel.out, fresh, strict=True):
                    if storage(kept) not in given:
                        kept.copy_(made)


@contextmanager
def capture(graph: Graph, **_: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    gpu = GPU.current
    assert gpu is not None
    gpu.sync("begin of a capture")
    gpu.graph = graph
    random = torch.default_generator.get_state()
    try:
        yield
    finally:
        gpu.graph = None
        with _disable_current_modes():
            graph.restore()
            torch.default_generator.set_state(random)


class Below(TorchDispatchMode):
    """Operations that no tensor of the GPU is given: what they make may still be on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert GPU.current is not None
        return GPU.current.run(func, args, kwargs or {})


class Above(TorchFunctionMode):
    """The calls that name a device, or leave it: moves between the two, and tensors made from host data."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self.moved(func, *args, **kwargs)
        if func is Tensor.tolist and on_gpu(args):
            return self.gpu.to_host(args[0], "tolist").tolist()
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy) and names_gpu(kwargs.get("device")):
            return self.gpu.to_gpu(func(*args, **kwargs | {"device": CPU}), "a tensor of host data")
        return self.inside(func, args, kwargs)

    def inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        touches = on_gpu(args, kwargs)
        self.gpu.inside += touches
        try:
            return func(*args, **kwargs)
        finally:
            self.gpu.inside -= touches

    def moved(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to` and its like."""
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if func is Tensor.to:
            kwargs.pop("copy", None)
            device, dtype, later, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        else:
            device, dtype, later, memory_format = (CUDA if func is Tensor.cuda else CPU), None, False, None
        if device is not None and device.type == "cuda" and not isinstance(x, Placed):
            x = self.gpu.to_gpu(x, f"{'non-blocking ' if later else ''}copy to the device")
        elif device is not None and device.type == "cpu" and isinstance(x, Placed):
            x = self.gpu.to_host(x, "copy to the host")
        changes = {"dtype": dtype} if dtype is not None else {}
        changes |= {"memory_format": memory_format} if memory_format is not None else {}
        return self.inside(Tensor.to, (x,), changes) if changes else x


class Generator:
    """The GPU's generator: its kernels draw from the CPU's, which is seeded along with it."""

    def manual_seed(self, seed: int) -> None:
        self.seeded = torch.default_generator.get_state()

    def get_offset(self) -> int:
        with _disable_current_modes():
            return 0 if torch.equal(self.seeded, torch.default_generator.get_state()) else 4


class Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any):
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class Stream:
    """torch.cuda.Stream: everything happens in order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: Stream) -> None:
        assert isinstance(other, Stream)

    def record_event(self) -> Stream:
        return self

    def wait_event(self, event: Stream) -> None:
        assert isinstance(event, Stream)

    def is_capturing(self) -> bool:
        return GPU.current is not None and GPU.current.graph is not None


def grouped(lists: Any, with_indices: bool = False) -> Any:
    """By the device that tensors name, not the one that C++ sees."""
    found = GROUPED(lists, with_indices)
    return {((CUDA if on_gpu(value[0]) else device), dtype): value for (device, dtype), value in found.items()}


def saved(state: Any, file: Any, **settings: Any) -> None:
    SAVE(tree_map(lambda x: x.held.detach().clone() if isinstance(x, Placed) else x, state), file, **settings)


def unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
    LOADER(self, *args, **kwargs | {"pin_memory": False})


GROUPED, SAVE, LOADER = torch._C._group_tensors_by_device_and_dtype, torch.save, DataLoader.__init__


def replaced(gpu: GPU) -> list[tuple[Any, str, Any]]:
    """(where, name, what takes its place)"""
    return [
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        (torch.cuda, "get_device_name", lambda *_: "simulated"),
        (torch.cuda, "mem_get_info", lambda *_: (2**34, 2**34)),
        (torch.cuda, "max_memory_allocated", lambda *_: 1),
        (torch.cuda, "memory_allocated", lambda *_: 1),
        (torch.cuda, "memory_reserved", lambda *_: 1),
        (torch.cuda, "reset_peak_memory_stats", lambda *_: None),
        (torch.cuda, "synchronize", lambda *_: gpu.sync("synchronize")),
        (torch.cuda, "default_generators", (Generator(),)),
        (torch.cuda, "is_current_stream_capturing", lambda: gpu.graph is not None),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "CUDAGraph", Graph),
        (torch.cuda, "graph", capture),
        (torch.cuda, "Stream", Stream),
        (torch.cuda, "stream", lambda _: nullcontext()),
        (torch.cuda, "current_stream", Stream),
        (torch.accelerator, "current_stream", Stream),
        (torch._C, "_group_tensors_by_device_and_dtype", grouped),
        (torch, "autocast", Autocast),
        (torch, "inference_mode", torch.no_grad),
        (torch, "save", saved),
        (DataLoader, "__init__", unpinned),
    ]


@contextmanager
def simulated_cuda() -> Iterator[GPU]:
    """Switch the device on."""
    gpu = GPU()
    with ExitStack() as stack:
        for where, name, value in replaced(gpu):
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(mock.patch.object(GPU, "current", gpu))
        # `Module.to` cannot put a tensor of another kind into a parameter.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(Below())
        stack.enter_context(Above(gpu))
        yield gpu
