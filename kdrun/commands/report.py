"""kdrun report: a sweep, or any set of runs, as one HTML file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import parse
from kdrun.config.options import VECTORS, setting
from kdrun.errors import ConfigError
from kdrun.reporting import ledgers
from kdrun.runs.directory import outputs_folder, short_path
from kdrun.runs.ledger import known_ledgers

HELP = """
usage: kdrun report NAME [key=value …]
       kdrun report RUN … [key=value …]

One HTML file that opens from disk with no network: the table of `kdrun table` with shades and sortable columns, tests,
learning curves, accuracy over cost, and each run's result, configuration and provenance. NAME is a sweep's or a
multirun's ledger, RUN a run directory, a quoted glob of them, or a digest prefix. It can be made at any time; cells
that are not done are empty. figures=pdf,svg writes the learning curves for a paper beside it,
NAME_curves.*: the mean over seeds in a band of one standard deviation, and the teacher's line.
"""


@dataclass
class Options(ledgers.Options):
    figures: list[str] = setting(
        [], choices=("png", *VECTORS), help="write the learning curves as pictures too, in these formats"
    )
    save: Path | None = setting(
        None, suffixes=(".html", ".htm"), help="instead of tables/NAME.html in the output folder, or tables/report.html"
    )


def command(words: list[str]) -> int:
    from kdrun.files import write_text
    from kdrun.reporting.html.page import report_page

    parsed = parse("report", words, Options)
    names, options, root = parsed.names, parsed.options, outputs_folder(parsed.options.output_root)
    if not names:
        known = known_ledgers(root)
        there = f"There are: {', '.join(known)}." if known else f"{root}/sweeps holds none yet."
        pattern = shlex.quote(f"{root}/runs/*/*/*/*")
        raise ConfigError(f"report: of which sweep or runs? {there} Of any runs: kdrun report {pattern}")
    ledger, foreign = ledgers.chosen_ledger(names, options, root)
    place = options.save or default_place(ledger.name, names, root)
    text = report_page(ledger, root, foreign)
    write_text(place, text)
    console.say(f"[bold]report[/]  {console.escape(short_path(place))}  ({len(text.encode()) / 2**20:.1f} MiB)")
    if options.figures:
        from kdrun.reporting.curve_picture import write_curves
        from kdrun.reporting.table import table_of

        picture = place.with_name(f"{place.stem}_curves.png")
        vectors = [kind for kind in options.figures if kind != "png"]
        written = write_curves(ledger, table_of(ledger, root), root, picture, vectors)
        for file in written:
            console.note(f"wrote {short_path(file)}")
        if not written:
            console.note("no run has finished: there are no curves to draw")
    return 0


def default_place(ledger: str, names: list[str], root: Path) -> Path:
    """tables/NAME.html of a ledger, tables/report.html of runs."""
    return root / "tables" / f"{ledger if names == [ledger] else 'report'}.html"
