"""All derived sets by name, and parsing of the sets that a user types."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any

from kdrun.errors import ConfigError, suggest
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.colour import Colour
from kdrun.evaluation.testsets.corruptions import Corrupted, PublishedCorruption
from kdrun.evaluation.testsets.noise import Noise
from kdrun.evaluation.testsets.scramble import Scramble
from kdrun.evaluation.testsets.silhouette import Silhouette
from kdrun.evaluation.testsets.style import CueConflict, Style
from kdrun.evaluation.testsets.superpixel import Superpixel

KINDS: tuple[type[NamedSet], ...] = (
    Noise,
    Scramble,
    Superpixel,
    Silhouette,
    Style,
    CueConflict,
    Colour,
    Corrupted,
    PublishedCorruption,
)
SETS = {kind.name: kind for kind in KINDS}


def parse(text: str) -> NamedSet:
    """Parse `scramble`, `scramble:grid=4,offset=true` … into a checked set. Raises ConfigError (one line)."""
    name, _, rest = text.partition(":")
    given = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"testset={text}: expected NAME:key=value,key=value; {part!r} has no value.")
        given[key] = value
    return make(name, given)


def parse_list(text: str) -> list[NamedSet]:
    """Parse `noise,scramble:grid=4,offset=true` into two sets: a part with = belongs to the set before it. `all`:
    every set that is derived from the test images. Raises ConfigError (one line)."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        elif part == "all":
            found += [name for name, kind in SETS.items() if kind is not PublishedCorruption]
        else:
            found.append(part)
    return [parse(word) for word in found]


def make(name: str, given: dict[str, str]) -> NamedSet:
    """Create the set `name` with parameters given as texts. Raises ConfigError (one line)."""
    if name not in SETS:
        raise ConfigError(f"testset={name}: no such set.{suggest(name, SETS)} Available: {', '.join(SETS)}.")
    kind = SETS[name]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, text in given.items():
        if key not in fields:
            raise ConfigError(
                f"{name}.{key}: no such parameter.{suggest(key, fields)} {name} takes {', '.join(fields)}."
            )
        values[key] = _value(f"{name}.{key}", text, hints[key], fields[key].metadata)
    return kind(**values)


def title(derived: NamedSet) -> str:
    """Return the set as a user types it: its name and the parameters that differ from the defaults."""
    changed = [
        f"{field.name}={_text(getattr(derived, field.name))}"
        for field in dataclasses.fields(derived)
        if getattr(derived, field.name) != field.default
    ]
    return derived.name + (":" + ",".join(changed) if changed else "")


def settings(kind: type[NamedSet]) -> str:
    """Return the parameters of a kind with their defaults, as a user types them; fractions are shortened."""
    shown = {field.name: field.default for field in dataclasses.fields(kind)}
    return " ".join(
        f"{name}={f'{value:.3g}' if isinstance(value, float) else _text(value)}" for name, value in shown.items()
    )


def file_stem(derived: NamedSet) -> str:
    """Return `title` as part of a file name: scramble-grid=4-offset=true."""
    return re.sub(r"[^A-Za-z0-9_.=]+", "-", title(derived))


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(name: str, text: str, hint: Any, rules: Any) -> Any:
    """Convert `text` to the annotated type, within its rules."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text in ("null", "None") and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    value: Any
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name}={text}: expected true or false.")
        value = text.lower() == "true"
    else:
        try:
            value = kind(text)
        except ValueError as error:
            wanted = {int: "a whole number", float: "a number"}[kind]
            raise ConfigError(f"{name}={text}: expected {wanted}.") from error
    if "choices" in rules and value not in rules["choices"]:
        known = rules["choices"]
        raise ConfigError(f"{name}={text}: no such choice.{suggest(text, known)} Available: {', '.join(known)}.")
    limits = {
        "low": lambda bound: value >= bound,
        "high": lambda bound: value <= bound,
        "over": lambda bound: value > bound,
    }
    words = {"low": "at least", "high": "at most", "over": "more than"}
    for rule, inside in limits.items():
        if rule in rules and not inside(rules[rule]):
            raise ConfigError(f"{name}={text}: must be {words[rule]} {rules[rule]:g}.")
    return value
