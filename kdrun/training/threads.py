"""How many of this machine's cores are free for one more run: other runs of kdrun take their share, and other programs
what they use.

Two threads on one core are far worse than one: each waits at every barrier for the other to get its turn, and spins
meanwhile. A thread count is decided once, when a run starts, since other counts end in other weights.
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

from kdrun.hardware import available_cores

WINDOW = 0.3  # seconds over which other programs are watched, at least


@dataclass(frozen=True)
class Neighbour:
    """Another run of kdrun on this machine. threads: 0 while it has not decided."""

    pid: int
    threads: int


@dataclass(frozen=True)
class Share:
    """How many threads one more run may take, and why in words."""

    threads: int
    reason: str


@dataclass(frozen=True)
class Usage:
    """CPU seconds used until `at`: on the cores that this process may use, and by each of our own processes."""

    at: float
    busy: float
    own: dict[int, float]


class Presence:
    """This process among the runs of kdrun on this machine: a locked file, which the system lets go when it dies."""

    def __init__(self, folder: Path):
        self.folder, self.file, self.path = folder, None, folder / f"{os.getpid()}.run"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = folder / f"{os.getpid()}.new"
            self.file = draft.open("w+")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self.path)  # nobody sees it unlocked
            self.claim(0)
        except OSError:  # nowhere to write, or a file system without locks: each run counts on itself alone
            self.file = None
        self.began = usage([os.getpid(), *(one.pid for one in self.neighbours())])

    def leave(self) -> None:
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()

    def claim(self, threads: int) -> None:
        """Tell the others how many threads this run has taken; 0: not decided yet."""
        if self.file is None:
            return
        self.file.seek(0)
        self.file.truncate()
        self.file.write(f"{threads} {niceness()}")
        self.file.flush()

    def neighbours(self) -> list[Neighbour]:
        """The other runs, without those that yield to this one by their niceness. Files of the dead are removed."""
        if self.file is None:
            return []
        return [Neighbour(pid, threads) for pid, threads, nice in self._alive() if nice <= niceness()]

    def _alive(self) -> Iterator[tuple[int, int, int]]:
        """(pid, threads, niceness) of every other run that holds its lock."""
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


announced: list[Presence] = []  # of this process: none or one


@contextmanager
def presence() -> Iterator[Presence]:
    """Count this process among the runs of kdrun while the context lasts. Enter it before torch is imported: runs that
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
    """Tell the others how many threads this run has taken."""
    for mine in announced:
        mine.claim(threads)


def free_threads() -> Share:
    """Share the cores with the runs that are there, and leave other programs what they use."""
    cores = available_cores()
    if cores == 1:
        return Share(1, "1 core")
    with presence() as mine:
        time.sleep(max(0.0, WINDOW - (time.monotonic() - mine.began.at)))
        neighbours = mine.neighbours()
        busy = foreign_cores(mine.began, usage([os.getpid(), *(one.pid for one in neighbours)]))
    return share_of(cores, neighbours, busy)


def share_of(cores: int, neighbours: list[Neighbour], busy: float) -> Share:
    """Threads for one more run on `cores` beside `neighbours`, where other programs use `busy` cores: an equal share,
    or what is left where the others have taken less."""
    room = max(1, cores - round(busy))
    undecided = 1 + sum(one.threads == 0 for one in neighbours)
    left = room - sum(one.threads for one in neighbours)
    threads = max(1, room // (1 + len(neighbours)), left // undecided)
    reasons = []
    if neighbours:
        reasons.append(f"{len(neighbours)} other run{'s' if len(neighbours) > 1 else ''} of kdrun")
    if round(busy):
        reasons.append(f"other programs on {round(busy)}")
    return Share(threads, f"{cores} cores" + (f", {' and '.join(reasons)}" if reasons else ""))


def foreign_cores(before: Usage, after: Usage) -> float:
    """Cores that programs other than ours kept busy between two readings. A neighbour that was not there before counts
    from its start."""
    ours = sum(seconds - before.own.get(pid, 0.0) for pid, seconds in after.own.items())
    return max(0.0, (after.busy - before.busy - ours) / max(after.at - before.at, 1e-3))


def usage(pids: list[int]) -> Usage:
    """Read the CPU seconds used so far; zeros where the system does not tell (no /proc)."""
    own = {pid: seconds for pid in pids if (seconds := _used_by(pid)) is not None}
    return Usage(time.monotonic(), _busy_seconds(), own)


def niceness() -> int:
    return os.nice(0)


def _busy_seconds() -> float:
    """CPU seconds that programs used of the cores that this process may use, those that yield to it excepted."""
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
    """CPU seconds of one process with its threads; None where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
