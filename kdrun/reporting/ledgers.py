"""The ledger that the words of kdrun table and report mean: a sweep's, or one made of any runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from kdrun.config.arguments import output_root_setting
from kdrun.config.options import setting
from kdrun.errors import ConfigError, suggest
from kdrun.reporting.results import SELECTIONS
from kdrun.reporting.runs_table import ledger_of_runs
from kdrun.runs.directory import find_runs
from kdrun.runs.ledger import Ledger, known_ledgers, read_ledger


@dataclass
class Options:
    """What kdrun table and kdrun report take alike."""

    value: str | None = setting(None, choices=tuple(SELECTIONS), help="the accuracy that is shown")
    against: str | None = setting(None, help="tests compare with this row", shows="ROW")
    baseline: str | None = setting(None, help="differences are taken to this row", shows="ROW")
    rows: list[str] = setting([], help="names of rows to be shown instead: kd:Hinton,none:Student", shows="ROW:NAME,…")
    margin: float | None = setting(None, over=0, high=100, help="points within which a published value is reproduced")
    output_root: Path | None = output_root_setting()


def chosen_ledger(names: list[str], options: Options, root: Path) -> tuple[Ledger, list[str]]:
    """Return what `find_ledger` finds, in the shape that the options ask for. Raise ConfigError."""
    ledger, foreign = find_ledger(names, root)
    return shaped(ledger, options), foreign


def shaped(ledger: Ledger, options: Options) -> Ledger:
    """Return the ledger in the shape that the options ask for. Raise ConfigError for a row that it has not."""
    given = {"against": options.against, "baseline": options.baseline}
    rows = {key: row_named(key, name, ledger) for key, name in given.items() if name is not None}
    margin = ledger.shape.margin if options.margin is None else options.margin
    ledger.shape = replace(ledger.shape, value=options.value or ledger.shape.value, margin=margin, **rows)
    return renamed(ledger, options.rows)


def renamed(ledger: Ledger, words: list[str]) -> Ledger:
    """Return the ledger with other names of rows, each ROW:NAME. Raise ConfigError for a row that it has not, and for
    two rows of one name."""
    names: dict[str, str] = {}
    for word in words:
        row, colon, name = word.partition(":")
        if not colon or not name.strip():
            raise ConfigError(f"rows={word}: give ROW:NAME, as in rows='kd:Hinton et al.,none:Student'.")
        names[row_named("rows", row, ledger)] = name.strip()
    rows = list(dict.fromkeys(cell.row for cell in ledger.cells))
    after = [names.get(row, row) for row in rows]
    if len(set(after)) < len(after):
        twice = next(name for name in after if after.count(name) > 1)
        raise ConfigError(f"rows={','.join(words)}: two rows would be called {twice}.")
    old = ledger.shape
    shape = replace(
        old,
        rows=[names.get(row, row) for row in old.rows],
        baseline=None if old.baseline is None else names.get(old.baseline, old.baseline),
        against=None if old.against is None else names.get(old.against, old.against),
    )
    return replace(
        ledger, shape=shape, cells=[replace(cell, row=names.get(cell.row, cell.row)) for cell in ledger.cells]
    )


def row_named(key: str, value: str, ledger: Ledger) -> str:
    """The row that a user means, in whatever case. Raises ConfigError."""
    rows = list(dict.fromkeys(cell.row for cell in ledger.cells))
    same = [row for row in rows if row == value] or [row for row in rows if row.lower() == value.lower()]
    if not same:
        raise ConfigError(f"{key}={value}: no such row.{suggest(value, rows)} Available: {', '.join(rows)}.")
    return same[0]


def find_ledger(names: list[str], root: Path) -> tuple[Ledger, list[str]]:
    """The named ledger, or one of the runs that the words name; with the folders among them that are no runs."""
    known = known_ledgers(root)
    if len(names) == 1 and (names[0] in known or not looks_like_runs(names[0])):
        return read_ledger(root, names[0]), []
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
