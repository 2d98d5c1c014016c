"""Rewriting of command-line arguments into Hydra's override grammar. Names and paths are taken literally; whatever
Hydra would misread or silently accept is rejected in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from kdrun.config.groups import GROUPS, group_files, has_recipe, roots
from kdrun.config.settings import nearest, settings, unknown
from kdrun.errors import ConfigError, suggest

FREE = re.compile(r"(student|teacher)\.kwargs(\.|$)")  # settings with names outside the schema
ALIASES = {"si": "none", "independent": "none", "lm": "kd", "hints": "fitnet_joint"}
PLAIN = re.compile(r"[A-Za-z0-9_./:+@%*?|$\\-]*")  # read by Hydra as one word
OF_SWEEPS = ("name", "sweep", "row", "column", "launcher")


def resolve_alias(name: str, config_dir: str | None) -> str:
    """Return the method behind an alias, unless the user has a method of that very name."""
    return name if name in group_files("method", config_dir) else ALIASES.get(name, name)


def rewrite(
    overrides: Iterable[str], config_dir: str | None = None, several: bool = False, hydra: bool = False
) -> list[str]:
    """Return the arguments in Hydra's grammar: aliases of methods resolved, text quoted, and `method.x=…` as
    `++method.x=…`, so that a misspelt hyperparameter reaches the check against the method's constructor.
    `student.kwargs.x=…` is treated likewise, since only the network knows these names.

    several: commas separate values. hydra: for Hydra itself, which takes its own settings. Raises ConfigError.
    """
    return [
        word if hydra and word.lstrip("+~").startswith(("hydra/", "hydra.")) else _rewritten(word, config_dir, several)
        for word in overrides
    ]


def _rewritten(word: str, config_dir: str | None, several: bool) -> str:
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    check_word(word, key, equals)
    if (group := key.partition("@")[0]) in GROUPS and key in (group, "optimizer@teacher.recipe"):
        return f"{key}={_choice(group, value, config_dir, several)}"
    if key.lstrip("~").startswith("method.") or FREE.match(key):
        return f"{'' if key.startswith('~') else '++'}{key}{equals}{_text(value)}"
    known = settings().get(key)
    if known is None:
        raise ConfigError(unknown(key))
    if "path" in known.rules:
        return f"{key}={_path(value, several)}"
    if known.holds_one and value.startswith(("[", "{")):
        each = f"; for a run of each: kdrun train -m {key}={value.strip('[]')}" if value[0] == "[" else ""
        raise ConfigError(f"{word}: {key} takes one value{each}.")
    return f"{key}={_text(value)}"


def _text(value: str) -> str:
    """Return a value in quotes if Hydra's grammar does not accept its characters."""
    return value if value.isascii() or value[0] in "'\"[{" else quoted(value)


def check_word(word: str, key: str, equals: str) -> None:
    """Raise ConfigError unless an argument sets something."""
    if key.startswith("~") and not key.startswith("~method."):  # a sweep's row may remove these from its base
        raise ConfigError(f"{word}: a setting cannot be removed; omit it to use its default.")
    if not equals and not key.startswith("~"):
        hint = f"a setting is written {key}=VALUE." if key in settings() else f"not a setting: KEY=VALUE.{nearest(key)}"
        raise ConfigError(f"{word}: {hint}")
    if not key:
        raise ConfigError(f"{word}: the name before = is missing: KEY=VALUE.")
    if key.startswith(("hydra/", "hydra.")):
        raise ConfigError(f"{word}: Hydra's settings are only for its launchers (kdrun train -m hydra/launcher=…).")
    if key.startswith("pair.") or key == "method._name_":
        raise ConfigError(f"{word}: choose it by name: {key.partition('.')[0]}=NAME.")
    if key.partition(".")[0] in OF_SWEEPS:
        raise ConfigError(f"{word}: {key} is a setting of sweeps: kdrun train -m … or sweep=NAME.")


