"""Page of kdrun report: one self-contained HTML file that opens from disk and loads nothing from a network.

The same results give the same bytes: all times on the page are those of the runs.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdrun.display import plural
from kdrun.reporting.formats import plain_best
from kdrun.reporting.html.album import Album
from kdrun.reporting.html.bias_section import bias_folder, bias_section
from kdrun.reporting.html.charts import MAX_POINTS
from kdrun.reporting.html.figures import cost_charts, learning_curves, legend, styles_of
from kdrun.reporting.html.grids import grid_of, heading
from kdrun.reporting.html.measured_section import measured_section
from kdrun.reporting.html.run_files import Places, RunFiles, read_runs
from kdrun.reporting.html.run_pages import MAX_CURVES, anchors, run_pages
from kdrun.reporting.html.summary_section import summary_section
from kdrun.reporting.known import KnownPlaces, damaged, known_places, lacking
from kdrun.reporting.labels import cell_text, delta_words, header_lines, sections
from kdrun.reporting.summary import summary
from kdrun.reporting.table import Entry, Table, table_of
from kdrun.runs.ledger import Ledger

FOLDER = Path(__file__).parent
OPEN_SECTIONS = 2  # grids of notes that are initially unfolded
SIGNS = {"reproduced": "✓", "differs": "≠"}
# Nothing may be loaded from anywhere, even if a run's name contains markup.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def report_page(ledger: Ledger, root: Path, foreign: Sequence[str] = ()) -> str:
    """Return the page of a ledger's table, complete or not. foreign: further lines on skipped files. Raises
    ConfigError as table_of does."""
    table = table_of(ledger, root)
    table.skipped.extend(foreign)
    places = read_runs(ledger, table, root)
    known = known_places(table, places, root)
    table.skipped.extend(damaged(known))
    album, grid = Album(), bias_folder(root, ledger.name) / "grid.csv"
    runs = list({run.run: run for here in places.values() for run in here}.values())
    title, _, state = header_lines(table)
    body = [
        f"<header><h1>{html.escape(title)}</h1>{progress(table, state)}</header>",
        f"<main>{summary_section(summary(table, known, grid), lacking(known), runs)}{facts(table, runs)}",
        f'<section id="table"><h2>Results</h2>{results(table, places)}</section>',
        notes(table),
        charts(table, places, known),
        measured_section(table, known, album),
        bias_section(root, ledger.name, album),
        f'<section id="runs"><h2>Runs</h2><p class="quiet">{html.escape(run_words(runs))}</p>'
        f"{run_pages(table, places)}</section></main>",
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
            f"<title>{html.escape(title)}</title>",
            f"<style>\n{(FOLDER / 'page.css').read_text()}</style></head>\n<body>",
            *body,
            f"<script>\n{(FOLDER / 'page.js').read_text()}</script></body></html>\n",
        ]
    )


def progress(table: Table, state: str) -> str:
    """Return the number of finished cells, as a bar and as text."""
    failed = sum(len(entry.failed) for entry in table.entries.values())
    missing = max(table.total - table.done - failed, 0)
    share = [100 * count / table.total if table.total else 0 for count in (table.done, failed)]
    words = [f"<b>{table.done:,}</b> of {plural(table.total, 'cell')} done"]
    words += [f'<b class="bad">{failed:,}</b> failed'] if failed else []
    words += [f"<b>{missing:,}</b> missing"] if missing else []
    return (
        f'<div class="bar" role="img" aria-label="{html.escape(state)}"><i style="width:{share[0]:.1f}%"></i>'
        f'<i class="bad" style="width:{share[1]:.1f}%"></i></div>'
        f'<p class="state">{", ".join(words)}</p>'
    )


def facts(table: Table, runs: Sequence[RunFiles]) -> str:
    """Return selection rule, command, times, hardware and software."""
    provenances = [run.provenance for run in runs if run.provenance]
    ends = sorted(str(run.result["finished_at"]) for run in runs if run.result.get("finished_at"))
    ends = [end[:16].replace("T", " ") for end in ends]
    found = {
        "Shown": html.escape(table.selection),
        "Command": f"<code>{html.escape(table.command)}</code>" if table.command else "",
        "Finished": html.escape(" to ".join(dict.fromkeys([*ends[:1], *ends[-1:]])) + " UTC") if ends else "",
        "Precision": tally(Counter(table.precisions)),
        "Device": tally(Counter(table.devices)),
        "Hardware": tally(Counter(hardware_words(one) for one in provenances)),
        "Software": tally(Counter(software_words(one) for one in provenances)),
    }
    lines = [f"<div><dt>{name}</dt><dd>{words}</dd></div>" for name, words in found.items() if words]
    return f"<dl>{''.join(lines)}</dl>"


def tally(counts: Counter[str]) -> str:
    """Return the one value, or each value with its number of runs."""
    found = [(value, count) for value, count in counts.most_common() if value]
    if len(found) == 1:
        return html.escape(found[0][0])
    return "; ".join(f"{html.escape(value)} ({plural(count, 'run')})" for value, count in found)


def part_of(provenance: dict[str, Any], key: str) -> dict[str, Any]:
    found = provenance.get(key)
    return found if isinstance(found, dict) else {}


def hardware_words(provenance: dict[str, Any]) -> str:
    """Return processor, accelerator and cores, as far as recorded."""
    found = part_of(provenance, "hardware")
    names = [str(found[key]) for key in ("gpu", "cpu") if found.get(key)]
    kind = f" ({found['cpu_kind']})" if found.get("cpu_kind") else ""
    cores = f", {found['cores']} cores" if found.get("cores") else ""
    return " + ".join(names) + kind + cores if names else ""


def software_words(provenance: dict[str, Any]) -> str:
    libraries = part_of(provenance, "libraries")
    named = {
        "kdrun": provenance.get("kdrun"),
        "Python": provenance.get("python"),
        "PyTorch": libraries.get("torch"),
        "torchvision": libraries.get("torchvision"),
        "timm": libraries.get("timm"),
    }
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def results(table: Table, places: Places) -> str:
    """Return the comparison table; a column's shade runs from its lowest to its highest mean."""
    head = "".join(heading(column or "value", numeric=True) for column in table.columns)
    ids = anchors(places)
    scales = {column: scale(table, column) for column in table.columns}
    lines = []
    for row in table.rows:
        cells = "".join(
            cell(table, table.entries[row, column], ids.get((row, column)), scales[column]) for column in table.columns
        )
        kind = ' class="teacher"' if row == table.shape.teacher_row else ""
        lines.append(f'<tr{kind}><th scope="row" data-sort="{html.escape(row)}">{html.escape(row)}</th>{cells}</tr>')
    words = ["Shade: from the lowest (pale) to the highest mean (strong) of a column."]
    if any(entry.delta is not None for entry in table.entries.values()):
        words.append(f"Δ: points above {table.shape.baseline}, and their 95 % interval.")
    words.append("Click a heading to sort, a figure to see its runs.")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Results">'
        f'<table class="heat sortable"><thead><tr>'
        f"{heading('row', numeric=False)}{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="quiet">{html.escape(" ".join(words))}</p>'
    )


