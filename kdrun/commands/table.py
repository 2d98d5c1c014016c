"""kdrun table: what a sweep, or any set of runs, came to."""

from __future__ import annotations

from pathlib import Path

from kdrun import console
from kdrun.config.arguments import read_words
from kdrun.errors import ConfigError
from kdrun.reporting.formats import FORMATS, save
from kdrun.reporting.ledgers import KEYS, chosen_ledger
from kdrun.reporting.results import SELECTIONS
from kdrun.reporting.table import Table, table_of
from kdrun.reporting.text import to_text
from kdrun.runs.directory import outputs_folder, short_path
from kdrun.runs.ledger import known_ledgers

HELP = f"""
usage: kdrun table NAME [key=value …]
       kdrun table RUN … [key=value …]
       kdrun table

NAME is a sweep's or a multirun's ledger; without a word, those that there are. RUN is a run directory, a quoted glob
of them, or a digest prefix: methods become rows, data sets and pairs columns. A table can be shown at any time; cells
that are not done are empty.

  value={"|".join(SELECTIONS)}
  against=ROW    paired tests compare with this row        baseline=ROW   differences are taken to this row
  save=FILE.csv[,FILE.md,FILE.tex,FILE.html]               output_root=FOLDER
"""


def command(words: list[str]) -> int:
    names, settings = read_words("table", words, KEYS)
    root = outputs_folder(settings.get("output_root"))
    files = files_to_save(settings.get("save", ""))
    if not names:
        show_known(root)
        return 0
    ledger, foreign = chosen_ledger(names, settings, root)
    table = table_of(ledger, root)
    table.skipped.extend(foreign)
    show(table)
    for place in files:
        save(table, place)
        console.note(f"wrote {short_path(place)}")
    return 0


def files_to_save(value: str) -> list[Path]:
    """The files of save=. Raises ConfigError for an ending that is no format, before anything is read."""
    files = [Path(name).expanduser() for name in value.split(",") if name]
    for place in files:
        if place.suffix not in FORMATS:
            raise ConfigError(f"save={place}: no such format. Endings: {', '.join(FORMATS)}.")
    return files


def show_known(root: Path) -> None:
    names = known_ledgers(root)
    if names:
        console.say("[bold]tables[/]  " + ", ".join(names))
    else:
        console.note(f"{root}/sweeps holds no sweep yet. Of any runs: kdrun table '{root}/runs/*/*/*/*'")


def show(table: Table) -> None:
    """On a terminal the best is bold, and the header stands out."""
    from rich.markup import escape

    text = to_text(table, console.out.width, strong=lambda cell: f"\x00{cell}\x01")
    title, _, rest = text.partition("\n")
    marked = f"[bold]{escape(title)}[/]\n{escape(rest.rstrip())}"
    console.say(marked.replace("\x00", "[bold]").replace("\x01", "[/]"))
