"""Trust in received runs. A received run is only data: its user code is executed if it was trained under this
account and is unchanged, or if the user says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from kdrun.config.method_schema import is_ours
from kdrun.config.options import RunConfig
from kdrun.config.own_code import Finder, changed, digests, module_of, own_code
from kdrun.errors import ConfigError, listed, print_note
from kdrun.runs.code_record import recorded
from kdrun.runs.directory import short_path
from kdrun.runs.trust import sign, signed_code


def own_parts(config: RunConfig, parts: Iterable[str]) -> dict[str, str]:
    """Return name of the code -> its module, for those of `parts` (student, teacher, method) that belong neither to
    kdrun nor to timm or torchvision."""
    found = {}
    for part in parts:
        if part != "method":
            name = getattr(config, part).name
            found |= {f"{part}={name}": module} if (module := module_of(name)) is not None else {}
            continue
        for node in (config.method, *(config.method.get("parts") or ())):
            target = str(node["_target_"])
            found |= {} if is_ours(target) else {f"method._target_={target}": target.rpartition(".")[0]}
    return found


def code_now(config: RunConfig, parts: Iterable[str]) -> dict[str, str]:
    """Return name -> SHA-256 of the user's own files from which these parts of a run would be built now."""
    return digests(own_code(own_parts(config, parts).values()))


def changed_code(run: Path, config: RunConfig, parts: Iterable[str]) -> str:
    """Return a line that names the files that have changed since the run; an empty string if none has."""
    if (before := recorded(run).files) is None:
        return ""
    now, named = code_now(config, parts), short_path(run)
    names = changed(now, {name: before[name] for name in now if name in before})
    use = f"its weights are loaded into the current code, not that of {named}/code."
    line = f"{', '.join(names)} changed since {named} was trained; {use}"
    return line if names else ""


def refusal(run: Path, config: RunConfig, parts: Sequence[str]) -> str:
    """Return which user code a run would execute for `parts`, and why it may not; an empty string if it may."""
    own = own_parts(config, parts)
    if not own:
        return ""
    signed, now = signed_code(run), code_now(config, parts)
    if signed is None:
        return f"it would run {whereabouts(own)}, but was not trained under this account"
    others = sorted(name for name in now if signed.get(name) != now[name])
    return f"it would run {whereabouts(own)}, but {listed(others)} changed since" if others else ""


def whereabouts(own: dict[str, str]) -> str:
    """Return the names of the code, each with its file."""
    places = [(words, Finder().find(module)) for words, module in own.items()]
    files = [(words, place and place.file and short_path(Path(place.file))) for words, place in places]
    return " and ".join(f"{words} ({file or 'not found here'})" for words, file in files)


def permit(run: Path, config: RunConfig, parts: Iterable[str], trust: bool) -> None:
    """Raise ConfigError if a run's own code may not be executed. trust: print what is executed, and sign the run, so
    that this need not be repeated as long as neither its configuration nor that code changes."""
    parts = list(parts)
    refused = refusal(run, config, parts)
    if refused and not trust:
        raise ConfigError(f"{short_path(run)} is not executed: {refused}. If you trust that code, add trust=true.")
    if refused:
        print_note(f"trust=true: {short_path(run)} may run {whereabouts(own_parts(config, parts))} from now on.")
    if trust and (refused or signed_code(run) is None):
        sign(run, code_now(config, ("student", "teacher", "method")))
