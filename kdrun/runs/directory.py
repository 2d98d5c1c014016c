"""Run directories: contents, locking, and the table of all finished runs. No torch here."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kdrun import files
from kdrun.config.own_code import OwnFile
from kdrun.display import plural
from kdrun.errors import CheckpointError, ConfigError, LockedElsewhere, RunError
from kdrun.files import (
    checksum_of,
    read_json,
    refused,
    require_file,
    spreadsheet_safe,
    write_atomically,
    write_json,
    write_text,
)
from kdrun.runs.checkpoints import WEIGHTS, no_run
from kdrun.runs.code_record import write_copies
from kdrun.runs.differing import differing
from kdrun.runs.recorded import changed_since, is_whole, record
from kdrun.runs.result import RESULT_KEYS, RunResult, problem_of
from kdrun.runs.trust import sign

METRIC_COLUMNS = ("epoch", "split", "metric", "value")


def short_path(path: Path) -> str:
    """Return a path relative to the current directory if that is shorter."""
    try:
        relative = str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
    return relative if len(relative) < len(str(path)) else str(path)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """Directory of one run. `role` names its weights: student.safetensors of a run, teacher.safetensors of a stored
    teacher."""

    def __init__(self, path: Path, role: str = "student"):
        self.path, self.role = path, role
        self.metrics_path = path / "metrics.csv"
        self.state_path = path / "last.pt"
        self.weights_path = path / f"{role}.safetensors"
        self.best_weights_path = path / f"{role}_best.safetensors"
        self.result_path = path / "result.json"
        self.failed_path = path / "failed.txt"
        self.sha256_path = path / "sha256"

    @property
    def finished(self) -> bool:
        """Return True if result.json exists: it is written last."""
        return self.result_path.is_file()

    def can_mend(self) -> bool:
        """Return True if a finished run's last checkpoint can restore a missing or damaged result or weights file."""
        return self.finished and self.state_path.is_file() and bool(self.damage())

    @property
    def pending(self) -> bool:
        """Return True if there is something to train or to restore."""
        return not self.finished or self.can_mend()

    def damage(self, thorough: bool = False) -> str:
        """Describe the damage to a finished run's result.json or last weights; an empty string if there is none.
        thorough: read the weights, not only their length."""
        try:
            self.result()
        except CheckpointError as error:
            return str(error)
        name = self.weights_path.name
        if not self.weights_path.is_file():
            return f"without {name}"
        if not is_whole(self.weights_path):
            return f"{name} is truncated or damaged"
        problem = changed_since(self.weights_path) if thorough else ""
        return f"{name} {problem}" if problem else ""

    @property
    def begun(self) -> bool:
        return (self.path / "config.yaml").is_file()

    def result(self) -> dict[str, Any]:
        """Read result.json. Raises CheckpointError if it is damaged, or from another program."""
        way_out = "delete it and repeat the command that trained this run, to write it again"
        try:
            found = read_json(self.result_path)
        except CheckpointError as error:
            raise CheckpointError(f"{str(error).rstrip('.')}: {way_out}.") from error.__cause__
        if problem := problem_of(found) or changed_since(self.result_path):
            raise CheckpointError(f"{self.result_path} is damaged ({problem}): {way_out}.")
        return found

    def recorded_sha256(self) -> str:
        """Return the recorded SHA-256 of a stored teacher's weights; an empty string if none was recorded."""
        return self.sha256_path.read_text(errors="replace").strip() if self.sha256_path.is_file() else ""

    @contextmanager
    def lock(self, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold this directory's lock. While another process holds it, report that process to `waiting`, and wait.

        Raises LockedElsewhere if `waiting` is None, RunError if the folder cannot be created. A process that only looks
        on leaves locking to the one that writes.
        """
        if files.onlooking:
            yield
            return
        lock = FileLock(self.path / ".lock")
        owner = self.path / ".owner"
        for place in (self.path / ".lock", owner):
            if place.is_symlink():
                raise RunError(f"{place} is a link, which kdrun will not write through: remove it.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=1)  # `kdrun status` holds it for a moment
            except Timeout as error:
                who = owner.read_text().strip() if owner.is_file() else "another process"
                if waiting is None:
                    raise LockedElsewhere(
                        f"{self.path} is being trained by {who}; wait for it, or use another seed or output_root."
                    ) from error
                waiting(who)
                lock.acquire()
        except OSError as error:
            raise refused(error, self.path) from error
        try:
            for leftover in self.path.glob(".*.tmp"):  # from a killed save; with the lock held nobody else writes here
                leftover.unlink(missing_ok=True)
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now()}")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def begin(self, config_yaml: str, provenance: dict[str, Any], code: Iterable[OwnFile]) -> None:
        """Write everything that is known before training, sign it, and copy the user's own code. Removes the failure
        of an earlier attempt."""
        if files.onlooking:
            return
        write_copies(self.path, code)
        write_text(self.path / "config.yaml", config_yaml)
        write_json(self.path / "provenance.json", provenance)
        sign(self.path, provenance.get("code") or {})
        self.failed_path.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        write_text(self.failed_path, f"{now()} {reason}\n")

    def failure(self) -> str:
        """Return the first line of failed.txt without its time; an empty string if there is no such file."""
        try:
            lines = self.failed_path.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[0].partition(" ")[2] if lines else "failed.txt is empty"

    def finish(self, result: RunResult) -> None:
        """Write the checksums of the run's files, then result.json, whose presence marks the run as finished."""
        if files.onlooking:
            return
        self.failed_path.unlink(missing_ok=True)
        text = json.dumps(result.as_dict(), indent=2, default=str) + "\n"
        record(self.path, (self.weights_path, self.best_weights_path, self.metrics_path), {self.result_path: text})
        write_text(self.result_path, text)

    def append_metrics(self, rows: Iterable[tuple[int, str, str, float]]) -> None:
        """Append (epoch, split, metric, value) rows."""
        if files.onlooking:
            return
        new = not self.metrics_path.is_file()
        try:
            with self.metrics_path.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(METRIC_COLUMNS)
                writer.writerows((epoch, split, metric, repr(float(value))) for epoch, split, metric, value in rows)
        except OSError as error:
            raise refused(error, self.metrics_path) from error

    def read_metrics(self) -> list[tuple[int, str, str, float]]:
        """Return all complete rows. Invalid rows, and a last line that a kill truncated, are left out."""
        if not self.metrics_path.is_file():
            return []
        rows = []
        for line in self.metrics_path.read_text(errors="replace").splitlines(keepends=True)[1:]:
            parts = line.rstrip("\n").split(",")
            if line.endswith("\n") and len(parts) == len(METRIC_COLUMNS):
                with suppress(ValueError):
                    rows.append((int(parts[0]), parts[1], parts[2], float(parts[3])))
        return rows

    def sync_metrics(self) -> None:
        """Flush the rows to disk before the checkpoint that follows them."""
        with suppress(OSError), self.metrics_path.open("rb") as file:
            os.fsync(file.fileno())

    def metrics_checksum(self, epochs: int) -> str:
        """Return the checksum of the rows up to epoch `epochs`."""
        return checksum_of([row for row in self.read_metrics() if row[0] <= epochs])

    def epochs_without_rows(self, epochs: int) -> list[int]:
        """Return the epochs up to `epochs` that have no row."""
        return sorted(set(range(1, epochs + 1)) - {row[0] for row in self.read_metrics()})

    def truncate_metrics(self, epochs: int) -> None:
        """Drop rows of epochs after `epochs` (counted from 1): training resumes from a checkpoint before them."""
        if files.onlooking:
            return
        rows = [row for row in self.read_metrics() if row[0] <= epochs]
        self.metrics_path.unlink(missing_ok=True)
        if rows:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(METRIC_COLUMNS)
            writer.writerows((epoch, split, metric, repr(value)) for epoch, split, metric, value in rows)
            write_text(self.metrics_path, text.getvalue())


def finished_runs(output_root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Return (directory, result) of every readable finished run, sorted by path; damaged results are skipped."""
    found = []
    for path in sorted((output_root / "runs").glob("*/*/*/*/result.json")):
        try:
            found.append((path.parent, RunDirectory(path.parent).result()))
        except CheckpointError:
            continue
    return found


def rebuild_results(output_root: Path) -> Path:
    """Write results.csv at the output root, and return its path: one row per finished run, with the keys of
    result.json and a column for each setting that differs between runs."""
    target = output_root / "results.csv"
    with FileLock(output_root / ".results.lock"):
        found = finished_runs(output_root)
        names, settings = differing(path for path, _ in found)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(spreadsheet_safe([*RESULT_KEYS, *names]))
        for path, result in found:
            row: dict[str, Any] = {key: result.get(key) for key in RESULT_KEYS}
            row["overrides"] = " ".join(row["overrides"] or [])
            cells = [*row.values(), *(settings[path].get(name) for name in names)]
            writer.writerow(spreadsheet_safe("" if value is None else value for value in cells))
        write_atomically(target, lambda file: file.write(text.getvalue().encode()))
    return target


def outputs_folder(given: str | Path | None) -> Path:
    """Return the folder of `output_root=`, else $KDRUN_OUTPUTS, else ./outputs: the rule of conf/config.yaml, for
    commands that compose no configuration. Raises ConfigError for a file."""
    folder = Path(os.path.expanduser(given or os.environ.get("KDRUN_OUTPUTS", "outputs")))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_root={folder} is not a folder.")
    return folder


def find_runs(word: str, output_root: Path) -> list[Path]:
    """Resolve RUN of a command line: a run directory, a glob of them, a digest prefix, or a directory of teachers/.

    Raises ConfigError if nothing matches.
    """
    path = Path(os.path.expanduser(word))
    if path.is_dir() and (path / "config.yaml").is_file():
        return [path]
    if any(sign in word for sign in "*?["):
        base = next(place for place in (path, *path.parents) if place.is_dir())  # a folder's name may contain brackets
        pattern = str(path.relative_to(base))
        found = sorted(match for match in base.glob(pattern) if (match / "config.yaml").is_file())
        if found:
            return found
    elif re.fullmatch(r"[0-9a-f]{4,64}", word):
        places = [*(output_root / "runs").glob("*/*/*/*"), *(output_root / "teachers").glob("*/*/*")]
        found = sorted(place for place in places if place.name.rpartition("-")[2].startswith(word[:8]))
        if len(found) == 1:
            return found
        if found:
            raise ConfigError(f"RUN {word} is ambiguous: {', '.join(map(str, found[:5]))}.")
    if path.is_dir():
        raise ConfigError(no_run(path))
    if path.exists() or path.suffix in WEIGHTS:
        require_file(path, word)
    there = len(list((output_root / "runs").glob("*/*/*/*/config.yaml")))
    raise ConfigError(
        f"RUN {word}: no run directory, glob or digest matches; {output_root}/runs contains {plural(there, 'run')}: "
        "kdrun list runs."
    )
