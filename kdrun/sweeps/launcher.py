"""Launcher settings of a sweep on the command line."""

from __future__ import annotations

from kdrun.config.options import LAUNCHERS
from kdrun.errors import ConfigError, suggest


def split_launcher(overrides: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split off the launcher: return ({"launcher": …, and its settings}, the other overrides). Raises ConfigError
    for an unknown setting."""
    launcher, rest = {"launcher": "lanes"}, []
    for word in overrides:
        key, _, value = word.partition("=")
        if key in ("launcher", "hydra/launcher"):
            launcher["launcher"] = value
        elif key.startswith("launcher."):
            launcher[key.removeprefix("launcher.")] = value
        else:
            rest.append(word)
    kind = launcher["launcher"]
    if kind not in LAUNCHERS:
        raise ConfigError(
            f"launcher={kind}: no such launcher.{suggest(kind, LAUNCHERS)} Available: {', '.join(LAUNCHERS)}."
        )
    processes = launcher.get("processes", "auto")
    if processes != "auto" and not processes.isdecimal():
        raise ConfigError(f"launcher.processes={processes}: must be auto or a whole number, at least 0.")
    per_run = launcher.get("gpus_per_run", "1")
    if not per_run.isdecimal() or int(per_run) == 0:
        raise ConfigError(f"launcher.gpus_per_run={per_run}: must be a whole number, at least 1.")
    known = ["launcher.processes", "launcher.gpus_per_run"]
    for key in set(launcher) - {"launcher", "processes", "gpus_per_run"} if kind == "lanes" else ():
        raise ConfigError(
            f"launcher.{key}: no such setting.{suggest(f'launcher.{key}', known)} "
            f"The lanes launcher has {' and '.join(known)}."
        )
    return launcher, rest
