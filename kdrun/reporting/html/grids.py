"""Sortable HTML tables of a report."""

from __future__ import annotations

import html

from kdrun.reporting.formats import numeric_columns
from kdrun.reporting.labels import Section


def heading(text: str, numeric: bool) -> str:
    """Return a column's heading as a button, so that it is reachable by keyboard."""
    kind = ' class="number" data-first="descending"' if numeric else ' data-first="ascending"'
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{html.escape(text)}</button></th>'


def grid_of(section: Section) -> str:
    """Return a section's grid as a sortable table."""
    if not section.rows:
        return ""
    numeric = numeric_columns(section.rows)
    head = "".join(heading(name, right) for name, right in zip(section.columns, numeric, strict=True))
    lines, label = [], ""
    for row in section.rows:
        label = row[0] or label  # a blank label repeats the one above; sorting would separate them
        cells = [
            f"<td{' class=number' if right else ''}>{html.escape(text)}</td>"
            for text, right in zip(row[1:], numeric[1:], strict=True)
        ]
        lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