def _choice(group: str, value: str, config_dir: str | None, several: bool) -> str:
    """Return the name, or names, given for a group. Raises ConfigError for an invalid one: Hydra would take a list
    as several choices, the last of which wins."""
    if several and re.match(r"(choice|range|glob|interval|sort|shuffle|tag)\(", value):
        return value  # Hydra's own syntax for several names
    one = f"{group}={value}: a run has one {group}; for a run of each: kdrun train -m {group}={value.strip('[] ')}"
    if value.startswith("["):
        together = "; for their sum: method=combine 'method.parts=[kd,at]'" if group == "method" else ""
        raise ConfigError(one + together)
    if value in ("", "null") or value.startswith("{"):
        raise ConfigError(f"{group}={value}: choose one by name (kdrun list), or omit it to use the default.")
    names = [name.strip() for name in value.split(",")] if several else [value]
    if "," in value and not several and set(value.split(",")) <= {*group_files(group, config_dir), *ALIASES}:
        raise ConfigError(one)
    if group == "method":
        names = [resolve_alias(name, config_dir) for name in names]
    for name in names if group == "recipe" else ():
        if not has_recipe(name, config_dir):
            raise ConfigError(f"recipe={name}: no such recipe.{suggest(name, group_files('recipe', config_dir))}")
    return ",".join(name if is_word(name) or is_quoted(name) else quoted(name) for name in names)


def is_word(text: str) -> bool:
    """Return True if Hydra's grammar reads a text as text: not a number or null, and not in need of quotes."""
    return bool(PLAIN.fullmatch(text)) and not re.fullmatch(
        r"(?i)null|true|false|[+-]?(nan|inf|[\d._]+(e[+-]?\d+)?)", text
    )


def _path(value: str, several: bool) -> str:
    """Return a path in quotes; if several are allowed, each of them, unless the whole text is one file."""
    if value in ("null", "true", "false") or (is_quoted(value) and not Path(value).exists()):
        return value
    if several and "," in value and not Path(os.path.expanduser(value)).exists():
        return ",".join(_path(part, False) for part in value.split(","))
    return quoted(value)


def is_quoted(text: str) -> bool:
    """Return True for text within Hydra's quotes."""
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def quoted(text: str) -> str:
    """Return `text` in Hydra's quotes, within which a backslash matters only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def unquoted(word: str) -> str:
    """Return a path as typed, from Hydra's grammar; any other argument unchanged."""
    key, _, value = word.partition("=")
    known = settings().get(key)
    if known is None or "path" not in known.rules or not is_quoted(value):
        return word
    return f"{key}=" + re.sub(r"(\\+)(['\"]|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], value[1:-1])


def search_override(config_dir: str | None) -> list[str]:
    """Return Hydra's override that adds the user's own configuration folder."""
    if config_dir is None:
        return []
    own = str(roots(config_dir)[-1].resolve())
    return [f"hydra.searchpath=[kdrun://models,{quoted(f'kdrun://{own}')},{quoted(f'file://{own}')}]"]


def unreadable(word: str) -> ConfigError:
    """Return the error for an argument that Hydra's grammar cannot read."""
    key, _, value = word.lstrip("+").partition("=")
    if value.startswith(("[", "{")) or "${" in value:
        return ConfigError(
            f"{key}={value}: cannot be parsed. Write a list as [a,b], settings as {{a: 1}}, a reference as ${{seed}}; "
            f"other text needs quotes of its own, as in '{key}=[\"a, b\"]'."
        )
    return ConfigError(f"{key}={value}: cannot be parsed; put the value in its own quotes: '{key}=\"{value}\"'.")


def seeds_of(words: Iterable[str], otherwise: tuple[int, ...] = (0, 1, 2)) -> tuple[list[int], list[str]]:
    """Split off the seeds: return (the values of seed=0,1,2, or `otherwise` if not given; the other arguments).
    Raises ConfigError."""
    seeds, rest = list(otherwise), []
    for word in words:
        key, _, value = word.partition("=")
        if key != "seed":
            rest.append(word)
            continue
        if not all(part.strip().isdecimal() for part in value.split(",")):
            raise ConfigError(f"seed={value}: seeds are whole numbers, as in seed=0,1,2.")
        seeds = list(dict.fromkeys(int(part) for part in value.split(",")))
    return seeds, rest
