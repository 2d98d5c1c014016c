"""Processes that train one run together, started by torchrun, SLURM or a sweep; usually there is just one.

Only number 0 prints, writes and decides; all of them follow the same path through a run. They communicate over the CPU
(gloo), so that messages wait for no GPU; gradients, and tensors gathered by losses, stay on the networks' devices.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from kdrun import errors, files
from kdrun.errors import ConfigError, Interrupted, KdrunError, RunError, one_line, trace_behind
from kdrun.shares import Part
from kdrun.training.heartbeat import Heartbeat, Verdict
from kdrun.training.signals import Stop

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
JOINING = timedelta(minutes=10)  # for all processes to connect
WAITING = timedelta(days=30)  # for each other: dead processes are found by heartbeats, not by a timeout


class Alone:
    """Single process of a run: it answers its own questions to the others."""

    rank, size, local = 0, 1, 0

    @property
    def main(self) -> bool:
        """Return True in the process that prints, writes and decides."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        return Part(self.rank, self.size)

    def from_main(self, make: Callable[[], T]) -> T:
        """Return the result of `make` from process 0, which alone calls it."""
        return make()

    def most(self, number: int) -> int:
        """Return the largest of all processes' numbers."""
        return number

    def everyone(self, number: int) -> list[int]:
        """Return the numbers of all processes, in their order. number: at least 0."""
        return [number]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values, which are overwritten."""
        return values

    def heed(self, stop: Stop, due: bool = False) -> bool:
        """Return True if it is time to save: it is `due` in process 0, or some process received a signal, which all
        then have in `stop.heard`."""
        stop.heard = stop.signal
        return due or bool(stop.heard)

    def gone(self, error: BaseException) -> BaseException:
        """Return the exception that ends this process if the others can no longer be reached."""
        return error

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let process 0 pass before the others."""
        yield

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Translate an error of the connection to the others into the reason for it."""
        yield


class Together(Alone):
    """A process among several. Its methods raise the failure of another process that has ended, or Interrupted."""

    def __init__(self, rank: int, size: int, record: Callable[[str], object]):
        self.rank, self.size, self.local = rank, size, int(os.environ.get("LOCAL_RANK", rank))
        self.record = record
        self.heart: Heartbeat | None = None
        # Before torch is imported: DDP warns if find_unused_parameters finds none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    def join(self) -> None:
        """Wait for all processes and connect to them. Raises RunError if they do not appear."""
        import torch
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        if os.environ.get("LOCAL_WORLD_SIZE") == str(self.size) and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not resolve to itself
        host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
        serves = self.main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            store, own = (
                PrefixStore(
                    f"kdrun{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}",
                    TCPStore(host, port, None, serving, timeout=JOINING, wait_for_workers=False),
                )
                for serving in (serves, False)
            )
            self.heart = Heartbeat(own, self.rank, self.size, self.record)
            self.heart.start(JOINING)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=WAITING)
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"process {self.rank} of {self.size} cannot reach the others at {host}:{port} ({one_line(error)}): do "
                "all of them run the same command?"
            ) from error

    def from_main(self, make: Callable[[], T]) -> T:
        import torch
        import torch.distributed as dist

        box = [make() if self.main else None]
        with self.reaching():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def most(self, number: int) -> int:
        return self.largest([number])[0]

    def everyone(self, number: int) -> list[int]:
        return self.largest([number if rank == self.rank else 0 for rank in range(self.size)])

    def largest(self, numbers: list[int]) -> list[int]:
        """Return the largest of all processes' numbers, elementwise."""
        import torch
        import torch.distributed as dist

        values = torch.tensor(numbers)
        with self.reaching():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def total(self, values: Tensor) -> Tensor:
        import torch.distributed as dist

        with self.reaching():
            dist.all_reduce(values)
        return values

    def heed(self, stop: Stop, due: bool = False) -> bool:
        signal, wanted = self.largest([stop.number, due and self.main])
        stop.hear(signal)
        return bool(wanted or signal)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        if not self.main:
            self.most(0)
        yield
        if self.main:
            self.most(0)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_of_connection(error):
                raise self.gone(error) from error
            raise

    def gone(self, error: BaseException) -> BaseException:
        assert self.heart is not None
        lost = Verdict(Interrupted.exit_code, f"the other processes are gone ({one_line(error)[:120]}).")
        verdict = self.heart.find_out() or lost
        if self.heart.speaks:
            errors.muted = False
        ended = ending(verdict)
        if isinstance(ended, Interrupted) and (verdict is lost or self.heart.gone is not None):
            ended.asked = False
        return ended

    def leave(self, error: BaseException | None) -> None:
        """Tell the others why this process ends, or wait for them at the end of the work."""
        import torch.distributed as dist

        if self.heart is None:
            return
        if error is None:
            self.most(0)
            self.heart.stop()
            dist.destroy_process_group()
        else:
            self.heart.stop(verdict_of(error))


def verdict_of(error: BaseException) -> Verdict:
    """Return the report to the other processes on the error that ends this one."""
    expected = isinstance(error, KdrunError | Interrupted)
    details = trace_behind(error) if expected else "".join(traceback.format_exception(error))
    return Verdict(getattr(error, "exit_code", 1), str(error) if expected else repr(error), details)


def ending(verdict: Verdict) -> BaseException:
    """Return the error that ends a process, with the traceback of another one's error as its note."""
    kind = {Interrupted.exit_code: Interrupted, KdrunError.exit_code: ConfigError}.get(verdict.code, RunError)
    error = kind(verdict.line)
    if verdict.details:
        error.add_note(verdict.details)
    return error


def is_of_connection(error: BaseException) -> bool:
    """Return True for PyTorch's errors when another process cannot be reached."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error) or "NCCL" in str(error)


now: Alone = Alone()


def announced() -> tuple[int, int]:
    """Return (number of this process, number of processes) from the environment of torchrun or a cluster; (0, 1) if
    there is none. Raises ConfigError for an invalid number."""
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(word.isdecimal() for word in told) or int(told[0]) >= max(int(told[1]), 1):
        raise ConfigError(f"RANK={told[0]} WORLD_SIZE={told[1]}: unset them, or start the run with torchrun.")
    return int(told[0]), int(told[1])


@contextmanager
def together(record: Callable[[str], object] = str) -> Iterator[Alone]:
    """Act as one of the processes announced by the environment, inside the block. record: as in `Heartbeat`."""
    global now
    rank, size = announced()
    if size == 1 or now.size > 1:
        yield now
        return
    group = Together(rank, size, record)
    files.onlooking = not group.main
    failed: BaseException | None = None
    try:
        group.join()
        now = group
        yield group
    except BaseException as error:
        failed = error
        raise
    finally:
        now, files.onlooking = Alone(), False
        group.leave(failed)
