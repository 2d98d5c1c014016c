"""kdrun completion: complete arguments in a shell, from the same groups, settings and tables that the commands read."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

from kdrun.commands import COMMANDS
from kdrun.config.arguments import NoOptions, plain_type
from kdrun.config.groups import GROUPS, choices
from kdrun.config.method_schema import read_method
from kdrun.config.options import LAUNCHERS
from kdrun.config.settings import OF_TRAIN, method_settings, settings
from kdrun.config.words import ALIASES
from kdrun.errors import ConfigError, KdrunError, suggest
from kdrun.runs.directory import outputs_folder
from kdrun.runs.ledger import known_ledgers

HELP = """
usage: kdrun completion bash|zsh|fish

Prints a script with which Tab completes commands, settings, and the names of methods, networks, data sets, sweeps and
tables:

  bash   eval "$(kdrun completion bash)"           in ~/.bashrc
  zsh    eval "$(kdrun completion zsh)"            in ~/.zshrc, after compinit
  fish   kdrun completion fish | source            in ~/.config/fish/config.fish
"""

BASH = """_kdrun() {
  local line="${COMP_LINE:0:COMP_POINT}" word words
  read -ra words <<< "$line"
  [[ "$line" == *" " ]] && words+=("")
  word="${words[-1]}"
  local IFS=$'\\n'
  COMPREPLY=($(kdrun completion words "${words[@]:1}" 2>/dev/null))
  if [[ ${#COMPREPLY[@]} -eq 0 ]]; then
    COMPREPLY=($(compgen -f -- "${word##*=}")); return
  fi
  [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
  # bash ends a word at =, so the part before it must not be repeated
  [[ "$word" == *=* && "$COMP_WORDBREAKS" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
}
complete -F _kdrun kdrun
"""
ZSH = """_kdrun() {
  local -a found
  found=("${(@f)$(kdrun completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  found=(${found:#})
  if (( ${#found} )); then
    compadd -S '' -- ${(M)found:#*[=.]}
    compadd -- ${found:#*[=.]}
  else
    _files
  fi
}
compdef _kdrun kdrun
"""
FISH = """function __kdrun_words
  set -l words (commandline -opc)
  kdrun completion words $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c kdrun -f -a '(__kdrun_words)'
complete -c kdrun -n 'not __kdrun_words | string length -q' -F
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def command(words: list[str]) -> int:
    """Print a shell's completion script; `words …` is the request that the script makes at each Tab."""
    if words[:1] == ["words"]:
        print("\n".join(sorted(set(matching(words[1:])))))
        return 0
    shell = words[0] if words else ""
    if shell not in SHELLS or len(words) > 1:
        given = f"completion {' '.join(words)}: no such shell.{suggest(shell, SHELLS)} " if words else ""
        raise ConfigError(f"{given}completion takes one of {', '.join(SHELLS)}.")
    print(SHELLS[shell], end="")
    return 0


def matching(typed: Sequence[str]) -> list[str]:
    """Return the completions of the last argument typed so far; none if it is a file name."""
    last = typed[-1] if typed else ""
    try:
        found = dict.fromkeys(up_to_a_dot(word, last) for word in candidates(list(typed)) if word.startswith(last))
        return [word for word in found if word != last]
    except (KdrunError, OSError):  # a wrong --config-dir, or an unreadable folder
        return []


def up_to_a_dot(word: str, typed: str) -> str:
    """Return a setting's name one level deeper than typed, like the completion of a folder."""
    head, dot, _ = word[len(typed) :].partition(".")
    return word if "=" in typed or not dot or "=" in head else f"{typed}{head}."


def candidates(typed: list[str]) -> Iterable[str]:
    if len(typed) < 2:
        return COMMANDS
    name, last = typed[0], typed[-1]
    if name not in COMMANDS:
        return []
    module = importlib.import_module(f"kdrun.commands.{name}")
    options = getattr(module, "Options", NoOptions)
    key, equals, _ = last.partition("=")
    if equals:
        before = last[: last.rfind(",") + 1] or f"{key}="  # complete the last of several values
        return [f"{before}{value}" for value in values_of(key, name, options)]
    own = [f"{field.name}=" for field in dataclasses.fields(options)]
    return [*own, *words_of(name, module)]


def words_of(name: str, module: Any) -> list[str]:
    """Return the arguments of a command other than its own settings."""
    if name in ("train", "tune"):
        return [*(["-m"] if name == "train" else []), "--help", *keys()]
    if name == "list":
        return list(module.KINDS)
    if name == "explain":
        return [*methods(), "method=", *settings(), *method_settings(), *OF_TRAIN]
    if name == "completion":
        return list(SHELLS)
    if name == "runs":
        return list(module.ACTIONS)
    if name in ("table", "report", "status", "bias"):
        tables = known_ledgers(outputs_folder(None))
        return [*tables, *(choices("sweep") if name == "table" else [])]
    if name in ("taps", "where", "check", "testset"):
        return keys()
    return [f"{key}=" for key in ("dataset.root", "device", "precision", "output_root")]


def keys() -> list[str]:
    """Return every setting of runs, sweeps and methods, with its equals sign."""
    plain = [key for key, known in settings().items() if not known.is_group or key in GROUPS]
    return [f"{key}=" for key in (*plain, *OF_TRAIN, *method_settings())]


def methods() -> list[str]:
    return [*choices("method"), *ALIASES]


def values_of(key: str, name: str, options: type) -> list[str]:
    """Return the possible values of a setting, if they can be listed."""
    own = {field.name: field for field in dataclasses.fields(options)}
    if key in own:
        rules = own[key].metadata
        kind = plain_type(get_type_hints(options)[key])
        return [*rules.get("choices", ()), *rules.get("words", ()), *(["true", "false"] if kind is bool else [])]
    if key == "method":
        return methods()
    if key == "sweep" or key in GROUPS:
        return choices(key)
    if key == "dry_run":
        return ["true", "false"]
    if key == "launcher":
        return list(LAUNCHERS)
    if key.startswith("method."):
        return literals(key.partition(".")[2])
    known = settings().get(key)
    if known is None:
        return []
    values = list(known.rules.get("choices", ()))
    return [*values, *(["true", "false"] if known.kind is bool else []), *(["null"] if known.optional else [])]


def literals(name: str) -> list[str]:
    """Return the choices of a method's setting."""
    import ast

    from kdrun.config.groups import group_files, read_yaml

    found: list[str] = []
    for path in group_files("method").values():
        annotation = read_method(read_yaml(path)["_target_"]).parameters.get(name, "")
        if annotation.startswith("Literal["):
            found += map(str, ast.literal_eval(f"[{annotation[8:-1]}]"))
        found += ["true", "false"] if annotation == "bool" else []
    return found
