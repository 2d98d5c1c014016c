"""Section of a report that shows each run: its result, curves, configuration and provenance."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from kdrun.reporting.html.charts import Line, line_chart
from kdrun.reporting.html.run_files import Places, RunFiles, differences, facts_of, settings_of
from kdrun.reporting.labels import cell_text
from kdrun.reporting.table import Table
from kdrun.runs.curves import is_flattened

MAX_CURVES = 1000  # runs whose curves are drawn, at 4 KB each
MAX_DIFFERENCES = 40  # settings; with more differences a run shows its whole configuration
ALWAYS_OWN = ("started_at", "command")  # keys of provenance.json that are shown for every run
SPLITS = (("test", "c0"), ("train", "train"), ("val", "c1"))


def anchors(places: Places) -> dict[tuple[str, str], str]:
    """Return (row, column) -> the id of its runs. Places with the same runs (students without a teacher) share one."""
    ids: dict[tuple[str, ...], str] = {}
    return {place: ids.setdefault(tuple(run.run for run in runs), f"p{len(ids)}") for place, runs in places.items()}


def run_pages(table: Table, places: Places) -> str:
    """Return a folded part for each place of the table, with a folded part for each of its runs."""
    parts: list[str] = []
    ids = anchors(places)
    begun: set[str] = set()
    told: set[str] = set()
    for column in table.columns:
        for row in table.rows:
            anchor = ids.get((row, column))
            if anchor is not None and anchor not in begun:
                begun.add(anchor)
                columns = [other for (same, other), one in ids.items() if one == anchor and same == row]
                summary = (row, " and ".join(columns), cell_text(table.entries[row, column]))
                parts.append(place_page(summary, places[row, column], anchor, told))
    return "\n".join(parts)


def place_page(summary: tuple[str, str, str], runs: list[RunFiles], anchor: str, told: set[str]) -> str:
    """Return the runs of one place: their results side by side, then each run, unless it is in `told`, the runs already
    shown."""
    row, where, value = map(html.escape, summary)
    parts = [
        f'<details class="place" id="{anchor}"><summary><b>{row}</b> <span>{where}</span> '
        f'<span class="value">{value}</span></summary><div class="inside">',
        results_table([run for run in runs if run.done]),
    ]
    for run in runs:
        if run.run in told:
            parts.append(f'<p>Shown elsewhere: <a href="#r{run.number}"><code>{html.escape(run.run)}</code></a>.</p>')
        else:
            told.add(run.run)
            parts.append(run_page(run, runs[0]))
    return "".join([*parts, "</div></details>"])


def results_table(runs: Sequence[RunFiles]) -> str:
    """Return result.json of each run as a column; one cell if all are equal."""
    if not runs:
        return ""
    head = "".join(f'<th scope="col"><a href="#r{run.number}">seed {run.seed}</a></th>' for run in runs)
    lines = []
    for name, values in result_rows(runs):
        texts = [html.escape(value_text(name, value)) for value in values]
        if len(texts) > 1 and len(set(texts)) == 1:
            cells = f'<td class="same" colspan="{len(texts)}">{texts[0]}</td>'
        else:
            cells = "".join(f"<td>{text}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="facts"><thead><tr><th scope="col">result.json</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def result_rows(runs: Sequence[RunFiles]) -> list[tuple[str, list[Any]]]:
    """Return (key, value of each run); overrides shared by all are separated from each run's own."""
    rows: list[tuple[str, list[Any]]] = []
    for key in dict.fromkeys(key for run in runs for key in run.result):
        values = [run.result.get(key) for run in runs]
        lists = [value for value in values if isinstance(value, list)]
        shared = [word for word in lists[0] if all(word in other for other in lists)] if lists else []
        if len(lists) == len(runs) > 1 and shared and any(value != lists[0] for value in lists):
            rows.append((f"{key}, shared", [shared] * len(runs)))
            rows.append((f"{key}, own", [[word for word in value if word not in shared] for value in lists]))
        else:
            rows.append((key, values))
    return rows


