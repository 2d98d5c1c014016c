"""Comparison of everything in an output folder with its recorded checksums: including files that training maps into
memory without reading them completely, and files that nobody has read for a long time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kdrun.data.arrays import read_array, sha256_of_values
from kdrun.display import Track, untracked
from kdrun.errors import KdrunError, one_line
from kdrun.files import check_archive, read_json
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import read_ledger
from kdrun.runs.recorded import CHECKSUMS, changed_since, read_run, way_out

Check = tuple[Path, Callable[[], str]]  # a file, and a function that describes its damage


def check_stored(root: Path, track: Track = untracked) -> tuple[int, list[str]]:
    """Read every file below an output folder. Return (how many were compared, a line for each damaged one)."""
    checks = [*caches(root), *runs(root), *ledgers(root)]
    lines = []
    for number in track(iter(range(len(checks))), len(checks), "comparing checksums"):
        file, check = checks[number]
        try:
            problem = check()
        except KdrunError as error:  # the message already names the file
            lines.append(str(error))
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"cannot be read ({one_line(error)})"
        if problem:
            lines.append(f"{file} {problem}")
    return len(checks), lines


def caches(root: Path) -> Iterator[Check]:
    """Yield decoded images and derived test sets: arrays whose checksum is in the description next to them."""
    for pattern in ("data/*/meta.json", "testsets/*/manifest.json"):
        for place in sorted((root / "caches").glob(pattern)):
            yield place, partial(described, place)
            for name, key in (("images", "sha256"), ("labels", "labels_sha256"), ("partners", "partners_sha256")):
                array = place.with_name(f"{name}.npy")
                if array.is_file():
                    yield array, partial(other_array, array, place, key)
    for place in sorted((root / "caches" / "data").glob("*.json")):
        yield place, partial(described, place)


def described(place: Path) -> str:
    read_json(place)
    return ""


def other_array(array: Path, description: Path, key: str) -> str:
    """Describe how an array differs from its description."""
    recorded = read_json(description).get(key)
    if recorded is None or sha256_of_values(read_array(array, mmap_mode="r")) == recorded:
        return ""
    return f"has changed since it was written (its SHA-256 does not match): delete {array.parent} to create it again"


def runs(root: Path) -> Iterator[Check]:
    """Yield the files of runs and stored teachers: settings, result, weights, metrics, resume state, measurements."""
    for role, pattern in (("student", "runs/*/*/*/*/config.yaml"), ("teacher", "teachers/*/*/*/config.yaml")):
        for config in sorted(root.glob(pattern)):
            run = RunDirectory(config.parent, role)
            yield config, partial(edited, run)
            if run.finished:
                yield run.result_path, partial(unreadable_result, run)
            if (run.path / CHECKSUMS).is_file():
                for file in (run.weights_path, run.best_weights_path):
                    yield file, partial(changed_weights, file)
                yield run.metrics_path, partial(changed_since, run.metrics_path)
            if run.state_path.is_file():
                yield run.state_path, partial(changed_archive, run.state_path)
            for place in sorted([*run.path.glob("provenance.json"), *run.path.glob("evals/*.json")]):
                yield place, partial(described, place)


def edited(run: RunDirectory) -> str:
    read_run(run.path)
    return ""


def unreadable_result(run: RunDirectory) -> str:
    run.result()
    return ""


def changed_weights(file: Path) -> str:
    problem = changed_since(file)
    return f"{problem}; {way_out(file)}" if problem else ""


def changed_archive(file: Path) -> str:
    try:
        check_archive(file)
    except ValueError as error:
        return f"cannot be read ({error}); delete it, and the run starts again from the beginning"
    return ""


def ledgers(root: Path) -> Iterator[Check]:
    for place in sorted((root / "sweeps").glob("*/cells.json")):
        yield place, partial(damaged_ledger, root, place.parent.name)


def damaged_ledger(root: Path, name: str) -> str:
    read_ledger(root, name)
    return ""
