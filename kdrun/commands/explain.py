"""kdrun explain: a method's paper, equation, settings and published numbers, from its own docstring and YAML."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import NoOptions, parse
from kdrun.config.groups import group_files, read_yaml
from kdrun.config.method_schema import hyperparameters, read_method, sections
from kdrun.config.words import resolve_alias
from kdrun.errors import ConfigError, suggest
from kdrun.runs.published import Published, published

HELP = """
usage: kdrun explain method=NAME [--config-dir FOLDER]

Paper, equation, every hyperparameter with its default here and where that comes from, published accuracies, and where
public implementations disagree.
"""


def command(words: list[str]) -> int:
    parsed = parse("explain", words, NoOptions, passes=("method",))
    asked = [resolve_alias(name, parsed.config_dir) for name in (*parsed.names, *parsed.rest.values())]
    files = group_files("method", parsed.config_dir)
    if not asked:
        raise ConfigError(f"explain what? Give method=NAME; there are: {', '.join(sorted(files))}.")
    for name in asked:
        if name not in files:
            raise ConfigError(
                f"method={name}: no such method.{suggest(name, files)} There are: {', '.join(sorted(files))}."
            )
        explain(name, files[name])
    return 0


def explain(name: str, path: Path) -> None:
    """Print what the docstring, the YAML and the published tables say of a method; a section that is missing is left
    out."""
    settings = read_yaml(path)
    source = read_method(settings.pop("_target_"))
    parts = sections(source.doc)
    console.say(f"[bold]{name}[/]  {escape(' '.join(parts[''].split()) or 'has no docstring.')}\n")
    if parts.get("Paper"):
        console.say(f"[bold]paper[/]  {escape(' '.join(parts['Paper'].split()))}\n")
    if parts.get("Equation"):
        console.say("[bold]equation[/]")
        console.say(escape("\n".join(f"  {line}" for line in parts["Equation"].splitlines())) + "\n")
    meanings = hyperparameters(parts.get("Hyperparameters", ""))
    if settings:
        rows = [[f"method.{key}", str(value), meanings.get(key, "")] for key, value in settings.items()]
        console.table("", ["setting", "default", "meaning, and where the number comes from"], rows)
        console.say("")
    if parts.get("Disagreements"):
        console.say("[bold]where public code disagrees[/]")
        console.say(escape(f"  {' '.join(parts['Disagreements'].split())}") + "\n")
    rows = [row_of(item) for item in published() if item.method == name and item.metric == "top1"]
    if rows:
        columns = ["benchmark", "data set", "teacher", "student", "top-1, %", "epoch", "source"]
        console.table("published", columns, rows)
        console.note("A pair of these runs as: kdrun train benchmark=… pair=TEACHER_STUDENT method=" + name)


def row_of(item: Published) -> list[str]:
    value = f"{item.value:.2f}" + (f" ± {item.std:.2f}" if item.std is not None else "")
    return [item.benchmark, item.dataset, item.teacher or "–", item.student, value, item.selection, item.source]
