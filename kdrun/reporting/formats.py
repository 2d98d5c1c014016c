"""Tables as CSV, Markdown, LaTeX (booktabs) and HTML. The same results give the same bytes."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

from kdrun.evaluation.stats import MAX_SEEDS, Seeds
from kdrun.reporting.labels import EMPTY, Section, cell_text, grid, header_lines, sections
from kdrun.reporting.remarks import SETTINGS
from kdrun.reporting.results import SELECTIONS
from kdrun.reporting.table import Entry, Table
from kdrun.reporting.text import numeric_columns

CSV_COLUMNS = (
    "row",
    "column",
    "teacher",
    "student",
    "method",
    "n",
    "mean",
    "std",
    "delta",
    "delta_low",
    "delta_high",
    "published",
    "published_std",
    "published_n",
    "difference",
    "low",
    "high",
    "margin",
    "verdict",
    "verdict_seeds",
    "verdict_seeds_low",
    "verdict_seeds_high",
    "remarks",
    "against",
    "against_difference",
    "against_low",
    "against_high",
    "p",
    "p_holm",
    "seeds",
    "seeds_low",
    "seeds_high",
)


def number(value: float | None) -> str:
    """Return a number with at most six decimals and without negative zero; an empty string for None."""
    if value is None:
        return ""
    return f"{round(value, 6) + 0.0:.10g}"


def to_csv(table: Table) -> str:
    """Return the table as CSV: one line per place of the table that has cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for entry in table.filled():
        about = [entry.row, entry.column, entry.teacher or "", entry.student, entry.method, len(entry.values)]
        figures = map(number, (entry.mean, entry.std, entry.delta, *(entry.delta_interval or (None, None))))
        writer.writerow([*about, *figures, *published_columns(table, entry), *test_columns(entry)])
    return text.getvalue()


def published_columns(table: Table, entry: Entry) -> list[str]:
    """Return the published value and the verdict; empty strings if there is none."""
    theirs, found = entry.published, entry.verdict
    value = ["", "", ""] if theirs is None else [number(theirs.value), number(theirs.std), number(theirs.n)]
    if found is None:
        return [*value, *[""] * 9]
    interval = map(number, (found.difference, found.low, found.high, table.shape.margin))
    return [*value, *interval, found.word, *seeds_columns(found.seeds), "; ".join(entry.remarks)]


def test_columns(entry: Entry) -> list[str]:
    """Return the test against a row; empty strings if there is none."""
    test = entry.test
    if test is None:
        return [""] * 9
    p_values = ["" if p is None else f"{p:.6g}" for p in (test.p, test.p_holm)]
    interval = map(number, (test.difference, test.low, test.high))
    return [test.against, *interval, *p_values, *seeds_columns(test.seeds)]


def seeds_columns(seeds: Seeds | None) -> list[str]:
    """Return the number of seeds and its range; "over 1000" if more would be needed than anybody trains."""
    if seeds is None:
        return ["", "", ""]
    return [f"over {MAX_SEEDS}" if one is None else str(one) for one in (seeds.number, seeds.low, seeds.high)]


def to_markdown(table: Table) -> str:
    def shown(entry: Entry) -> str:
        return f"**{cell_text(entry)}**" if entry.best else cell_text(entry)

    title, *about = header_lines(table)
    lines = [f"## {title}", "", *[f"{line}  " for line in about], ""]
    rows = [[row, *(shown(table.entries[row, column]) for column in table.columns)] for row in table.rows]
    lines += markdown_grid(["", *table.columns], rows)
    for section in sections(table):
        lines += ["", f"### {section.heading}", ""] if section.heading else [""]
        lines += [*markdown_grid(section.columns, section.rows), ""] if section.rows else []
        lines += [f"- {line}" for line in plain_best(section)]
    return "\n".join(lines) + "\n"


def plain_best(section: Section) -> list[str]:
    """Return the legend's lines for formats in which bold replaces the star."""
    return [line.replace("* best", "Bold: best", 1) for line in section.lines]


def markdown_grid(columns: list[str], rows: list[list[str]]) -> list[str]:
    right = numeric_columns([[text.strip("*") for text in row] for row in rows])
    head = "|" + "|".join("---:" if to_right else "---" for to_right in right) + "|"
    return [markdown_row(columns), head, *(markdown_row(row) for row in rows)]


def markdown_row(texts: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "√": r"$\surd$",
    "²": r"$^2$",
    "σ": r"$\sigma$",
    "–": "--",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"\S{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "≥": r"$\geq$",
    "−": "$-$",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "‖": r"$\|$",
    "…": r"\ldots{}",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
}


PRIVATE = ("Failed", "Skipped")  # sections irrelevant to a paper: error messages, paths on this machine


