"""kdrun report: a sweep, or any set of runs, as one HTML file."""

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

One HTML file that opens from disk with no network: first what came out, in words with figures and their files; then the
table of `kdrun table` with shades and sortable columns, tests, learning curves, accuracy over cost, all that eval,
gradcam, export, diagnose and bias measured, and each run's result, configuration and provenance. NAME is a sweep's or a
multirun's ledger, RUN a run directory, a quoted glob of them, or a digest prefix. It can be made at any time; cells
that are not done are empty.

evaluate=true first measures what is missing, and keeps it in the runs: every finished run on the test set, the Grad-CAM
maps of one seed of each student with a teacher, and for the report of a single run its export with INT8, where the
export extra is installed. device=… and dataset.root=… say where, as for kdrun eval.
 figures=pdf,svg writes the learning curves for a paper beside it,
NAME_curves.*: the mean over seeds in a band of one standard deviation, and the teacher's line.
"""


@dataclass
class Options(ledgers.Options):
    evaluate: bool = setting(False, help="first measure what is missing: test set, Grad-CAM, export of a single run")
    trust: bool = setting(False, help="with evaluate=true: run the code of their own that runs from elsewhere name")
    figures: list[str] = setting(
        [], choices=("png", *VECTORS), help="write the learning curves as pictures too, in these formats"
    )
    save: Path | None = setting(
        None, suffixes=(".html", ".htm"), help="instead of tables/NAME.html in the output folder, or tables/report.html"
    )


def command(words: list[str]) -> int:
    from kdrun.files import write_text
    from kdrun.reporting.html.page import report_page

    parsed = parse("report", words, Options, passes=[key for key in PASSED if key != "output_root"])
    names, options, root = parsed.names, parsed.options, outputs_folder(parsed.options.output_root)
    if not names:
        known = known_ledgers(root)
        there = f"There are: {', '.join(known)}." if known else f"{root}/sweeps holds none yet."
        pattern = shlex.quote(f"{root}/runs/*/*/*/*")
        raise ConfigError(f"report: of which sweep or runs? {there} Of any runs: kdrun report {pattern}")
    ledger, foreign = ledgers.chosen_ledger(names, options, root)
    if parsed.rest and not options.evaluate:
        raise ConfigError(f"{next(iter(parsed.rest))} says where to measure: add evaluate=true, or leave it out.")
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
            console.note("no run has finished: there are no curves to draw")
    return 0


def evaluate(ledger: Ledger, root: Path, parsed: Parsed[Options]) -> None:
    """Measure what is missing of the finished runs."""
    from kdrun.reporting.html.run_files import read_runs
    from kdrun.reporting.known import known_places
    from kdrun.reporting.missing import Measuring, measure_missing
    from kdrun.reporting.table import table_of

    table = table_of(ledger, root)
    known = known_places(table, read_runs(ledger, table, root), root)
    measure_missing(known, Measuring(parsed.rest, parsed.options.trust, console.track, console.note))


def default_place(ledger: str, names: list[str], root: Path) -> Path:
    """tables/NAME.html of a ledger, tables/report.html of runs."""
    return root / "tables" / f"{ledger if names == [ledger] else 'report'}.html"