def value_text(name: str, value: Any) -> str:
    """Return a value of result.json in readable form: thousands separators, at most four decimals, the digest's
    first digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:12]}…" if name == "digest" and len(text) > 12 else text


def run_page(run: RunFiles, base: RunFiles) -> str:
    """Return one run. Settings and provenance are complete for the first run of a place, and only the differences
    for the others."""
    top1 = run.result.get("top1_last")
    said = f"{top1:.2f} %" if isinstance(top1, float | int) else run.state
    parts = [
        f'<details class="run" id="r{run.number}"><summary>seed {run.seed} <span class="value">{said}</span> '
        f'<code>{html.escape(run.run)}</code></summary><div class="inside">'
    ]
    if run.reason:
        parts.append(f'<p class="bad">Failed: {html.escape(run.reason)}</p>')
    parts.append(run_curves(run))
    command = run.provenance.get("command")
    if command:
        words = command if isinstance(command, list) else [command]
        parts.append(
            f"<h4>Command, {html.escape(str(run.provenance.get('started_at', '')))}</h4>"
            f'<pre class="wrap">{html.escape(" ".join(map(str, words)))}</pre>'
        )
    parts += config_part(run, base)
    parts += provenance_part(run, base)
    return "".join([*parts, "</div></details>"])


def config_part(run: RunFiles, base: RunFiles) -> list[str]:
    if not run.config:
        return ["<p>No config.yaml.</p>"]
    found = differences(settings_of(run.config), settings_of(base.config)) if run is not base else []
    if run is base or not base.config or len(found) > MAX_DIFFERENCES or (not found and run.config != base.config):
        return [folded("config.yaml", run.config)]
    return differing("config.yaml", found, base)


def provenance_part(run: RunFiles, base: RunFiles) -> list[str]:
    if not run.provenance:
        return ["<p>No provenance.json.</p>"]
    ours, theirs = facts_of(run.provenance), facts_of(base.provenance)
    found = [one for one in differences(ours, theirs) if one[0] not in ALWAYS_OWN]
    if run is base or not base.provenance or len(found) > MAX_DIFFERENCES:
        return [folded("provenance.json", json.dumps(run.provenance, indent=2, ensure_ascii=False))]
    return differing("provenance.json", found, base)


def folded(name: str, text: str) -> str:
    return f"<details><summary>{name}</summary><pre>{html.escape(text)}</pre></details>"


def differing(name: str, found: list[tuple[str, str, str]], base: RunFiles) -> list[str]:
    """Return a small grid of the differences from the first run's file."""
    link = f'<a href="#r{base.number}">seed {base.seed}</a>'
    if not found:
        return [f"<p>{name}: same as {link}.</p>"]
    lines = [
        f'<tr><th scope="row">{html.escape(key)}</th><td>{html.escape(ours or "–")}</td>'
        f"<td>{html.escape(theirs or '–')}</td></tr>"
        for key, ours, theirs in found
    ]
    return [
        f'<h4>{name}: differences from {link}</h4><div class="scroll"><table class="facts"><thead>'
        f'<tr><th scope="col">setting</th><th scope="col">here</th><th scope="col">seed {base.seed}</th></tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    ]


def run_curves(run: RunFiles) -> str:
    """Draw accuracy and loss side by side; beyond the cap no curves are drawn, as stated on the page."""
    if run.number >= MAX_CURVES:
        return ""
    charts = []
    for metric, label in (("top1", "top-1, %"), ("loss", "loss, nats")):
        lines = [
            Line(split, points, style, f"{split}: {points[-1][1]:.4g} after epoch {points[-1][0]:g}")
            for split, style in SPLITS
            if (points := run.curves.get((split, metric)))
        ]
        log = metric == "loss" and is_flattened([y for line in lines for _, y in line.points])
        chart = line_chart(lines, ("epoch", label), f"{run.run}: {label}", small=True, log=log)
        if chart:
            keys = "".join(
                f'<span class="key {line.style}"><svg viewBox="0 0 26 8" aria-hidden="true">'
                f'<path d="M1 4H25"/></svg>{line.label}</span>'
                for line in lines
            )
            charts.append(f"<figure>{chart}<figcaption>{keys}</figcaption></figure>")
    return f'<div class="pair">{"".join(charts)}</div>' if charts else "<p>No curves in metrics.csv.</p>"
