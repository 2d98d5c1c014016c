"""Resolution of checkpoint settings: which file is meant (also for a run directory), and which network it holds
according to the run's config.yaml, of which only plain values are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from kdrun.config.method_schema import read_method
from kdrun.config.options import ModelOptions
from kdrun.config.schema import plain_yaml
from kdrun.errors import CheckpointError, listed
from kdrun.files import read_json, require_file

WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")


def weights_file(given: str, setting: str) -> Path:
    """Return the file that `setting=given` refers to: the file itself, or the last-epoch weights of a run or stored
    teacher.

    Raises CheckpointError if there is none.
    """
    place = Path(os.path.expanduser(given))
    if setting.endswith("pretrained") and not place.exists():
        raise CheckpointError(f"{setting}={given}: no such file; give true, false or a weights file.")
    if not place.is_dir():
        require_file(place, f"{setting}={given}")
        return place
    if (place / "config.yaml").is_file():
        for name in ("student.safetensors", "teacher.safetensors"):
            if (place / name).is_file():
                return place / name
        last = f"; {setting}={place / 'last.pt'} uses its last saved step" if (place / "last.pt").is_file() else ""
        raise CheckpointError(f"{setting}={given}: this run is not finished (kdrun list runs){last}.")
    raise CheckpointError(no_run(place, f"{setting}="))


def no_run(folder: Path, setting: str = "") -> str:
    """Return the error line for a directory that is not a run; it suggests a weights file in it if there is one."""
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())
    such = f": name a file in it, such as {setting}{files[0]}" if files else " and contains no weights file"
    return f"{setting}{folder} is not a run (it has no config.yaml){such}."


def differences(options: ModelOptions, role: str, file: Path) -> str:
    """Describe how the requested network differs from the one in a run's file; an empty string for other files, and if
    they agree.

    Raises CheckpointError for a file that holds more than a network.
    """
    stored = stored_options(file)
    if stored is None:
        return ""
    pairs: list[tuple[str, Any, Any]] = [("name", stored.get("name"), options.name)]
    pairs += [(key, stored.get(key), getattr(options, key)) for key in ("kwargs", "head", "input_size")]
    if stored.get("mean") is not None or stored.get("pretrained", "false") == "false":
        pairs += [(key, stored.get(key), getattr(options, key)) for key in ("mean", "std")]
    elif options.mean is None and options.pretrained == "false":
        pairs.append(("mean and std", "those of its pretrained weights", None))
    found = [(key, old, new) for key, old, new in pairs if old != new]
    if not found:
        return ""
    said = ", ".join(f"{key} {shown(old)} (here {role}.{key}={shown(new)})" for key, old, new in found)
    return f"{file.parent}/config.yaml describes this network with {said}"


def shown(value: Any) -> str:
    """Return a value as typed on the command line."""
    return "null" if value is None else str(value)


def stored_options(file: Path) -> dict[str, Any] | None:
    """Return the options of the network in a run's file, from its config.yaml; None for a file outside a run."""
    place = file.parent / "config.yaml"
    if not place.is_file():
        return None
    try:
        content = plain_yaml(place)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    stored_teacher = (file.parent / "teacher.safetensors").is_file()
    files = (
        ("teacher.safetensors", "teacher_best.safetensors")
        if stored_teacher
        else ("student.safetensors", "student_best.safetensors")
    )
    if file.name not in (*files, "last.pt") or "resolved" not in content:
        return None
    if not stored_teacher:
        refuse_more(content, file)
    found = content.get("teacher" if stored_teacher else "student")
    return found if isinstance(found, dict) else None


def refuse_more(content: dict[str, Any], file: Path) -> None:
    """Raise CheckpointError if a run's method deploys more than its student: the student's own classifier was never
    trained."""
    method = content.get("method")
    target = str(method.get("_target_")) if isinstance(method, dict) else ""
    if target.startswith("kdrun.methods.") and read_method(target).deploys:
        raise CheckpointError(
            f"{file} holds more than a student ({target.rpartition('.')[2]} needs more at inference): it cannot be "
            "another network's checkpoint; use the run itself with kdrun eval, predict or export."
        )


def recorded_data(run: Path) -> tuple[list[str], tuple[list[float], list[float]]] | None:
    """Return (class names, (mean, std)) that a run recorded; None if it is older than that, or damaged."""
    known = data_record(run)
    names, mean, std = (known.get(key) for key in ("class_names", "mean", "std"))
    return (names, (mean, std)) if is_names(names) and is_triple(mean) and is_triple(std) else None


def recorded_fingerprint(run: Path) -> str | None:
    """Return the fingerprint of a run's images; None if it recorded none, or the record is damaged."""
    found = data_record(run).get("fingerprint")
    return found if isinstance(found, str) else None


def data_record(run: Path) -> dict[str, Any]:
    """Return what a run recorded about its images; empty if it is older than that, or damaged."""
    try:
        known = read_json(run / "provenance.json").get("data")
    except CheckpointError:
        return {}
    return known if isinstance(known, dict) else {}


def other_classes(names: list[str], here: list[str]) -> str:
    """Return how the classes of images differ from those of a run: cat missing here, cow unknown to it."""
    lacking, new = [name for name in names if name not in here], [name for name in here if name not in names]
    said = [f"{listed(found)} {word}" for found, word in ((lacking, "missing here"), (new, "unknown to it")) if found]
    return ", ".join(said) or "their order differs"


def is_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def is_triple(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(number, int | float) for number in value)
