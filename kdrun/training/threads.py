"""Number of this machine's cores that are free for one more run, after the shares of other kdrun runs and the usage of
other programs.

Two threads on one core are far worse than one: at every barrier each waits, spinning, for the other to be scheduled.
The thread count is decided once, when a run starts, since other counts give other weights.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdrun.display import plural
from kdrun.hardware import available_cores

WINDOW = 0.3  # minimum seconds over which other programs are observed


@dataclass(frozen=True)
class Neighbour:
    """Another kdrun run on this machine. threads: 0 while undecided."""

    pid: int
    threads: int


@dataclass(frozen=True)
class Share:
    """Number of threads that one more run may use, and the reason as text."""

    threads: int
    reason: str


@dataclass(frozen=True)
class Usage:
    """CPU seconds used until `at`: on the cores that this process may use, and by each kdrun process."""

    at: float
    busy: float
    own: dict[int, float]


class Presence:
    """Presence of this process among the kdrun runs on this machine: a locked file, which the system unlocks when
    the process dies."""

    def __init__(self, folder: Path):
        self.folder, self.file, self.path = folder, None, folder / f"{os.getpid()}.run"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = folder / f"{os.getpid()}.new"
            self.file = draft.open("w+")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self.path)  # so that it is never visible unlocked
            self.claim(0)
        except OSError:  # no writable folder, or no file locks: the run ignores other runs
            self.file = None
        self.began = usage([os.getpid(), *(one.pid for one in self.neighbours())])

    def leave(self) -> None:
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()

    def claim(self, threads: int) -> None:
        """Tell the others how many threads this run uses; 0: undecided."""
        if self.file is None:
            return
        self.file.seek(0)
        self.file.truncate()
        self.file.write(f"{threads} {niceness()}")
        self.file.flush()

    def neighbours(self) -> list[Neighbour]:
        """Return the other runs, except those that yield to this one by their niceness. Removes files of dead
        processes."""
        if self.file is None:
            return []
        return [Neighbour(pid, threads) for pid, threads, nice in self._alive() if nice <= niceness()]

    def _alive(self) -> Iterator[tuple[int, int, int]]:
        """Yield (pid, threads, niceness) of every other run that holds its lock."""
        for path in self.folder.glob("*.run"):
            if path == self.path:
                continue
            try:
                with path.open("r+") as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        threads, nice = (file.read().split() or ["0", "0"])[:2]
                        yield int(path.stem), int(threads), int(nice)
                    else:
                        path.unlink(missing_ok=True)
            except (OSError, ValueError):
                continue


announced: list[Presence] = []  # this process's presence: none or one


@contextmanager
def presence() -> Iterator[Presence]:
    """Register this process among the kdrun runs inside the block. Enter it before torch is imported: runs that
    start together must know of each other before any of them decides."""
    if announced:
        yield announced[0]
        return
    announced.append(Presence(Path(tempfile.gettempdir()) / f"kdrun-{os.getuid()}"))
    try:
        yield announced[0]
    finally:
        announced.pop().leave()


def claim(threads: int) -> None:
    """Tell the others how many threads this run uses."""
    for mine in announced:
        mine.claim(threads)


def free_threads() -> Share:
    """Share the cores with the existing runs, and leave other programs what they use."""
    cores = available_cores()
    if cores == 1:
        return Share(1, "1 core")
    with presence() as mine:
        time.sleep(max(0.0, WINDOW - (time.monotonic() - mine.began.at)))
        neighbours = mine.neighbours()
        busy = foreign_cores(mine.began, usage([os.getpid(), *(one.pid for one in neighbours)]))
    return share_of(cores, neighbours, busy)


def share_of(cores: int, neighbours: list[Neighbour], busy: float) -> Share:
    """Return the threads for one more run on `cores` with `neighbours`, when other programs use `busy` cores: an
    equal share, or the remainder if the others use less."""
    room = max(1, cores - round(busy))
    undecided = 1 + sum(one.threads == 0 for one in neighbours)
    left = room - sum(one.threads for one in neighbours)
    threads = max(1, room // (1 + len(neighbours)), left // undecided)
    reasons = []
    if neighbours:
        reasons.append(f"{plural(len(neighbours), 'other run')} of kdrun")
    if round(busy):
        reasons.append(f"{round(busy)} used by other programs")
    return Share(threads, plural(cores, "core") + (f", {' and '.join(reasons)}" if reasons else ""))


def foreign_cores(before: Usage, after: Usage) -> float:
    """Return the number of cores that other programs kept busy between two readings. A run that has started in
    between counts from its start."""
    ours = sum(seconds - before.own.get(pid, 0.0) for pid, seconds in after.own.items())
    return max(0.0, (after.busy - before.busy - ours) / max(after.at - before.at, 1e-3))


def usage(pids: list[int]) -> Usage:
    """Read the CPU seconds used so far; zeros if the system does not report them (no /proc)."""
    own = {pid: seconds for pid in pids if (seconds := _used_by(pid)) is not None}
    return Usage(time.monotonic(), _busy_seconds(), own)


def niceness() -> int:
    return os.nice(0)


def _busy_seconds() -> float:
    """Return the CPU seconds used on the cores that this process may use, excluding programs that yield to it."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in lines:
        name, *values = line.split()
        if name in allowed:
            user, nice, system, _, _, irq, softirq, steal = map(int, values[:8])
            ticks += user + system + irq + softirq + steal + (nice if niceness() > 0 else 0)
    return ticks / os.sysconf("SC_CLK_TCK")


def _used_by(pid: int) -> float | None:
    """Return the CPU seconds of one process with its threads; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may contain anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
