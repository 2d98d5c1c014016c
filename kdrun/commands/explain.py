"""kdrun explain: a method's paper, equation, settings and published numbers, from its own docstring and YAML; or what a
setting means."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import NoOptions, parse
from kdrun.config.explained import Explained, explain_setting
from kdrun.config.groups import group_files, read_yaml
from kdrun.config.method_schema import hyperparameters, read_method, sections
from kdrun.config.words import resolve_alias
from kdrun.errors import ConfigError, suggest
from kdrun.runs.published import Published, published

HELP = """
usage: kdrun explain method=NAME [--config-dir FOLDER]
       kdrun explain KEY …

Of a method: paper, equation, every hyperparameter with its default here and where that comes from, published
accuracies, and where public implementations disagree. Of a setting (optimizer.lr, dataset.resize, method.temperature):
what it means, its type or choices, its bounds and its default; of a group (optimizer, dataset): all of its settings.
kdrun list settings shows every one.
"""


def command(words: list[str]) -> int:
    parsed = parse("explain", words, NoOptions, passes=True)
    files = group_files("method", parsed.config_dir)
    if not parsed.names and not parsed.rest:
        raise ConfigError(
            "explain what? Give a setting (kdrun list settings), or method=NAME; there are: "
            f"{', '.join(sorted(files))}."
        )
    for word in (*parsed.names, *(f"method={value}" if key == "method" else key for key, value in parsed.rest.items())):
        key, equals, value = word.partition("=")
        name = resolve_alias(value if equals else key, parsed.config_dir)
        if equals and name not in files:
            raise ConfigError(
                f"method={name}: no such method.{suggest(name, files)} There are: {', '.join(sorted(files))}."
            )
        if name in files:
            explain(name, files[name])
        else:
            show_settings(explain_setting(word, parsed.config_dir, tuple(files)))
    return 0


def show_settings(found: list[Explained]) -> None:
    """Print one setting by lines, several as a table under the first."""
    first = found[0]
    if len(found) > 1 and not first.default:
        console.say(f"[bold]{escape(first.key)}[/]  {escape(first.meaning)} ({escape(first.kind)})\n")
        found = found[1:]
    if len(found) > 1:
        rows = [[item.key, item.kind, item.bounds, item.default, item.meaning] for item in found]
        console.table("", ["setting", "type", "bounds", "default", "meaning"], rows)
        return
    item = found[0]
    console.say(f"[bold]{escape(item.key)}[/]  {escape(item.meaning)}\n")
    others = ", ".join(f"{value} ({name})" for name, value in item.others)
    lines = {"type": item.kind, "bounds": item.bounds, "default": item.default, "values": others}
    for name, line in lines.items():
        if line:
            console.fact(f"{name:<8}", line)


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
