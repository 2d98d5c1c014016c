"""kdrun table: show the results of a sweep, or of any set of runs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import parse
from kdrun.config.groups import choices
from kdrun.config.options import setting
from kdrun.reporting import ledgers
from kdrun.reporting.formats import FORMATS, save
from kdrun.reporting.table import Table, table_of
from kdrun.reporting.text import to_text
from kdrun.runs.directory import outputs_folder, short_path
from kdrun.runs.ledger import Ledger, known_ledgers

HELP = """
usage: kdrun table NAME [key=value …]
       kdrun table RUN … [key=value …]
       kdrun table

NAME is the ledger of a sweep or multirun; without arguments, the existing ones are listed. RUN is a run directory, a
quoted glob of them, or a digest prefix: methods become rows, data sets and pairs columns. The sweep need not be
complete: unfinished cells are empty, and a named sweep that has not started shows its published values.
"""


@dataclass
class Options(ledgers.Options):
    caption: str | None = setting(None, help="LaTeX caption; default: title and description", shows="TEXT")
    label: str | None = setting(None, help="LaTeX label, instead of tab:NAME")
    save: list[Path] = setting([], suffixes=tuple(FORMATS), help="also write the table, in each file's format")


def command(words: list[str]) -> int:
    parsed = parse("table", words, Options)
    root = outputs_folder(parsed.options.output_root)
    if not parsed.names:
        show_known(root)
        return 0
    name = parsed.names[0]
    begun = len(parsed.names) > 1 or name in known_ledgers(root) or name not in choices("sweep", parsed.config_dir)
    if begun:
        ledger, foreign = ledgers.chosen_ledger(parsed.names, parsed.options, root)
    else:
        ledger, foreign = ledgers.shaped(not_begun(name, root, parsed.config_dir), parsed.options), []
    table = table_of(ledger, root)
    table.skipped.extend(foreign)
    show(table)
    for place in parsed.options.save:
        save(table, place, parsed.options.caption, parsed.options.label)
        console.note(f"wrote {short_path(place)}")
    if not begun:
        console.note(f"not started: kdrun train -m sweep={name} trains it; with dry_run=true it estimates the cost.")
        for other in [known for known in known_ledgers(root) if known.startswith(f"{name}-")]:
            console.note(f"started with other settings: kdrun table {other}")
    return 0


def not_begun(name: str, root: Path, config_dir: str | None) -> Ledger:
    """Return the ledger that training a named sweep would write, to show the published values of its cells."""
    from kdrun.sweeps.before import foreseen
    from kdrun.sweeps.definition import named_sweep
    from kdrun.sweeps.run import unwritten_ledger

    sweep = foreseen(named_sweep(name, [f"output_root={root}"], None, config_dir), config_dir)
    return unwritten_ledger(sweep, config_dir, console.track)


def show_known(root: Path) -> None:
    names = known_ledgers(root)
    if names:
        console.say("[bold]tables[/]  " + ", ".join(names))
    else:
        pattern = shlex.quote(f"{root}/runs/*/*/*/*")
        console.note(f"{root}/sweeps has no sweep yet. Table of all runs: kdrun table {pattern}")


def show(table: Table) -> None:
    """Print a table; on a terminal with the best results in bold and a highlighted header."""
    from rich.markup import escape

    text = to_text(table, console.out.width, strong=lambda cell: f"\x00{cell}\x01")
    title, _, rest = text.partition("\n")
    marked = f"[bold]{escape(title)}[/]\n{escape(rest.rstrip())}"
    console.say(marked.replace("\x00", "[bold]").replace("\x01", "[/]"))
