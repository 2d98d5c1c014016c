"""The words of a command line, brought into the grammar of Hydra's overrides: names and paths are taken as they are
typed, and what Hydra would misread or take in silence is refused in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from kdrun.config.groups import GROUPS, group_files, has_recipe, roots
from kdrun.config.settings import nearest, settings, unknown
from kdrun.errors import ConfigError, suggest

FREE = re.compile(r"(student|teacher)\.kwargs(\.|$)")  # settings whose names are not in the schema
ALIASES = {"si": "none", "independent": "none", "lm": "kd", "hints": "fitnet_joint"}
PLAIN = re.compile(r"[A-Za-z0-9_./:+@%*?|$\\-]*")  # what Hydra reads as one word
OF_SWEEPS = ("name", "sweep", "row", "column", "launcher")


def resolve_alias(name: str, config_dir: str | None) -> str:
    """Return the method that an alias means, unless the user has a method of that very name."""
    return name if name in group_files("method", config_dir) else ALIASES.get(name, name)


def rewrite(
    overrides: Iterable[str], config_dir: str | None = None, several: bool = False, hydra: bool = False
) -> list[str]:
    """Return the words as Hydra's grammar wants them: aliases of methods resolved, text quoted, and `method.x=…` as
    `++method.x=…`, so that a misspelt hyperparameter reaches the check that knows the method's constructor; so does
    `student.kwargs.x=…`, whose names the network alone knows. Raises ConfigError.

    several: commas separate values. hydra: Hydra itself runs this, and takes its own settings."""
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
    """Return a value in quotes where its letters are none of Hydra's grammar."""
    return value if value.isascii() or value[0] in "'\"[{" else quoted(value)


def check_word(word: str, key: str, equals: str) -> None:
    """Raise ConfigError unless a word sets something."""
    if key.startswith("~") and not key.startswith("~method."):  # which a row of a sweep may take back from its base
        raise ConfigError(f"{word}: a setting cannot be removed; leave it out for its default.")
    if not equals and not key.startswith("~"):
        hint = f"a setting is written {key}=VALUE." if key in settings() else f"not a setting: KEY=VALUE.{nearest(key)}"
        raise ConfigError(f"{word}: {hint}")
    if not key:
        raise ConfigError(f"{word}: there is no name before the =: KEY=VALUE.")
    if key.startswith(("hydra/", "hydra.")):
        raise ConfigError(
            f"{word}: Hydra's settings are for its launchers (kdrun train -m hydra/launcher=…); here it does nothing."
        )
    if key.startswith("pair.") or key == "method._name_":
        raise ConfigError(f"{word}: it is chosen by its name: {key.partition('.')[0]}=NAME.")
    if key.partition(".")[0] in OF_SWEEPS:
        raise ConfigError(f"{word}: {key} is a setting of sweeps: kdrun train -m … or sweep=NAME.")


def _choice(group: str, value: str, config_dir: str | None, several: bool) -> str:
    """Return the name, or the names, that a group is given. Raises ConfigError for what is none, of which Hydra would
    take a list as several choices, the last of which wins."""
    if several and re.match(r"(choice|range|glob|interval|sort|shuffle|tag)\(", value):
        return value  # Hydra's own ways of naming several
    if value.startswith("["):
        together = "; for their sum: method=combine 'method.parts=[kd,at]'" if group == "method" else ""
        each = f"kdrun train -m {group}={value.strip('[] ')}"
        raise ConfigError(f"{group}={value}: a run has one {group}; for a run of each: {each}{together}")
    if value in ("", "null") or value.startswith("{"):
        raise ConfigError(f"{group}={value}: choose one by its name (kdrun list), or leave it out for its default.")
    names = [name.strip() for name in value.split(",")] if several else [value]
    if group == "method":
        names = [resolve_alias(name, config_dir) for name in names]
    for name in names if group == "recipe" else ():
        if not has_recipe(name, config_dir):
            raise ConfigError(f"recipe={name}: no such recipe.{suggest(name, group_files('recipe', config_dir))}")
    return ",".join(name if is_word(name) or is_quoted(name) else quoted(name) for name in names)


def is_word(text: str) -> bool:
    """Return True where Hydra's grammar reads a text as text: neither a number nor null, and not in need of quotes."""
    return bool(PLAIN.fullmatch(text)) and not re.fullmatch(
        r"(?i)null|true|false|[+-]?(nan|inf|[\d._]+(e[+-]?\d+)?)", text
    )


def _path(value: str, several: bool) -> str:
    """Return a path in quotes, or where several may be given, each of them unless all together are one file."""
    if value in ("null", "true", "false") or (is_quoted(value) and not Path(value).exists()):
        return value
    if several and "," in value and not Path(os.path.expanduser(value)).exists():
        return ",".join(_path(part, False) for part in value.split(","))
    return quoted(value)


def is_quoted(text: str) -> bool:
    """Return True for what stands between quotes of Hydra's."""
    return len(text) > 1 and text[0] == text[-1] and text[0] in "'\""


def quoted(text: str) -> str:
    """Return `text` in Hydra's quotes, within which a backslash matters before a quote alone."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def unquoted(word: str) -> str:
    """Return a word of a path as it is typed, from Hydra's grammar; any other as it is."""
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
    """Return the error for a word that Hydra's grammar cannot read."""
    key, _, value = word.lstrip("+").partition("=")
    if value.startswith(("[", "{")) or "${" in value:
        return ConfigError(
            f"{key}={value}: cannot be read. A list is [a,b], settings are {{a: 1}}, a reference is ${{seed}}; other "
            f"text goes in quotes of its own, as in '{key}=[\"a, b\"]'."
        )
    return ConfigError(f"{key}={value}: cannot be read; put the value in quotes of its own: '{key}=\"{value}\"'.")


def seeds_of(words: Iterable[str], otherwise: tuple[int, ...] = (0, 1, 2)) -> tuple[list[int], list[str]]:
    """Return (the values of seed=0,1,2, or others where it is not given; the other words). Raises ConfigError."""
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
