"""Descriptions of settings: type, choices, bounds, default and meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

from kdrun.config.groups import GROUPS, group_files, read_yaml
from kdrun.config.method_rules import method_rules
from kdrun.config.method_schema import hyperparameters, is_ours, read_method, sections
from kdrun.config.settings import KINDS, OF_TRAIN, Setting, nearest, settings
from kdrun.errors import ConfigError, suggest


@dataclass(frozen=True)
class Explained:
    """Description of one setting. default: its value in `kdrun train` without arguments; others: its values in the
    files of its group."""

    key: str
    meaning: str
    kind: str
    default: str = ""
    bounds: str = ""
    others: tuple[tuple[str, str], ...] = ()


def explain_setting(key: str, config_dir: str | None = None, methods: tuple[str, ...] = ()) -> list[Explained]:
    """Describe a setting, once for each method if it is a method's. Raises ConfigError for an unknown one. methods:
    names that may have been meant instead."""
    if key in OF_TRAIN:
        kind, meaning = OF_TRAIN[key]
        return [Explained(key, meaning, kind)]
    if key.startswith("method.") and (found := explain_method_setting(key, config_dir)):
        return found
    known = settings().get(key)
    if known is None:
        meant = suggest(key, methods) or nearest(key)
        raise ConfigError(f"explain {key}: no such method or setting.{meant} All of them: kdrun list settings.")
    if known.is_group:
        inner = [name for name in settings() if name.startswith(f"{key}.") and name.count(".") == key.count(".") + 1]
        kind = f"a group: {key}=NAME" if key in GROUPS else "a group"
        return [Explained(key, known.rules["help"], kind), *(described(name, settings()[name]) for name in inner)]
    return [described(key, known, config_dir)]


def every_setting() -> list[Explained]:
    """Describe all settings of a run in the order of the schema, then those of sweeps."""
    plain = [described(key, known) for key, known in settings().items() if not known.is_group]
    return [*plain, *(Explained(key, meaning, kind) for key, (kind, meaning) in OF_TRAIN.items())]


def described(key: str, known: Setting, config_dir: str | None = None) -> Explained:
    if key == "method":
        return Explained(key, known.rules["help"], "a group: method=NAME", "kd")
    others = tuple(values_in_groups(key, config_dir))
    return Explained(key, known.rules["help"], kind_of(known), default_of(key), bounds_of(known.rules), others)


def kind_of(known: Setting) -> str:
    """Return the type of a setting's value, or its choices."""
    rules, kind = known.rules, known.kind
    if "choices" in rules:
        text = " | ".join(map(str, rules["choices"]))
        text = f"a list of {text}" if get_origin(kind) is list else text
    elif "pattern" in rules:
        text = rules["shows"]
    elif get_origin(kind) is list:
        plural = {int: "whole numbers", float: "numbers", str: "texts"}[get_args(kind)[0]]
        text = f"{rules['length']} {plural}" if "length" in rules else f"a list of {plural}"
    else:
        text = "settings in braces" if get_origin(kind) is dict else KINDS.get(kind, "a name")
    text = "a file or folder" if "path" in rules and text == "text" else text
    return f"{text}, or null" if known.optional else text


def bounds_of(rules: Any) -> str:
    """Return the bounds of a number: at least 0, below 1."""
    words = {"low": "at least", "over": "above", "high": "at most", "under": "below"}
    return ", ".join(f"{word} {rules[key]:,}" for key, word in words.items() if key in rules)


def default_of(key: str) -> str:
    """Return a setting's default: its value in `kdrun train` without arguments."""
    from omegaconf import OmegaConf

    value = OmegaConf.select(default_config(), key, throw_on_missing=False, default=None)
    return shown(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


@cache
def default_config() -> Any:
    """Return the configuration of `kdrun train` without arguments, composed once."""
    from kdrun.config.compose import compose

    return compose([])


def shown(value: Any) -> str:
    """Return a value as a user would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def values_in_groups(key: str, config_dir: str | None) -> Iterable[tuple[str, str]]:
    """Yield (GROUP=NAME, the setting's value in it)."""
    group, _, rest = key.partition(".")
    if group not in ("optimizer", "dataset") or not rest:
        return
    for name, path in sorted(group_files(group, config_dir).items()):
        node: Any = read_yaml(path)
        for part in rest.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if node is not None:
            yield f"{group}={name}", shown(node)


def explain_method_setting(key: str, config_dir: str | None) -> list[Explained]:
    """Describe a method's setting for each method that has it; return an empty list if none has."""
    name, found = key.partition(".")[2], []
    for method, path in sorted(group_files("method", config_dir).items()):
        node = read_yaml(path)
        source = read_method(str(node.get("_target_")))
        if name in source.parameters:
            meaning = hyperparameters(sections(source.doc).get("Hyperparameters", "")).get(name, "")
            bounds = bounds_of(method_rules(name, is_ours(source.target)))
            kind = source.parameters[name]
            found.append(Explained(f"{key} of method={method}", meaning, kind, shown(node.get(name)), bounds))
    return found
