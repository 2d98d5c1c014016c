"""Settings of a run by full name, and the nearest setting to an unknown name."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from kdrun.config.groups import group_files, read_yaml
from kdrun.config.method_schema import read_method
from kdrun.config.options import RunConfig
from kdrun.errors import one_line

# Names of settings in other tools.
ELSEWHERE = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "num_workers": "workers",
    "data": "dataset.root",
    "data_dir": "dataset.root",
    "model": "student",
    "arch": "student",
    "gpu": "device",
    "gpus": "device",
    "optim": "optimizer",
    "tau": "temperature",
    "alpha": "kd_weight",
}

# Arguments of kdrun train that are not settings of a run: how many runs there are, and how they are started.
OF_TRAIN = {
    "sweep": ("a name", "a table of conf/sweep, whose cells are all trained (kdrun list sweeps)"),
    "name": ("a name", "with -m: the name of these runs in kdrun table, status and report; used again, it adds runs"),
    "row": ("names", "with sweep=NAME: train only these rows"),
    "column": ("names", "with sweep=NAME: train only these columns"),
    "dry_run": ("true or false", "measure a few steps and estimate the cost, instead of training"),
    "launcher": ("lanes, slurm or submitit_local", "how the runs of -m and sweep= are started"),
    "launcher.processes": ("a whole number, or auto", "processes at once; auto: one per GPU or core; 0: this process"),
}
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Setting:
    """A setting. kind: its type without null; optional: True if null is allowed; rules: as in
    `kdrun.config.options.setting`."""

    kind: Any
    optional: bool
    rules: Mapping[str, Any]

    @property
    def is_group(self) -> bool:
        """Return True if it is a group of settings, such as optimizer."""
        return dataclasses.is_dataclass(self.kind)

    @property
    def holds_one(self) -> bool:
        """Return True if it takes one plain value, rather than a list or a group."""
        return self.kind in KINDS

    @property
    def numbers(self) -> bool:
        """Return True if it is a list of numbers."""
        return get_origin(self.kind) is list and get_args(self.kind)[0] in (int, float)

    def expected(self, key: str) -> str:
        """Return a phrase for what its value must be."""
        if self.is_group:
            return f"it is a group of settings: set {key}.{dataclasses.fields(self.kind)[0].name}=… and so on"
        if get_origin(self.kind) is dict:
            return f"must be settings in braces, as '{key}={{depth: 2}}'"
        if get_origin(self.kind) is list:
            return f"must be a list, as {key}=[{self.example}]"
        kind = " or ".join(self.rules["choices"]) if "choices" in self.rules else KINDS.get(self.kind, "a value")
        return f"must be {kind}{', or null' if self.optional else ''}"

    @property
    def example(self) -> str:
        """Return an example of a list of its kind."""
        if "choices" in self.rules:
            return str(self.rules["choices"][0])
        return ",".join((["1", "2", "3"] if self.numbers else ["a", "b"])[: self.rules.get("length", 2)])


@cache
def settings() -> dict[str, Setting]:
    """Return every setting of a run by its full name, in the order of the schema."""
    return dict(_settings_of(RunConfig, ""))


def _settings_of(schema: type, prefix: str) -> list[tuple[str, Setting]]:
    hints, found = get_type_hints(schema), []
    for field in dataclasses.fields(schema):
        choices = [kind for kind in get_args(hints[field.name]) if kind is not type(None)]
        optional = type(None) in get_args(hints[field.name])
        kind = choices[0] if optional else hints[field.name]
        found.append((f"{prefix}{field.name}", Setting(kind, optional, field.metadata)))
        if dataclasses.is_dataclass(kind):
            found += _settings_of(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
    return found


@cache
def method_settings() -> tuple[str, ...]:
    """Return method.NAME for all settings of kdrun's methods."""
    targets = [read_yaml(path).get("_target_") for path in group_files("method").values()]
    names = {name for target in targets if target for name in read_method(target).parameters}
    return tuple(f"method.{name}" for name in sorted(names))


def fault(error: Any, key: str = "", text: str = "") -> str:
    """Return OmegaConf's exception about a value as one line that begins with the setting.

    key: its full name, if the exception does not know it; text: the value as written, if that is a reference.
    """
    key, first = key or str(error.full_key or ""), one_line(error)
    if missing := re.search(r"Key '([^']+)' (?:is )?not in ", first):
        return unknown(key or missing[1])
    value = re.search(r"Value '(.*)' (?:\(of type|of type|is not)", first)
    shown = f"{key}={text}" if text else f"{key}={value[1]}" if value else key
    known = settings().get(re.sub(r"\[\d+\]$", "", key))
    return f"{shown}: {_missing_reference(first) or _expected(known, key) or first}" if shown else first


def _missing_reference(first: str) -> str:
    """Return the fault of a reference, from an exception's first line; an empty string if there is none."""
    if missing := re.search(r"Environment variable '([^']+)' not found", first):
        return f"the environment variable {missing[1]} is not set; ${{oc.env:{missing[1]},VALUE}} gives a default."
    if missing := re.search(r"Interpolation key '([^']+)' not found", first):
        return f"the referenced setting {missing[1]} does not exist.{nearest(missing[1])}"
    if missing := re.search(r"Unsupported interpolation type (\S+)", first):
        return f"unknown kind of reference {missing[1]}: write ${{oc.env:NAME}} or ${{seed}}."
    return "it refers to itself." if "Recursive interpolation" in first else ""


def _expected(known: Setting | None, key: str) -> str:
    """Return a phrase for what a value must be, if the setting is known."""
    if known is None:
        return ""
    return f"must be {KINDS[get_args(known.kind)[0]]}." if key.endswith("]") else f"{known.expected(key)}."


def unknown(key: str) -> str:
    """Return the error line for an unknown setting."""
    return f"{key}: no such setting.{nearest(key)}"


def nearest(key: str) -> str:
    """Return ' Did you mean optimizer.lr?' for an unknown name, or an empty string if no setting resembles it."""
    key = ".".join(ELSEWHERE.get(part, part) for part in key.split("."))
    known = [*settings(), *method_settings(), *OF_TRAIN]
    if key in known:
        return f" Did you mean {key}?"
    head, _, rest = key.partition(".")
    found = (
        [name for name in known if name.endswith(f".{key}")]
        or [f"{name}.{rest}" for name in known if rest and name.endswith(".kwargs") and head == "kwargs"]
        or _of_the_same_words(key, known)
    )
    if not found:
        likeness = {name: max(_likeness(key, name), _likeness(key, name.rpartition(".")[2])) for name in known}
        best = max(likeness.values())
        found = [name for name in known if likeness[name] == best] if best >= 0.7 else []
    depth = min((name.count(".") for name in found), default=0)
    nearest_ones = [name for name in found if name.count(".") == depth][:3]
    return f" Did you mean {' or '.join(nearest_ones)}?" if nearest_ones else ""


def _of_the_same_words(key: str, known: list[str]) -> list[str]:
    """Return the settings that contain every word of `key` (if it has several) and the fewest other words."""
    words = set(re.split(r"[._]", key))
    named = {name: set(re.split(r"[._]", name)) for name in known}
    fitting = [name for name in known if words <= named[name]]
    fewest = min((len(named[name]) for name in fitting), default=0)
    return [name for name in fitting if len(named[name]) == fewest]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