def latex(text: str) -> str:
    """Escape a text for LaTeX; a hyphen before a standalone number becomes a minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", "".join(LATEX.get(sign, sign) for sign in text))


def to_latex(table: Table, caption: str | None = None, label: str | None = None) -> str:
    """Return a LaTeX table environment for booktabs. The statistical notes follow as comments; errors are left out."""

    def shown(entry: Entry) -> str:
        text = latex(paper_cell(entry, seeds))
        return rf"\textbf{{{text}}}" if entry.best else text

    entries = [entry for entry in table.filled() if entry.runs]
    counts = {len(entry.values) for entry in entries}
    seeds = counts.pop() if len(counts) == 1 else None
    rows = [[latex(row), *(shown(table.entries[row, column]) for column in table.columns)] for row in table.rows]
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(caption or usual_caption(table, seeds))}}}",
        rf"\label{{{label or 'tab:' + re.sub(r'[^A-Za-z0-9:-]+', '-', table.name)}}}",
        *latex_grid([latex(name) for name in ["", *table.columns]], rows, numeric_columns(grid(table))),
        r"\end{table}",
    ]
    for section in sections(table):
        if section.heading in PRIVATE:
            continue
        lines += ["%", f"% {section.heading}" if section.heading else "%"]
        lines += [f"%   {'  '.join(row)}" for row in ([section.columns, *section.rows] if section.rows else [])]
        lines += [f"%   {line}" for line in plain_best(section)]
    return "\n".join(lines) + "\n"


def paper_cell(entry: Entry, seeds: int | None) -> str:
    """Return a mean with its deviation, with the number of seeds only if it varies; failures are left out."""
    if entry.mean is None:
        return EMPTY
    spread = "" if entry.std is None or not entry.runs else f" ± {entry.std:.2f}"
    number = f" ({len(entry.values)})" if entry.runs and seeds is None else ""
    mark = f" {SETTINGS}" if entry.departs else ""
    return f"{entry.mean:.2f}{spread}{number}{mark}"


def usual_caption(table: Table, seeds: int | None) -> str:
    """Return a caption: title, what the figures are, the number of seeds, and the meaning of bold."""
    selection = SELECTIONS[table.shape.value].replace("top-1, %, ", "")
    number = f" over {seeds} seeds" if seeds and seeds > 1 else " over (seeds)" if seeds is None else ""
    spread = f"; mean ± standard deviation{number}" if seeds != 1 else ", one seed"
    best = " Bold: best of its column, and distinguishable from the next (Holm-corrected, p < 0.05)."
    bold = best if any(entry.best for entry in table.entries.values()) else ""
    return f"{table.title}. Top-1 accuracy in % {selection}{spread}.{bold}"


def latex_grid(columns: list[str], rows: list[list[str]], right: list[bool]) -> list[str]:
    """Return a booktabs tabular of texts that are LaTeX already."""
    align = "".join("r" if to_right else "l" for to_right in right)
    return [
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        " & ".join(columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:80rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
th,td{padding:.25rem .75rem;text-align:right}td{white-space:nowrap}th.text,td.text{text-align:left}
thead th{border-bottom:1px solid #444;vertical-align:bottom}
tr:nth-child(even) td{background:#f5f5f5}"""


def to_html(table: Table) -> str:
    """Return one self-contained page."""

    def shown(entry: Entry) -> str:
        text = html.escape(cell_text(entry))
        return f"<b>{text}</b>" if entry.best else text

    title, *about = header_lines(table)
    rows = [[html.escape(row), *(shown(table.entries[row, column]) for column in table.columns)] for row in table.rows]
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in about),
        *html_grid([html.escape(name) for name in ["", *table.columns]], rows, numeric_columns(grid(table))),
    ]
    for section in sections(table):
        lines += [f"<h2>{html.escape(section.heading)}</h2>"] if section.heading else []
        if section.rows:
            lines += html_grid(
                [html.escape(name) for name in section.columns],
                [[html.escape(text) for text in row] for row in section.rows],
                numeric_columns(section.rows),
            )
        if section.lines:
            lines += ["<ul>", *(f"<li>{html.escape(line)}</li>" for line in plain_best(section)), "</ul>"]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def html_grid(columns: list[str], rows: list[list[str]], right: list[bool]) -> list[str]:
    """Return a table of texts that are HTML already."""

    def line(tag: str, texts: list[str]) -> str:
        kinds = [f"<{tag}>" if to_right else f'<{tag} class="text">' for to_right in right]
        return "<tr>" + "".join(f"{kind}{text}</{tag}>" for kind, text in zip(kinds, texts, strict=True)) + "</tr>"

    return [
        "<table><thead>",
        line("th", columns),
        "</thead><tbody>",
        *(line("td", row) for row in rows),
        "</tbody></table>",
    ]


FORMATS: dict[str, Callable[[Table], str]] = {
    ".csv": to_csv,
    ".md": to_markdown,
    ".tex": to_latex,
    ".html": to_html,
}


def save(table: Table, place: Path, caption: str | None = None, label: str | None = None) -> None:
    """Write the table in the format named by the file's ending. caption, label: for LaTeX."""
    from kdrun.files import write_text

    text = to_latex(table, caption, label) if place.suffix == ".tex" else FORMATS[place.suffix](table)
    write_text(place, text)
