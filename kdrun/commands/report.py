"""kdrun report: a sweep, or any set of runs, as one HTML file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from kdrun import console
from kdrun.commands.table import find_ledger, row_named
from kdrun.errors import ConfigError, suggest
from kdrun.ledger import known_ledgers
from kdrun.runs import short_path

HELP = """
usage: kdrun report NAME [key=value …]
       kdrun report RUN … [key=value …]

One HTML file that opens from disk with no network: the table of `kdrun table` with shades and sortable columns, paired
tests, learning curves, accuracy over cost, and each run's result, configuration and provenance. NAME is a sweep's or a
multirun's ledger, RUN a run directory, a quoted glob of them, or a digest prefix. It can be made at any time; cells
that are not done are empty.

  save=FILE.html               default: tables/NAME.html in the output folder, tables/report.html of runs
  value=top1_last|top1_best|top1_val_selected              output_root=FOLDER
  against=ROW    paired tests compare with this row        baseline=ROW   differences are taken to this row
"""
KEYS = ("save", "value", "against", "baseline", "output_root")


def command(words: list[str]) -> int:
    from kdrun.checkpoint import write_text
    from kdrun.report.page import report_page

    names = [word for word in words if "=" not in word or Path(word).exists()]
    settings = read_settings([word for word in words if word not in names])
    root = Path(settings.get("output_root") or os.environ.get("KDRUN_OUTPUTS", "outputs"))
    if not names:
        known = known_ledgers(root)
        there = f"There are: {', '.join(known)}." if known else f"{root}/sweeps holds none yet."
        raise ConfigError(f"report: of which sweep or runs? {there} Of any runs: kdrun report '{root}/runs/*/*/*/*'")
    ledger, foreign = find_ledger(names, root)
    place = Path(settings["save"]).expanduser() if "save" in settings else default_place(ledger.name, names, root)
    for key in ("against", "baseline"):
        if key in settings:
            ledger.shape = replace(ledger.shape, **{key: row_named(key, settings[key], ledger)})
    ledger.shape.value = settings.get("value", ledger.shape.value)
    text = report_page(ledger, root, foreign)
    write_text(place, text)
    console.say(f"[bold]report[/]  {console.escape(short_path(place))}  ({len(text.encode()) / 2**20:.1f} MiB)")
    return 0


def read_settings(words: list[str]) -> dict[str, str]:
    """The key=value words. Raises ConfigError for a key that `report` does not take, and a file that is no page."""
    settings = {key: value for key, _, value in (word.partition("=") for word in words)}
    for key in settings:
        if key not in KEYS:
            raise ConfigError(f"{key}: report takes {', '.join(KEYS)}.{suggest(key, KEYS)}")
    save = settings.get("save")
    if save is not None and Path(save).suffix not in (".html", ".htm"):
        raise ConfigError(f"save={save}: a report is one HTML file: save=FILE.html. Other formats: kdrun table.")
    return settings


def default_place(ledger: str, names: list[str], root: Path) -> Path:
    """tables/NAME.html of a ledger, tables/report.html of runs."""
    return root / "tables" / f"{ledger if names == [ledger] else 'report'}.html"
