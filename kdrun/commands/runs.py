"""kdrun runs: tag, annotate and remove runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import output_root_setting, parse
from kdrun.config.options import setting
from kdrun.display import plural, size
from kdrun.errors import ConfigError, suggest
from kdrun.runs.directory import find_runs, outputs_folder, rebuild_results, short_path
from kdrun.runs.marks import check_tag, read_marks, write_marks
from kdrun.runs.tidy import remove_run, size_of

ACTIONS = ("tag", "note", "remove")

HELP = """
usage: kdrun runs tag RUN … tag=NAME,…
       kdrun runs note RUN … text=TEXT
       kdrun runs remove RUN … [yes=true]

RUN is a run directory, a quoted glob of them, or a digest prefix. Tags and notes do not change a run; kdrun list runs
shows both, and kdrun list runs tag=NAME lists the runs with a tag. tag=-NAME removes a tag, text=none a note. remove
shows what it will remove, with its size, and asks; results.csv is then rewritten. If a removed run belongs to a sweep,
the sweep's command trains it again.
"""


@dataclass
class Options:
    tag: list[str] = setting([], help="tags to add; -NAME removes one")
    text: str | None = setting(None, help="the note", shows="TEXT")
    yes: bool = setting(False, help="remove without asking")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("runs", words, Options)
    if not parsed.names or parsed.names[0] not in ACTIONS:
        given = parsed.names[0] if parsed.names else ""
        known = f"runs {given}: no such action.{suggest(given, ACTIONS)} " if given else ""
        raise ConfigError(f"{known}kdrun runs needs one of {', '.join(ACTIONS)}, then RUN …")
    action, names = parsed.names[0], parsed.names[1:]
    if not names:
        raise ConfigError(f"runs {action} needs run directories, a quoted glob or digests (kdrun list runs).")
    root = outputs_folder(parsed.options.output_root)
    runs = list(dict.fromkeys(run for name in names for run in find_runs(name, root)))
    if action == "remove":
        return remove(runs, parsed.options.yes, root)
    mark(action, runs, parsed.options)
    return 0


def mark(action: str, runs: list[Path], options: Options) -> None:
    """Write tags or a note, and print each run's marks."""
    if action == "tag" and not options.tag:
        raise ConfigError("tag is not set: give tag=NAME, or tag=-NAME to remove it.")
    if action == "note" and options.text is None:
        raise ConfigError("text is not set: give text='what you want to remember', or text=none to remove it.")
    tags = [check_tag(tag) for tag in options.tag]
    for run in runs:
        marks = read_marks(run)
        if action == "tag":
            gone = {tag[1:] for tag in tags if tag.startswith("-")}
            added = [tag for tag in tags if not tag.startswith("-")]
            marks.tags = [tag for tag in dict.fromkeys([*marks.tags, *added]) if tag not in gone]
        else:
            marks.note = "" if options.text == "none" else str(options.text)
        write_marks(run, marks)
        console.say(f"[bold]{escape(short_path(run))}[/]  {escape(str(marks) or 'no tags, no note')}")


def remove(runs: list[Path], yes: bool, root: Path) -> int:
    """Show what will be removed, ask, and remove it."""
    sizes = {run: size_of(run) for run in runs}
    console.table(
        "", ["run", "size", "marks"], [[short_path(run), size(sizes[run]), str(read_marks(run))] for run in runs]
    )
    total = f"{plural(len(runs), 'run')}, {size(sum(sizes.values()))}"
    if not yes and not console.confirm(f"remove {total}?"):
        console.note("nothing removed" + ("" if sys.stdin.isatty() else "; yes=true removes without asking"))
        return 0
    for run in runs:
        remove_run(run)
    if (root / "results.csv").is_file():
        rebuild_results(root)
    console.fact("removed", total)
    return 0
