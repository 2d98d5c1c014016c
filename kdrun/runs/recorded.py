"""Record of a run's own files, to detect later changes: settings and teacher in provenance.json, checksums of
weights, metrics and result in checksums.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdrun.config.options import RunConfig
from kdrun.config.schema import plain_yaml, read_config
from kdrun.errors import CheckpointError, ConfigError, listed
from kdrun.files import read_json, sha256_of, write_json

# Values that may differ between two starts of the same run, or that a teacher has from the run that trained it.
MAY_DIFFER = (
    *("output_root", "save_every_minutes", "logger", "figures", "benchmark", "pair", "experiment", "method._name_"),
    *("resolved.device", "teacher.checkpoint", "student.checkpoint"),  # files count by content
    *("dataset.root", "dataset.workers", "dataset.on_error", "dataset.allow_missing_classes"),
)
CHECKSUMS = "checksums.json"
OF_A_TEACHER = ("teacher.", "dataset.", "resolved.")


def read_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return (configuration, resolved numerics) of a run or a stored teacher. Raises ConfigError if it is damaged,
    or was edited since the run began: its numbers belong to the settings that it was trained with."""
    found = read_config(folder)
    if edited := edits(folder):
        said = listed(f"{key}={now} ({before} when it was trained)" for key, before, now in edited)
        raise ConfigError(
            f"{folder / 'config.yaml'} was edited: {said}. Undo the edit: other settings are another run."
        )
    return found


def read_resolved(folder: Path) -> dict[str, Any] | None:
    """Return the numerics to which a started run is pinned, or None. Raises ConfigError as `read_run` does."""
    return read_run(folder)[1] if (folder / "config.yaml").is_file() else None


def edits(folder: Path) -> list[tuple[str, Any, Any]]:
    """Return (key, value when the run began, value in config.yaml now) of changed settings that decide numbers.

    Empty if provenance.json cannot be read; runs of earlier versions recorded only their numerics.
    """
    try:
        told = read_json(folder / "provenance.json")
    except CheckpointError:
        return []
    recorded, numerics = told.get("config"), told.get("numerics")
    if not isinstance(numerics, dict):
        return []
    before = flat({**(recorded if isinstance(recorded, dict) else {}), "resolved": numerics})
    now = flat(json.loads(json.dumps(plain_yaml(folder / "config.yaml"), default=str)))
    keys = [key for key in {**before, **now} if key not in MAY_DIFFER and not key.startswith("pair.")]
    if not isinstance(recorded, dict):  # from an earlier version
        keys = [key for key in keys if key.startswith("resolved.")]
    if "teachers" in folder.absolute().parts[-4:-3]:
        keys = [key for key in keys if key.startswith(OF_A_TEACHER) and key != "dataset.test_limit"]
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted keys; lists and empty mappings count as values."""
    if not isinstance(node, dict) or not node:
        return {prefix[:-1]: node}
    return {path: value for key, child in node.items() for path, value in flat(child, f"{prefix}{key}.").items()}


def record(folder: Path, files: Iterable[Path], texts: dict[Path, str]) -> None:
    """Record the SHA-256 of a finished run's files, and of texts that are about to be written."""
    sums = {file.name: sha256_of(file) for file in files if file.is_file()}
    sums |= {file.name: hashlib.sha256(text.encode()).hexdigest() for file, text in texts.items()}
    write_json(folder / CHECKSUMS, sums)


def changed_since(file: Path, sha256: str = "") -> str:
    """Describe how a run's file differs from its record at the end of the run; an empty string if it does not, or if
    nothing was recorded. Raises CheckpointError if the checksums themselves are damaged.

    sha256: that of the file, if already known.
    """
    place = file.parent / CHECKSUMS
    try:
        told = read_json(place).get(file.name) if place.is_file() else None
    except CheckpointError as error:
        raise CheckpointError(
            f"{str(error).rstrip('.')}: delete it and result.json, then repeat the command that trained this run, "
            "to write both again."
        ) from error
    if told is None:
        return ""
    if not file.is_file():
        return "is missing"
    return (
        "" if (sha256 or sha256_of(file)) == told else "has changed since it was written (its SHA-256 does not match)"
    )


def check_unchanged(file: Path, sha256: str = "") -> None:
    """Raise CheckpointError for weights in a run's directory that the run did not write. sha256: as above."""
    if problem := changed_since(file, sha256):
        raise CheckpointError(f"{file} {problem}; {way_out(file)}.")


def way_out(file: Path) -> str:
    """Return how to restore the weights."""
    if file.name.startswith("teacher"):
        return f"delete {file.parent} to train the teacher again"
    if file.name.endswith("_best.safetensors") or not (file.parent / "last.pt").is_file():
        return f"delete {file.parent} and repeat the command that trained it"
    return "repeat the command that trained this run, to write it again from last.pt"


def is_whole(file: Path) -> bool:
    """Return True if a safetensors file is as long as its header says: a quick check that does not read the weights."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, size)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0) == size
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        return False
