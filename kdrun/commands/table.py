"""kdrun table: what a sweep, or any set of runs, came to."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from kdrun import console
from kdrun.errors import ConfigError, suggest
from kdrun.reporting.formats import FORMATS, save
from kdrun.reporting.results import SELECTIONS
from kdrun.reporting.runs_table import ledger_of_runs
from kdrun.reporting.table import Table, table_of
from kdrun.reporting.text import to_text
from kdrun.runs.directory import find_runs, outputs_folder, short_path
from kdrun.runs.ledger import Ledger, known_ledgers, read_ledger

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
KEYS = ("value", "against", "baseline", "save", "output_root")


def command(words: list[str]) -> int:
    names, settings = read_words("table", words)
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


def read_words(command: str, words: list[str], keys: tuple[str, ...] = KEYS) -> tuple[list[str], dict[str, str]]:
    """(names, the key=value words) of a command on ledgers or runs, whose folders may hold an equals sign. Raises
    ConfigError for a key that it does not take."""
    names = [word for word in words if "=" not in word or Path(word).exists()]
    settings = {key: value for key, _, value in (word.partition("=") for word in words if word not in names)}
    for key in settings:
        if key not in keys:
            raise ConfigError(f"{key}: {command} takes {', '.join(keys)}.{suggest(key, keys)}")
    return names, settings


def chosen_ledger(names: list[str], settings: dict[str, str], root: Path) -> tuple[Ledger, list[str]]:
    """What `find_ledger` finds, in the shape that value=, against= and baseline= ask for. Raises ConfigError."""
    ledger, foreign = find_ledger(names, root)
    rows = {key: row_named(key, settings[key], ledger) for key in ("against", "baseline") if key in settings}
    ledger.shape = replace(ledger.shape, value=settings.get("value", ledger.shape.value), **rows)
    return ledger, foreign


def files_to_save(value: str) -> list[Path]:
    """The files of save=. Raises ConfigError for an ending that is no format, before anything is read."""
    files = [Path(name).expanduser() for name in value.split(",") if name]
    for place in files:
        if place.suffix not in FORMATS:
            raise ConfigError(f"save={place}: no such format. Endings: {', '.join(FORMATS)}.")
    return files


def row_named(key: str, value: str, ledger: Ledger) -> str:
    """The row that a user means, in whatever case. Raises ConfigError."""
    rows = list(dict.fromkeys(cell.row for cell in ledger.cells))
    same = [row for row in rows if row == value] or [row for row in rows if row.lower() == value.lower()]
    if not same:
        raise ConfigError(f"{key}={value}: no such row.{suggest(value, rows)} There are: {', '.join(rows)}.")
    return same[0]


def show_known(root: Path) -> None:
    names = known_ledgers(root)
    if names:
        console.say("[bold]tables[/]  " + ", ".join(names))
    else:
        console.note(f"{root}/sweeps holds no sweep yet. Of any runs: kdrun table '{root}/runs/*/*/*/*'")


def defined_sweeps() -> list[str]:
    """The sweeps of conf/sweep; reading configurations is slow to import, and needed for an error alone."""
    from kdrun.sweeps.definition import sweep_names

    return sweep_names()


def find_ledger(names: list[str], root: Path) -> tuple[Ledger, list[str]]:
    """The named ledger, or one of the runs that the words name; with the folders among them that are no runs."""
    known = known_ledgers(root)
    if len(names) == 1 and (names[0] in known or not looks_like_runs(names[0])):
        return read_ledger(root, names[0], defined_sweeps), []
    both = [name for name in names if name in known and not looks_like_runs(name)]
    if both:
        raise ConfigError(f"{both[0]} is a sweep's table: show it alone (kdrun table {both[0]}), or give runs only.")
    runs: list[Path] = []
    foreign: list[str] = []
    for name in names:
        if Path(name).is_dir() and not (Path(name) / "config.yaml").is_file():
            foreign.append(f"{name}: not a run (no config.yaml).")
        else:
            runs += find_runs(name, root)
    if not runs:
        raise ConfigError(
            f"RUN {' '.join(names)}: no run among these folders (a run holds config.yaml): kdrun list runs."
        )
    return ledger_of_runs(runs, root), foreign


def looks_like_runs(name: str) -> bool:
    """A path, a glob or a digest, rather than a ledger's name."""
    return bool(Path(name).is_dir() or any(sign in name for sign in "*?[/") or re.fullmatch(r"[0-9a-f]{4,64}", name))


def show(table: Table) -> None:
    """On a terminal the best is bold, and the header stands out."""
    from rich.markup import escape

    text = to_text(table, console.out.width, strong=lambda cell: f"\x00{cell}\x01")
    title, _, rest = text.partition("\n")
    marked = f"[bold]{escape(title)}[/]\n{escape(rest.rstrip())}"
    console.say(marked.replace("\x00", "[bold]").replace("\x01", "[/]"))
