"""Command-line arguments. A command declares its settings as a dataclass of `setting(…)` fields, with the rules of
`kdrun.config.options`; `parse` reads its arguments, and `options_help` writes its section of `--help`.

A field's type decides how its value is read: str, int, float, bool, Path, or a list of these, split at commas. Further
metadata: help, a clause; shows, the placeholder of the value in help; suffixes, of a file; words, name -> value for
names accepted in place of a number.
"""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from kdrun.config.options import VECTORS, RunConfig, setting
from kdrun.config.schema import check_value
from kdrun.config.settings import KINDS, nearest, settings
from kdrun.errors import ConfigError, suggest

Options = TypeVar("Options")
WITH_VALUE = ("--cfg", "-c", "--package", "-p")  # flags that take a value


@dataclass
class NoOptions:
    """Options of a command without settings of its own."""


@dataclass(frozen=True)
class Parsed(Generic[Options]):
    """Parsed arguments of a command. names: positional arguments; rest: settings that the command does not declare."""

    names: list[str]
    options: Options
    rest: dict[str, str]
    config_dir: str | None

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.rest.items()]


def output_root_setting() -> Any:
    """Return the field of the output folder, for commands that compose no configuration."""
    return setting(None, help="the output folder: ./outputs, or $KDRUN_OUTPUTS", shows="FOLDER")


def figures_setting() -> Any:
    """Return the field of the picture formats, for commands that draw pictures."""
    return setting([], choices=VECTORS, help="also write pictures in these formats, in addition to PNG")


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """Return (Hydra's flags with their values, overrides, --config-dir)."""
    flags, overrides, config_dir = [], [], None
    pending = list(arguments)
    while pending:
        word = pending.pop(0)
        if word in ("--config-dir", "-cd") and pending:
            config_dir = pending.pop(0)
        elif word.startswith("--config-dir="):
            config_dir = word.partition("=")[2]
        elif word.startswith("-"):
            flags.append(word)
            if word in WITH_VALUE and pending:
                flags.append(pending.pop(0))
        else:
            overrides.append(word)
    return flags, overrides, config_dir


def parse(
    command: str,
    words: Sequence[str],
    kind: type[Options],
    passes: bool | Sequence[str] = False,
    also: Iterable[str] = (),
) -> Parsed[Options]:
    """Parse a command's arguments. passes: True if settings of a run are accepted too, or a list of the accepted ones.
    also: settings that the command reads from `rest` itself.

    Raises ConfigError for an unknown flag or setting, and for a value that breaks its field's rules.
    """
    flags, overrides, config_dir = split_arguments(words)
    own = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for flag in flags:
        raise ConfigError(f"{command}: {flag}: {flag_fault(flag, own)}")
    names = [word for word in overrides if is_name(word)]
    given = {key: value for key, _, value in (word.partition("=") for word in overrides if word not in names)}
    known = list(dict.fromkeys([*own, *also, *(passes if isinstance(passes, Sequence) else ())]))
    of_runs = {field.name for field in dataclasses.fields(RunConfig)} if passes is True else set()
    for key in given:
        if passes is not True and key not in known:
            raise ConfigError(f"{key}: {command} takes {', '.join(known) or 'no settings'}.{suggest(key, known)}")
        if key.isidentifier() and key not in known and key not in of_runs and suggest(key, known):
            raise ConfigError(f"{key}: no such setting.{suggest(key, known)}")
    hints = get_type_hints(kind)
    values = {key: read_value(key, given.pop(key), hints[key], own[key].metadata) for key in own if key in given}
    for key, field in own.items():
        if field.default == MISSING and key not in values:
            raise ConfigError(f"{key} is not set: give {key}={shown_value(field, plain_type(hints[key]))}.")
    return Parsed(names, kind(**values), given, config_dir)


def flag_fault(flag: str, own: Iterable[str] = (), flags: str = "the only one is --config-dir FOLDER") -> str:
    """Return what to write instead of an unknown flag. own: settings of the command itself; flags: its flags."""
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    if name in ("resume", "continue"):
        return "no such flag: the same command resumes an interrupted run."
    if name in own or name in settings():
        return f"a setting is written without dashes: {name}=VALUE."
    if flag.startswith("--") and (near := nearest(name)):
        return f"no such flag; settings are written without dashes, KEY=VALUE.{near}"
    return f"no such flag; {flags}."


