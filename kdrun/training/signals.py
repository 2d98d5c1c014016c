"""Signals as a request to save between two steps, then end."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kdrun.data.processes import REQUESTS
from kdrun.errors import Interrupted


class Stop:
    """Stop request. signal: its name, or an empty string. It raises Interrupted on arrival, except inside `later`,
    where the training loop checks it between two steps.

    heard: the signal noticed by the training loop, in all processes of the run: see `ranks.Alone.heed`.
    """

    def __init__(self) -> None:
        self.signal, self.heard = "", ""
        self.deferred = 0

    @contextmanager
    def later(self) -> Iterator[None]:
        """Defer a signal that arrives inside the block; the caller checks `signal`."""
        self.deferred += 1
        try:
            yield
        finally:
            self.deferred -= 1

    @property
    def number(self) -> int:
        return signal.Signals[self.signal] if self.signal else 0

    def hear(self, number: int) -> None:
        """Record a signal that some process of the run received; 0: none."""
        self.heard = signal.Signals(number).name if number else ""

    def request(self, number: int) -> None:
        """Record a signal. Raises KeyboardInterrupt for a second Ctrl-C, Interrupted outside `later`."""
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if number == signal.SIGHUP:
            leave_dead_terminal()
        if not self.deferred:
            raise Interrupted(f"stopped by {self.signal}; nothing is lost. The same command resumes.")


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM, SIGUSR1, SIGUSR2, SIGHUP and Ctrl-C into a request to save and end; a second Ctrl-C ends at
    once. A SIGHUP that the caller ignores, as under nohup, stays ignored."""
    stop = Stop()
    wanted = [
        number for number in REQUESTS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    try:
        previous = {number: signal.signal(number, lambda number, _: stop.request(number)) for number in wanted}
    except ValueError:  # not in the main thread, which owns the signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_dead_terminal() -> None:
    """Redirect output away from a closed terminal, since each line would raise an error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
