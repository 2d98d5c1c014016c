"""kdrun explain: show a method's paper, equation, settings and published numbers from its docstring and YAML; or the
meaning of a setting."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import NoOptions, parse
from kdrun.config.explained import Explained, explain_setting, shown
from kdrun.config.groups import GROUPS, group_files, read_yaml
from kdrun.config.method_schema import hyperparameters, read_method, sections
from kdrun.config.words import resolve_alias
from kdrun.errors import ConfigError, suggest
from kdrun.runs.published import Published, published

HELP = """
usage: kdrun explain method=NAME [--config-dir FOLDER]
       kdrun explain KEY|GROUP=NAME …

For a method: paper, equation, every hyperparameter with its default and the source of that, published accuracies, and
differences between public implementations. For a setting (optimizer.lr, dataset.resize, method.temperature): its
meaning, type or choices, bounds and default; for a group (optimizer, dataset): all of its settings; for one of its
names (dataset=cifar100, benchmark=p3): its file.
kdrun list settings shows all settings.
"""


def command(words: list[str]) -> int:
    parsed = parse("explain", words, NoOptions, passes=True)
    files = group_files("method", parsed.config_dir)
    if not parsed.names and not parsed.rest:
        raise ConfigError(
            f"explain needs a setting (kdrun list settings), or method=NAME with one of: {', '.join(sorted(files))}."
        )
    for word in (*parsed.names, *parsed.overrides):
        key, equals, value = word.partition("=")
        chosen = bool(equals) and key in GROUPS
        name = resolve_alias(value if chosen else key, parsed.config_dir)
        if chosen and key != "method":
            show_file(chosen_file(key, value, parsed.config_dir))
        elif chosen or name in files:
            explain(name, chosen_file("method", name, parsed.config_dir))
        else:
            show_settings(explain_setting(key, parsed.config_dir, tuple(files)))
    return 0


def chosen_file(group: str, name: str, config_dir: str | None) -> Path:
    """Return the file that `group=name` reads. Raises ConfigError if there is none."""
    files = group_files(group, config_dir)
    if name not in files:
        raise ConfigError(
            f"{group}={name}: no such {group}.{suggest(name, files)} Available: {', '.join(sorted(files))}."
        )
    return files[name]


def show_file(path: Path) -> None:
    console.say(escape(path.read_text().rstrip()))


def show_settings(found: list[Explained]) -> None:
    """Print one setting as lines; several as a table below the first."""
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
    """Print a method's description from its docstring, its YAML and the published tables; missing sections are left
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
        rows = [[f"method.{key}", shown(value), meanings.get(key, "")] for key, value in settings.items()]
        console.table("", ["setting", "default", "meaning, and source of the default"], rows)
        console.say("")
    if parts.get("Disagreements"):
        console.say("[bold]where public implementations disagree[/]")
        console.say(escape(f"  {' '.join(parts['Disagreements'].split())}") + "\n")
    rows = [row_of(item) for item in published() if item.method == name and item.metric == "top1"]
    if rows:
        columns = ["benchmark", "data set", "teacher", "student", "top-1, %", "epoch", "source"]
        console.table("published", columns, rows)
        console.note("To run one of these pairs: kdrun train benchmark=… pair=TEACHER_STUDENT method=" + name)


def row_of(item: Published) -> list[str]:
    value = f"{item.value:.2f}" + (f" ± {item.std:.2f}" if item.std is not None else "")
    return [item.benchmark, item.dataset, item.teacher or "–", item.student, value, item.selection, item.source]
