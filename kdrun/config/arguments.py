"""The words of a command line: flags, names, key=value settings, and a command's own enumerations among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdrun.config.schema import check_value
from kdrun.errors import ConfigError, suggest


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """(Hydra's flags with their values, overrides, --config-dir)."""
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
            if word in ("--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--info", "-i") and pending:
                flags.append(pending.pop(0))
        else:
            overrides.append(word)
    return flags, overrides, config_dir


def names_and_settings(words: Sequence[str]) -> tuple[list[str], dict[str, str], str | None]:
    """(names, key -> value, --config-dir) of a command that takes runs or files, and settings."""
    _, overrides, config_dir = split_arguments(words)
    settings = {key: value for key, _, value in (word.partition("=") for word in overrides if "=" in word)}
    return [word for word in overrides if "=" not in word], settings, config_dir


def take_choices(settings: dict[str, str], choices: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """A command's own enumerations, taken out of `settings`: key -> the value, the first choice where there is none.
    Raises ConfigError for one that is no choice."""
    own = {name: settings.pop(name, values[0]) for name, values in choices.items()}
    for name, values in choices.items():
        check_value(name, own[name], {"choices": values})
    return own


def read_words(command: str, words: list[str], keys: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """(names, the key=value words) of a command on ledgers or runs, whose folders may hold an equals sign. Raises
    ConfigError for a key that it does not take."""
    names = [word for word in words if "=" not in word or Path(word).exists()]
    settings = {key: value for key, _, value in (word.partition("=") for word in words if word not in names)}
    for key in settings:
        if key not in keys:
            raise ConfigError(f"{key}: {command} takes {', '.join(keys)}.{suggest(key, keys)}")
    return names, settings
