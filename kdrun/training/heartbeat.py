"""Heartbeats between the processes that train one run. If one dies, the others end instead of waiting for it, which a
process on a GPU would do for ever.

Each process writes an increasing number, and at its end the reason for it, into the store through which the processes
connected. Number 0 watches all others and publishes its verdict; the others watch number 0.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from kdrun.errors import Interrupted, RunError, print_error

BEAT = 1.0  # seconds between two heartbeats
SILENCE = 30.0  # seconds without a heartbeat after which a process counts as dead
SHORT_SILENCE = 5.0  # the same after a connection broke, when some process has died
GRACE = 15.0  # seconds that the work may take to end by itself after another process has ended


class Verdict(NamedTuple):
    """Reason for which the processes end. details: the traceback of an unexpected error, for failed.txt."""

    code: int
    line: str
    details: str = ""


class Heartbeat(threading.Thread):
    """Heartbeat of this process, and its watch over the others'. store: a separate client; record: called with a
    failure's line and traceback if process 0 has to be ended by force."""

    def __init__(self, store: Any, rank: int, size: int, record: Callable[[str], object]):
        super().__init__(daemon=True, name="heartbeat")
        self.store, self.rank, self.size, self.record = store, rank, size, record
        self.watched = list(range(1, size)) if rank == 0 else [0]
        self.seen: dict[int, tuple[int, float]] = {}  # process -> its last heartbeat, and when it came
        self.beats = 0
        self.over, self.found, self.hurry = threading.Event(), threading.Event(), threading.Event()
        self.verdict: Verdict | None = None
        self.gone: int | None = None

    def start(self, timeout: timedelta | None = None) -> None:
        """Wait for a heartbeat from every process, then begin to watch."""
        if self.rank == 0:
            self.store.set("verdict", "null")
        self.sign()
        self.store.wait([f"process{number}" for number in range(self.size)], timeout or timedelta(seconds=SILENCE))
        super().start()

    def run(self) -> None:
        while not self.over.wait(BEAT):
            try:
                self.sign()
                self.verdict = self.look()
            except RuntimeError:  # the store is gone, and with it the process that held it
                self.verdict = self.silent(0)
            if self.verdict is not None and not self.over.is_set():
                break
        if self.verdict is None:
            return
        self.found.set()
        if not self.over.wait(GRACE):  # the work hangs in a kernel that waits for the dead process
            self.end_by_force(self.verdict)

    def end_by_force(self, verdict: Verdict) -> None:
        if self.rank == 0 and verdict.code == RunError.exit_code:
            with suppress(Exception):
                self.record(f"{verdict.line}\n{verdict.details}".rstrip("\n"))
        if self.rank == 0 or self.speaks:
            print_error(verdict.line, whoever=True)
        os._exit(verdict.code)

    def sign(self, end: Verdict | None = None) -> None:
        self.beats += 1
        self.store.set(f"process{self.rank}", json.dumps([self.beats, end]))

    def look(self) -> Verdict | None:
        """Return the reason to end this process: for number 0 any process that has ended or is silent, for the
        others number 0."""
        names = [f"process{number}" for number in self.watched]
        *signs, told = (json.loads(value) for value in self.store.multi_get([*names, "verdict"]))
        if self.rank and told is not None:
            return Verdict(*told)
        for number, (beat, end) in zip(self.watched, signs, strict=True):
            if end is not None:
                code, line, details = end
                return self.tell(
                    Verdict(code, line if number == 0 else f"process {number} of {self.size}: {line}", details)
                )
            if self.seen.get(number, (None, 0.0))[0] != beat:
                self.seen[number] = beat, time.monotonic()
            elif time.monotonic() - self.seen[number][1] > (SHORT_SILENCE if self.hurry.is_set() else SILENCE):
                return self.tell(self.silent(number))
        return None

    def silent(self, number: int) -> Verdict:
        self.gone = number
        died = f"process {number} of {self.size} has died"
        return Verdict(
            Interrupted.exit_code, f"{died}: the run ends here. The same command resumes from the last save."
        )

    def tell(self, verdict: Verdict) -> Verdict:
        if self.rank == 0:
            self.store.set("verdict", json.dumps(verdict))
        return verdict

    def find_out(self) -> Verdict | None:
        """Return why the others cannot be reached; None if all seem alive."""
        self.hurry.set()
        self.found.wait(3 * SHORT_SILENCE)
        return self.verdict

    @property
    def speaks(self) -> bool:
        """Return True if this process prints the reason because number 0 cannot: one process on each machine."""
        return self.gone == 0 and (self.rank == 1 or os.environ.get("LOCAL_RANK") == "0")

    def stop(self, early: Verdict | None = None) -> None:
        """Stop the heartbeats, with the reason if this is premature."""
        self.over.set()
        if early is not None:
            try:
                self.sign(early)
                time.sleep(BEAT * 1.5 if self.rank == 0 else 0)
            except RuntimeError:  # the store was gone first
                pass