def scale(table: Table, column: str) -> tuple[float, float]:
    """Return the lowest and highest mean of a column's shade scale. Far outliers below do not flatten the rest: the
    scale starts no lower than three times the upper half's width below the median."""
    means = sorted(
        entry.mean
        for row in table.rows
        if (entry := table.entries[row, column]).mean is not None and row != table.shape.teacher_row
    )
    if not means:
        return 0.0, 0.0
    median = means[len(means) // 2]
    return max(means[0], median - 3 * (means[-1] - median)) if means[-1] > median else means[0], means[-1]


def cell(table: Table, entry: Entry, anchor: str | None, limits: tuple[float, float]) -> str:
    """Return mean ± std (n), linked to its runs, with comparisons in a second line."""
    if not entry.planned:
        return '<td class="number none" data-sort="">–</td>'
    text = html.escape(cell_text(entry))
    text = f"<b>{text}</b>" if entry.best else text
    text = f'<a href="#{anchor}">{text}</a>' if anchor else f"<span>{text}</span>"
    if entry.mean is None:
        return f'<td class="number{" bad" if entry.failed else ""}" data-sort="">{text}{second_line(entry)}</td>'
    low, high = limits
    share = min(max((entry.mean - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    shade = "" if entry.row == table.shape.teacher_row else f' style="--h:{share:.2f}"'
    return f'<td class="number" data-sort="{entry.mean:.6f}"{shade}>{text}{second_line(entry)}</td>'


def second_line(entry: Entry) -> str:
    """Return the difference, the published value and verdict, and missing cells."""
    parts = [] if entry.delta is None else [f"Δ {delta_words(entry)}"]
    if entry.published is not None:
        source = html.escape(entry.published.source)
        parts.append(f'<span title="{source}">published {entry.published.value:.2f}</span>')
    if entry.verdict is not None:
        word = html.escape(entry.verdict.word)
        sign = SIGNS.get(entry.verdict.word, "")
        parts.append(f'<span class="verdict">{sign}&nbsp;{word}</span>' if sign else word)
    parts += [f'<span class="bad">{len(entry.failed)} failed</span>'] if entry.failed and entry.mean is not None else []
    parts += [f"{entry.missing} missing"] if entry.missing else []
    return f"<small>{' · '.join(parts)}</small>" if parts else ""


def notes(table: Table) -> str:
    """Return everything that `kdrun table` prints below its grid: verdicts, tests, failures, skipped files."""
    parts: list[str] = []
    grids = 0
    for section in sections(table):
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in plain_best(section))
        content = grid_of(section) + (f"<ul>{lines}</ul>" if lines else "")
        if not section.heading:
            parts.insert(0, content)
            continue
        grids += bool(section.rows)
        unfolded = " open" if not section.rows or grids <= OPEN_SECTIONS else ""
        kind = ' class="failures"' if section.heading == "Failed" else ""
        parts.append(f"<details{kind}{unfolded}><summary>{html.escape(section.heading)}</summary>{content}</details>")
    return f'<section id="notes"><h2>Notes</h2>{"".join(parts)}</section>' if parts else ""


def charts(table: Table, places: Places, known: KnownPlaces) -> str:
    """Return learning curves and accuracy over cost, under one legend each."""
    begun = [
        row
        for row in table.rows
        if any(run.curves for column in table.columns for run in places.get((row, column), []))
    ]
    styles = styles_of(table, begun)
    curves = [figure.html() for figure in learning_curves(table, places, styles)]
    if not curves:
        return ""
    names = legend(table, styles)
    words = (
        "Lines: mean over the finished seeds, in a band of one standard deviation. The best rows are coloured, the "
        "others grey; click a name in the legend to highlight its line, band and seeds."
    )
    return (
        f'<section id="curves"><h2>Learning curves</h2><p class="quiet">{words}</p>{names}'
        f'<div class="charts">{"".join(curves)}</div></section>\n{costs(table, places, styles, known, names)}'
    )


def costs(table: Table, places: Places, styles: dict[str, str], known: KnownPlaces, names: str) -> str:
    """Return accuracy over costs; a sentence for costs that are equal for all."""
    every = cost_charts(table, places, styles, known)
    drawn = [figure.html() for figure in every if figure.svg]
    if not every:
        return ""
    lines = [figure.caption for figure in every if not figure.svg]
    if drawn:
        lines.insert(
            0,
            "The line is the Pareto front. Training speeds are comparable only on the same machine.",
        )
    said = f'<p class="quiet">{html.escape(" ".join(lines))}</p>'
    shown = f'{names}<div class="charts three">{"".join(drawn)}</div>' if drawn else ""
    return f'<section id="cost"><h2>Accuracy and cost</h2>{said}{shown}</section>'


def run_words(runs: Sequence[RunFiles]) -> str:
    """Return the introduction of the part on runs, with what it leaves out."""
    words = [
        "The first run of each cell is shown in full; for the others, only the differences in settings and provenance.",
        "Sizes are in bytes, times in seconds, accuracies in percent.",
    ]
    if len(runs) > MAX_CURVES:
        words.append(
            f"Curves are drawn for the first {MAX_CURVES:,} of {len(runs):,} runs; the others are in "
            "curves.png of their directories."
        )
    if any(len(points) > MAX_POINTS for run in runs for points in run.curves.values()):
        words.append(f"Curves show about {MAX_POINTS} of their epochs.")
    return " ".join(words)
