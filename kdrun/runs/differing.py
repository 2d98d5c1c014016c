"""Settings by which runs differ, as columns next to their results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdrun.config.schema import plain_yaml
from kdrun.errors import CheckpointError
from kdrun.files import read_json
from kdrun.runs.recorded import flat

# Settings that are already in result.json, that only name locations, or that follow from another setting.
LEFT_OUT = (
    *("seed", "epochs", "benchmark", "experiment", "dataset.name", "teacher.name", "student.name"),
    *("output_root", "save_every_minutes", "logger", "figures", "dataset.root", "dataset.workers", "method._target_"),
    *("method._name_", "optimizer.epochs", "optimizer.batch_size", "precision", "compile", "threads", "device"),
)


def settings_of(run: Path) -> dict[str, Any]:
    """Return a run's settings by their full names; empty if neither of its files can be read."""
    try:
        config = read_json(run / "provenance.json").get("config")
    except CheckpointError:
        config = None
    if not isinstance(config, dict):  # from an earlier version
        try:
            config = plain_yaml(run / "config.yaml")
        except Exception:  # YAML and the system raise many types
            return {}
        config.pop("resolved", None)
    return flat(config)


def differing(runs: Iterable[Path]) -> tuple[list[str], dict[Path, dict[str, Any]]]:
    """Return the names of the settings that have at least two values among the runs, in the schema's order, and run
    -> its values of them. A setting that a method does not have counts as no value."""
    every = {run: settings_of(run) for run in runs}
    seen: dict[str, set[str]] = {}
    for settings in every.values():
        for key, value in settings.items():
            seen.setdefault(key, set()).add(json.dumps(value, sort_keys=True, default=str))
    names = [
        key for key, values in seen.items() if len(values) > 1 and key not in LEFT_OUT and not key.startswith("pair.")
    ]
    return names, {
        run: {key: plain(settings[key]) for key in names if key in settings} for run, settings in every.items()
    }


def plain(value: Any) -> Any:
    """Return a value for a table's cell: a list or group of settings as typed."""
    if isinstance(value, list):
        return f"[{','.join(str(plain(item)) for item in value)}]"
    return json.dumps(value) if isinstance(value, dict) else value
