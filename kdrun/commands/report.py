"""kdrun report: a sweep, or any set of runs, as one HTML file."""

from __future__ import annotations

from pathlib import Path

from kdrun import console
from kdrun.config.arguments import read_words
from kdrun.errors import ConfigError
from kdrun.reporting.ledgers import KEYS, chosen_ledger
from kdrun.runs.directory import outputs_folder, short_path
from kdrun.runs.ledger import known_ledgers

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


def command(words: list[str]) -> int:
    from kdrun.reporting.html.page import report_page
    from kdrun.runs.files import write_text

    names, settings = read_words("report", words, KEYS)
    save = settings.get("save")
    if save is not None and Path(save).suffix not in (".html", ".htm"):
        raise ConfigError(f"save={save}: a report is one HTML file: save=FILE.html. Other formats: kdrun table.")
    root = outputs_folder(settings.get("output_root"))
    if not names:
        known = known_ledgers(root)
        there = f"There are: {', '.join(known)}." if known else f"{root}/sweeps holds none yet."
        raise ConfigError(f"report: of which sweep or runs? {there} Of any runs: kdrun report '{root}/runs/*/*/*/*'")
    ledger, foreign = chosen_ledger(names, settings, root)
    place = Path(save).expanduser() if save is not None else default_place(ledger.name, names, root)
    text = report_page(ledger, root, foreign)
    write_text(place, text)
    console.say(f"[bold]report[/]  {console.escape(short_path(place))}  ({len(text.encode()) / 2**20:.1f} MiB)")
    return 0


def default_place(ledger: str, names: list[str], root: Path) -> Path:
    """tables/NAME.html of a ledger, tables/report.html of runs."""
    return root / "tables" / f"{ledger if names == [ledger] else 'report'}.html"
