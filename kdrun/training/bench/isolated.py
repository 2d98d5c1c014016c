"""Baseline loop in a separate process with default allocator settings."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

from kdrun.training.bench.timing import Step

WAIT = "wait for the device"


class Apart:
    """Step that another process runs; `wait` returns when its device has finished."""

    def __init__(self, ask: Callable[[str], int], name: str):
        self.ask, self.name = ask, name

    def __call__(self) -> int:
        return self.ask(self.name)

    def wait(self) -> None:
        self.ask(WAIT)


@contextlib.contextmanager
def in_subprocess(make: Callable[..., dict[str, Step]], *arguments: Any) -> Iterator[dict[str, Step]]:
    """Run the steps that make(*arguments) returns in a fresh process, one call at a time; it is idle between calls."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
    process.start()
    theirs.close()

    def ask(name: str) -> int:
        ours.send(name)
        return int(ours.recv())

    try:
        names = ours.recv()
        yield {name: Apart(ask, name) for name in names}
    finally:
        ours.close()
        process.join(timeout=10)
        process.kill()


def _serve(connection: Connection, make: Callable[..., dict[str, Step]], arguments: tuple[Any, ...]) -> None:
    steps = make(*arguments)
    connection.send(list(steps))
    with contextlib.suppress(EOFError):
        while True:
            name = connection.recv()
            if name != WAIT:
                connection.send(steps[name]())
                continue
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            connection.send(0)
