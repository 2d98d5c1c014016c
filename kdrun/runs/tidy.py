"""Removable content of an output folder: runs that never started, resume states of finished runs, caches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdrun.errors import LockedElsewhere, RunError
from kdrun.files import explain_os_error
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import is_locked

KINDS = {
    "unstarted": "runs that never started (a typing error, a network that could not be built)",
    "checkpoints": "last.pt of finished runs, needed only to repair a damaged run",
    "caches": "decoded and downloaded images and derived test sets, created again when needed",
}


@dataclass(frozen=True)
class Removable:
    """Removable file or folder. run: the run directory that must be locked, if it belongs to one."""

    kind: str
    path: Path
    size: int
    run: Path | None = None


def removable(root: Path, kinds: list[str]) -> list[Removable]:
    """Return what can be removed below an output folder. Runs that another process is training are left out."""
    found: list[Removable] = []
    for run in run_directories(root):
        place = run.path
        if is_locked(place):
            continue
        if "unstarted" in kinds and not run.begun and not run.finished and not run.state_path.is_file():
            found.append(Removable("unstarted", place, size_of(place), place))
        elif "checkpoints" in kinds and run.finished and run.state_path.is_file() and not run.damage(thorough=True):
            found.append(Removable("checkpoints", run.state_path, run.state_path.stat().st_size, place))
    if "caches" in kinds:
        folders = sorted((root / "caches").glob("*"))
        found += [Removable("caches", folder, size_of(folder)) for folder in folders if not folder.is_symlink()]
    return found


def run_directories(root: Path) -> Iterator[RunDirectory]:
    """Yield the directories of runs and of stored teachers."""
    for role, pattern in (("student", "runs/*/*/*/*"), ("teacher", "teachers/*/*/*")):
        for path in sorted(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                yield RunDirectory(path, role)


def size_of(place: Path) -> int:
    """Return the size in bytes of a file, or of everything below a folder; links are not followed."""
    if place.is_file():
        return place.lstat().st_size
    return sum(path.lstat().st_size for path in place.rglob("*") if path.is_symlink() or path.is_file())


def remove(item: Removable) -> None:
    """Remove a file or folder; one of a run only while nobody else holds the run's lock. Raises RunError if that
    fails."""
    if item.run is None:
        remove_place(item.path)
    elif item.path == item.run:
        remove_run(item.run)
    else:
        with RunDirectory(item.run).lock():
            remove_place(item.path)


def remove_run(run: Path) -> None:
    """Remove a run's directory, and the folders above it that become empty. Raises RunError if another process is
    training it."""
    if is_locked(run):
        raise LockedElsewhere(f"{run} is being trained by another process: stop that process first.")
    remove_place(run)
    for folder in run.parents:
        if folder.name in ("runs", "teachers") or any(folder.iterdir()):
            return
        folder.rmdir()


def remove_place(place: Path) -> None:
    try:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(explain_os_error(error, place)) from error
