"""Composition with Hydra: search paths, from command-line arguments to configurations, and Hydra's errors as one
line each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from kdrun.config.arguments import split_arguments
from kdrun.config.groups import (
    MODEL_GROUPS,
    choices,
    conf_dir,
    group_file,
    group_files,
    has_recipe,
    published_methods,
)
from kdrun.config.method_schema import method_of, yaml_name
from kdrun.config.options import RunConfig
from kdrun.config.schema import check
from kdrun.config.settings import fault, unknown
from kdrun.config.words import resolve_alias, rewrite, search_override, unreadable
from kdrun.errors import ConfigError, one_line, suggest


def register() -> None:
    """Register the schema, and the names that are not files, with Hydra. Harmless when repeated."""
    from hydra.core.config_store import ConfigStore

    from kdrun.config.hydra_source import register_source

    register_source()
    ConfigStore.instance().store(name="schema", node=RunConfig)


class MultirunAsked(Exception):
    """Composed configuration that is a sweep (hydra.mode=MULTIRUN in an overlay)."""


def compose(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """Compose the configuration for `overrides`, without checking it. Raises ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            found = hydra_compose(
                "config", [*rewrite(overrides, config_dir), *search_override(config_dir)], return_hydra_config=True
            )
    except UnicodeDecodeError as error:
        raise ConfigError(f"{no_text(config_dir)}: not valid YAML ({one_line(error)}).") from error
    except Exception as error:
        raise translate(error) from error
    with open_dict(found):
        hydra = found.pop("hydra")
    if hydra.mode is not None and hydra.mode.name == "MULTIRUN":
        raise MultirunAsked
    keep_choices(found, hydra.runtime.choices, config_dir)
    return found


def keep_choices(cfg: DictConfig, choices: Mapping[str, Any], config_dir: str | None) -> None:
    """Record the name by which the method was chosen in its node. Raises ConfigError as `check_own_name` does."""
    for group, name in choices.items():
        check_own_name(group.partition("@")[0], name, config_dir)
    if isinstance(cfg.get("method"), DictConfig):
        with open_dict(cfg):
            cfg.method._name_ = choices.get("method")


def check_own_name(group: str, name: Any, config_dir: str | None) -> None:
    """Raise ConfigError if the user has a file of the same name as one of kdrun's: Hydra would silently take
    kdrun's."""
    ours = group_file(group, str(name), conf_dir())
    own = group_file(group, str(name), Path(config_dir)) if config_dir else None
    if ours and own and ours.read_bytes() != own.read_bytes():
        raise ConfigError(f"{own}: kdrun already has {group}={name}; give yours another name.")


def load(overrides: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """Compose and check a configuration. Raises ConfigError."""
    return checked(compose(overrides, config_dir), config_dir)


def no_text(config_dir: str | None) -> str:
    """Return the user's YAML file that is not valid text; the codec's error does not name it."""
    for path in sorted(Path(config_dir).rglob("*.yaml")) if config_dir else []:
        try:
            path.read_text()
        except (OSError, ValueError):
            return str(path)
    return "a YAML file"


def checked(cfg: DictConfig, config_dir: str | None = None) -> RunConfig:
    """Run `check`, and require a recipe for a published cell: Hydra's defaults list silently ignores a missing one."""
    name_parts(cfg, config_dir)
    config = check(cfg)
    if config.benchmark is None or config.pair is None or not method_of(config.method).needs_teacher:
        return config
    benchmark, pair, name = config.benchmark, config.pair.name, yaml_name(config.method)
    if not has_recipe(f"{benchmark}_{pair}_{name}", config_dir):
        known = published_methods(benchmark, pair, config_dir)
        there = f"published: {', '.join(known)}" if known else "nothing is published for it"
        raise ConfigError(
            f"benchmark={benchmark} publishes no {name} for pair={pair} ({there}): leave out benchmark= and set the "
            f"method's values yourself, or add conf/recipe/{benchmark}_{pair}_{name}.yaml."
        )
    return config


def name_parts(cfg: DictConfig, config_dir: str | None) -> None:
    """Replace each part's name in a sum of methods by all settings of conf/method/NAME.yaml, below those given."""
    parts = cfg.method.get("parts") if isinstance(cfg.get("method"), DictConfig) else None
    if parts is None or isinstance(parts, str | int | float):
        return
    files = group_files("method", config_dir)
    named = []
    for position, part in enumerate(OmegaConf.to_container(parts) or []):
        given = dict(part) if isinstance(part, dict) else {"method": part}
        name = given.pop("method", None)
        if "_target_" not in given:
            name = None if name is None else resolve_alias(str(name), config_dir)
            if name not in files:
                raise ConfigError(
                    f"method.parts[{position}]={part}: no such method.{suggest(str(name), files)} A part is a name or "
                    "{method: NAME, weight: 1.0, setting: value}."
                )
            check_own_name("method", name, config_dir)
            given = {"_name_": name, **OmegaConf.to_container(OmegaConf.load(files[name])), **given}  # type: ignore[dict-item]
        named.append(given)
    with open_dict(cfg):
        cfg.method.parts = named


def run_app(task: Callable[[DictConfig], Any], arguments: Sequence[str]) -> None:
    """Run Hydra on the command line. It calls `task` once, or once per job of a multirun."""
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()
    flags, overrides, config_dir = split_arguments(arguments)
    words = rewrite(overrides, config_dir, several=not {"-m", "--multirun"}.isdisjoint(flags), hydra=True)
    saved, sys.argv = sys.argv, ["kdrun train", *flags, *words, *search_override(config_dir)]
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(task)()
    except Exception as error:
        raise translate(error) from error
    finally:
        sys.argv = saved


def translate(error: BaseException) -> Exception:
    """Translate Hydra's and OmegaConf's exceptions into one line that names the setting, the value and the way out."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override))
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, OmegaConfBaseException):
        return ConfigError(fault(error))
    if isinstance(error, YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f"{Path(mark.name).name}, line {mark.line + 1}" if mark else "a YAML file"
        return ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or one_line(error)}).")
    if not isinstance(error, HydraException):
        return error if isinstance(error, Exception) else ConfigError(one_line(error))
    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return ConfigError(unknown(found.group(1)))
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        word = found.group(1)
        return ConfigError(f"{word}: several values need a multirun: kdrun train -m {word} (write a list as [a,b]).")
    if "Error resolving interpolation" in text and "${method}" in text:
        return ConfigError("method, benchmark and pair cannot be removed: choose method=none for no distillation.")
    if found := re.search(r"In '([^']+)': .*Key '([^']+)' not in .*full_key: (\S+)", text, re.DOTALL):
        return ConfigError(f"{found.group(1)}.yaml: {unknown(found.group(3))}")
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return ConfigError(fault(cause))
    return ConfigError(" ".join(line.strip() for line in text.splitlines() if line.strip())[:300])


def _missing_choice(error: Any) -> ConfigError:
    group, _, name = str(error.missing_cfg_file or "").rpartition("/")
    if not group:
        return ConfigError(one_line(error))
    options = [option for option in (error.options or []) if option != "any"] or choices(group)
    more = " Others: timm:NAME, torchvision:NAME or package.module:callable." if group in MODEL_GROUPS else ""
    listed = f" Available: {', '.join(options)}." if options else ""
    return ConfigError(f"{group}={name}: no such {group}.{suggest(name, options)}{listed}{more}")
