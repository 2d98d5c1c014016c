"""kdrun where: print the directory that `kdrun train` with the same arguments uses, for scripts."""

from __future__ import annotations

import shlex

from kdrun.config.arguments import NoOptions, parse
from kdrun.config.compose import load
from kdrun.errors import ConfigError, RunError, suggest
from kdrun.runs.directory import short_path
from kdrun.runs.plan import make_plan

HELP = """
usage: kdrun where run|teacher [key=value …]

Prints only the directory of the run that `kdrun train` with these arguments creates, or of its teacher; exit code 1 if
it is not finished yet. For scripts:

kdrun eval "$(kdrun where run method=dkd teacher=vgg16 seed=1)"
kdrun train teacher.checkpoint="$(kdrun where teacher teacher=vgg16)/teacher.safetensors" teacher=vgg16 method=crd
"""

KINDS = ("run", "teacher")


def command(words: list[str]) -> int:
    parsed = parse("where", words, NoOptions, passes=True)
    kind, rest = (parsed.names or [""])[0], [*parsed.names[1:], *parsed.overrides]
    if kind not in KINDS:
        named = f"where {kind}: " if kind else "where: "
        raise ConfigError(f"{named}give run or teacher before any key=value.{suggest(kind, KINDS)}")
    plan = make_plan(load(rest, parsed.config_dir), rest)
    found = plan.run if kind == "run" else plan.teacher_run
    if found is None:
        teacher = plan.config.teacher
        why = (
            f"method={plan.method.name} has no stored teacher"
            if plan.teacher_digest is None
            else "it is not trained"
            if teacher.random
            else f"it is the file {teacher.checkpoint}"
        )
        raise ConfigError(f"where teacher: it has no directory: {why}.")
    if not found.finished:
        raise RunError(f"{short_path(found.path)} is not finished: kdrun train {shlex.join(rest)}".rstrip())
    print(short_path(found.path))
    return 0
