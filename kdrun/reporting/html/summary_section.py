"""First section of a report: the main results as sentences with figures, each with its source."""

from __future__ import annotations

import html
from collections.abc import Sequence

from kdrun.reporting.html.run_files import RunFiles
from kdrun.reporting.measured_words import Statement
from kdrun.reporting.summary import Part


def summary_section(parts: Sequence[Part], lacking: Sequence[str], runs: Sequence[RunFiles]) -> str:
    """Return the sentences, and below them what has not been measured yet. For a single run, files are relative to
    its directory."""
    if not parts:
        return ""
    home = f"{runs[0].run}/" if len(runs) == 1 else ""
    lines = []
    for part in parts:
        lines += [f"<h3>{html.escape(part.heading)}</h3>"] if part.heading else []
        lines.append(f"<ul>{''.join(item(one, home) for one in part.statements)}</ul>")
    if home:
        lines.append(f'<p class="quiet">Files are in <code>{html.escape(home)}</code>.</p>')
    if lacking:
        items = "".join(f"<li>{html.escape(line)}.</li>" for line in lacking)
        lines.append(f"<details><summary>Not measured yet</summary><ul>{items}</ul></details>")
    return f'<section id="summary"><h2>Summary</h2>{"".join(lines)}</section>'


def item(statement: Statement, home: str) -> str:
    sources = ", ".join(html.escape(source.removeprefix(home)) for source in statement.sources)
    return f"<li>{html.escape(statement.words)}" + (f" <small>{sources}</small>" if sources else "") + "</li>"