def is_name(word: str) -> bool:
    """Return True for an argument that is not key=value: a folder may contain an equals sign, and NAME:key=value is
    a name."""
    key, equals, _ = word.partition("=")
    return not equals or ":" in key or "/" in key or Path(word).exists()


def read_value(key: str, text: str, hint: Any, rules: Mapping[str, Any]) -> Any:
    """Convert `text` to the value of a field. Raises ConfigError."""
    kind = plain_type(hint)
    if not text:
        raise ConfigError(f"{key}= is empty.")
    if get_origin(kind) is list:
        return [read_value(key, part, get_args(kind)[0], rules) for part in parts_of(text, get_args(kind)[0], rules)]
    if text in rules.get("words", {}):
        return rules["words"][text]
    if kind is Path:
        path, endings = Path(os.path.expanduser(text)), rules.get("suffixes", ())
        if endings and path.suffix.lower() not in endings:
            raise ConfigError(f"{key}={text}: give a file that ends in {' or '.join(endings)}.")
        if key in ("save", "sheet"):
            check_place(key, path, rules.get("shows", "FILE"))
        return path
    value: Any = text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{key}={text}: choose true or false.")
        value = text.lower() == "true"
    if kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            least = f", at least {rules['low']}" if "low" in rules else ""
            other = "".join(f", or {word}" for word in rules.get("words", {}))
            raise ConfigError(f"{key}={text}: must be {KINDS[kind]}{least}{other}.") from None
    check_value(key, value, rules)
    return value


def check_place(key: str, path: Path, kind: str) -> None:
    """Raise ConfigError if the FILE or FOLDER cannot be written, before any work is done."""
    if "FOLDER" not in kind and path.is_dir():
        raise ConfigError(f"{key}={path} is a folder: name a file in it.")
    within = path if kind == "FOLDER" else path.parent
    there = next(place for place in (within, *within.parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{key}={path}: {there} is a file, but a folder is needed.")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{key}={path}: {there} cannot be written to.")


def parts_of(text: str, kind: Any, rules: Mapping[str, Any]) -> list[str]:
    """Split the values of a list at commas. A comma within a file name does not split: if the whole text names a
    file, or until a file ending is reached."""
    if kind is Path and Path(os.path.expanduser(text)).exists():
        return [text]
    after = "|".join(f"(?<={re.escape(ending)})" for ending in rules.get("suffixes", ()))
    return [part for part in re.split(f"(?:{after}),", text) if part]


def plain_type(hint: Any) -> Any:
    """Return the type of an optional field's values."""
    optional = type(None) in get_args(hint)
    return next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint


def options_help(kind: type) -> str:
    """Return the help lines of a command's settings, or an empty string if it has none."""
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    heads = [f"{field.name}={shown_value(field, plain_type(hints[field.name]))}" for field in fields]
    width = max((len(head) for head in heads if len(head) <= 34), default=0)
    lines = ["settings:"] if heads else []
    for field, head in zip(fields, heads, strict=True):
        default = field.default
        plain = isinstance(default, str | int | float) and default != MISSING and "choices" not in field.metadata
        shown = str(default).lower() if isinstance(default, bool) else default
        text = field.metadata["help"] + (f" ({shown})" if plain else "")
        indent = " " * (width + 4)
        first = f"  {head:<{width}}  " if len(head) <= width else f"  {head}\n{indent}"
        lines.append(first + textwrap.fill(text, 118 - width - 4).replace("\n", f"\n{indent}"))
    return "\n".join(lines)


def shown_value(field: dataclasses.Field, kind: Any) -> str:
    """Return the placeholder of a field's value in help."""
    rules, several = field.metadata, get_origin(kind) is list
    one = get_args(kind)[0] if several else kind
    named = {int: "N", float: "X", Path: "FILE", str: "NAME", bool: "true|false"}[one]
    endings = "|".join(f"FILE{ending}" for ending in rules.get("suffixes", ()))
    choices = [*rules.get("choices", ()), *rules.get("words", ())]
    shown = rules.get("shows") or endings or "|".join([*choices] if "choices" in rules else [named, *choices])
    return f"{shown},…" if several else shown
