"""Signals as a request: save between two steps, then end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Set by a signal, read between steps."""

    def __init__(self) -> None:
        self.signal = ""


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C into a request to save and end; a second Ctrl-C ends at once."""
    stop = Stop()

    def request(number: int, frame: object) -> None:
        if stop.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = signal.Signals(number).name

    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    try:
        previous = {number: signal.signal(number, request) for number in wanted}
    except ValueError:  # not in the main thread: leave signals to whoever owns them
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
