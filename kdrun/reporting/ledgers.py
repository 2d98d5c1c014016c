"""Resolution of the arguments of kdrun table and report to a ledger: a sweep's, or one made of any runs."""

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
    """Options that kdrun table and kdrun report share."""

    value: str | None = setting(None, choices=tuple(SELECTIONS), help="the accuracy to show")
    against: str | None = setting(None, help="row that the tests compare with", shows="ROW")
    baseline: str | None = setting(None, help="row from which differences are taken", shows="ROW")
    rows: list[str] = setting([], help="other names for rows: kd:Hinton,none:Student", shows="ROW:NAME,…")
    margin: float | None = setting(None, over=0, high=100, help="points within which a result counts as reproduced")
    output_root: Path | None = output_root_setting()


def chosen_ledger(names: list[str], options: Options, root: Path) -> tuple[Ledger, list[str]]:
    """Return the result of `find_ledger`, in the shape given by the options. Raises ConfigError."""
    ledger, foreign = find_ledger(names, root)
    return shaped(ledger, options), foreign


def shaped(ledger: Ledger, options: Options) -> Ledger:
    """Return the ledger in the shape given by the options. Raises ConfigError for an unknown row."""
    given = {"against": options.against, "baseline": options.baseline}
    rows = {key: row_named(key, name, ledger) for key, name in given.items() if name is not None}
    margin = ledger.shape.margin if options.margin is None else options.margin
    ledger.shape = replace(ledger.shape, value=options.value or ledger.shape.value, margin=margin, **rows)
    return renamed(ledger, options.rows)


def renamed(ledger: Ledger, words: list[str]) -> Ledger:
    """Return the ledger with renamed rows, each ROW:NAME. Raises ConfigError for an unknown row, and for two rows of
    the same name."""
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
        raise ConfigError(f"rows={','.join(words)}: two rows would have the name {twice}.")
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
    """Return the row that a user means, ignoring case. Raises ConfigError."""
    rows = list(dict.fromkeys(cell.row for cell in ledger.cells))
    same = [row for row in rows if row == value] or [row for row in rows if row.lower() == value.lower()]
    if not same:
        raise ConfigError(f"{key}={value}: no such row.{suggest(value, rows)} Available: {', '.join(rows)}.")
    return same[0]


def find_ledger(names: list[str], root: Path) -> tuple[Ledger, list[str]]:
    """Return the named ledger, or one made of the given runs; and a line for each folder that is not a run."""
    known = known_ledgers(root)
    if len(names) == 1 and (names[0] in known or not looks_like_runs(names[0])):
        return read_ledger(root, names[0]), []
    both = [name for name in names if name in known and not looks_like_runs(name)]
    if both:
        raise ConfigError(f"{both[0]} is a sweep: show it alone (kdrun table {both[0]}), or give only runs.")
    runs: list[Path] = []
    foreign: list[str] = []
    for name in names:
        if Path(name).is_dir() and not (Path(name) / "config.yaml").is_file():
            foreign.append(f"{name}: not a run (no config.yaml).")
        else:
            runs += find_runs(name, root)
    if not runs:
        raise ConfigError(f"RUN {' '.join(names)}: none of these folders is a run (with config.yaml): kdrun list runs.")
    return ledger_of_runs(runs, root), foreign


def looks_like_runs(name: str) -> bool:
    """Return True for a path, a glob or a digest, rather than a ledger's name."""
    return bool(Path(name).is_dir() or any(sign in name for sign in "*?[/") or re.fullmatch(r"[0-9a-f]{4,64}", name))
