"""kdrun report: write a sweep, or any set of runs, as one HTML file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import Parsed, parse
from kdrun.config.options import VECTORS, setting
from kdrun.errors import ConfigError
from kdrun.evaluation.targets import PASSED
from kdrun.reporting import ledgers
from kdrun.runs.directory import outputs_folder, short_path
from kdrun.runs.ledger import Ledger, known_ledgers

HELP = """
usage: kdrun report NAME [key=value …]
       kdrun report RUN … [key=value …]

Writes one HTML file that opens from disk without a network connection: the main results in words, with figures and
their files; the table of `kdrun table` with shades and sortable columns; tests, learning curves, accuracy over cost;
everything that eval, gradcam, export, diagnose and bias measured; and each run's result, configuration and provenance.
NAME is the ledger of a sweep or multirun, RUN a run directory, a quoted glob of them, or a digest prefix. The sweep
need not be complete: unfinished cells are empty.

evaluate=true first measures what is missing, and stores it in the runs: every finished run on the test set, the
Grad-CAM maps of one seed of each student with a teacher, and for the report of a single run its export with INT8, if
the export extra is installed. device=… and dataset.root=… apply to these measurements, as for kdrun eval.
figures=pdf,svg also writes the learning curves for a paper, NAME_curves.*: the mean over seeds in a band of one
standard deviation, and the teacher's line.
"""


@dataclass
class Options(ledgers.Options):
    evaluate: bool = setting(False, help="first measure what is missing: test set, Grad-CAM, export of a single run")
    trust: bool = setting(False, help="with evaluate=true: let runs from elsewhere execute the code that they name")
    figures: list[str] = setting(
        [], choices=("png", *VECTORS), help="also write the learning curves as pictures, in these formats"
    )
    save: Path | None = setting(
        None, suffixes=(".html", ".htm"), help="output file; default: tables/NAME.html, or tables/report.html"
    )


def command(words: list[str]) -> int:
    from kdrun.files import write_text
    from kdrun.reporting.html.page import report_page

    parsed = parse("report", words, Options, passes=[key for key in PASSED if key != "output_root"])
    names, options, root = parsed.names, parsed.options, outputs_folder(parsed.options.output_root)
    if not names:
        known = known_ledgers(root)
        there = f"sweeps in {root}: {', '.join(known)}" if known else f"{root} has no sweeps yet"
        pattern = shlex.quote(f"{root}/runs/*/*/*/*")
        raise ConfigError(f"report needs a sweep or runs; {there}; all runs: kdrun report {pattern}")
    ledger, foreign = ledgers.chosen_ledger(names, options, root)
    if parsed.rest and not options.evaluate:
        raise ConfigError(f"{next(iter(parsed.rest))} is only used for measuring: add evaluate=true, or leave it out.")
    if options.evaluate:
        evaluate(ledger, root, parsed)
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
            console.note("no run has finished, so there are no curves to draw")
    return 0


def evaluate(ledger: Ledger, root: Path, parsed: Parsed[Options]) -> None:
    """Measure what is missing for the finished runs."""
    from kdrun.reporting.html.run_files import read_runs
    from kdrun.reporting.known import known_places
    from kdrun.reporting.missing import Measuring, measure_missing
    from kdrun.reporting.table import table_of

    table = table_of(ledger, root)
    known = known_places(table, read_runs(ledger, table, root), root)
    measure_missing(known, Measuring(parsed.rest, parsed.options.trust, console.track, console.note))


def default_place(ledger: str, names: list[str], root: Path) -> Path:
    """Return tables/NAME.html for a ledger, tables/report.html for runs."""
    return root / "tables" / f"{ledger if names == [ledger] else 'report'}.html"
