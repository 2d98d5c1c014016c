"""Helper processes of a run, which leave signals to the process group to their parent."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)  # requests to end


def ignore_signals(except_term: bool = False) -> None:
    """Leave signals to the parent process, which ends this one. except_term: keep SIGTERM, by which a pool ends its
    processes if one of them has died."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_DFL if except_term and number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)


def outlive_group_signal(worker: int) -> None:
    """Leave signals to the parent process, in a loader's worker: a signal to the whole process group would kill it
    before its run has saved. A second SIGTERM ends it, as PyTorch and Python do with left-over processes."""
    ignore_signals()
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class ShieldedProcess(SpawnProcess):
    """Process that is protected from signals until it has set its handlers: before that, a Ctrl-C would end it with
    a traceback on the terminal."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ShieldedContext(SpawnContext):
    """Context of spawned processes, not forked ones: the parent may already run threads of torch or of a progress
    bar."""

    Process = ShieldedProcess


@contextmanager
def process_pool(count: int, initializer: Callable[[], None] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Provide a pool of processes that leave signals to this one. On an error or a signal, pending work is dropped."""
    from concurrent.futures import ProcessPoolExecutor  # slow to import: only if there is work

    pool = ProcessPoolExecutor(count, ShieldedContext(), partial(begin_helper, initializer))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def begin_helper(initializer: Callable[[], None] | None) -> None:
    """Prepare a process of a pool."""
    ignore_signals(except_term=True)
    if initializer is not None:
        initializer()
