"""Tables as plain text that fits a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from kdrun.reporting.labels import grid, header_lines, sections
from kdrun.reporting.table import Table

GAP = 2  # spaces between columns
STAR = " *"
MAX_LABEL, MAX_HEADING = 30, 18  # characters, beyond which a row's label or a column's heading folds


def to_text(table: Table, width: int, strong: Callable[[str], str] = lambda text: text) -> str:
    """Return a table for a terminal of `width` characters. strong: highlights a best cell, in addition to its star."""
    best = {(row, column) for (row, column), entry in table.entries.items() if entry.best}
    rows = [
        [
            text + (STAR if (row[0], table.columns[place - 1]) in best else "") if place else text
            for place, text in enumerate(row)
        ]
        for row in grid(table)
    ]
    lines = header_lines(table)
    lines += ["", *text_grid(["", *table.columns], rows, width, strong)]
    for section in sections(table):
        lines += ["", section.heading] if section.heading else [""]
        if section.rows:
            lines += text_grid(section.columns, section.rows, width)
        indent = "  " if section.heading else ""
        for line in section.lines:
            lines += textwrap.wrap(
                line, width, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
            )
    return "\n".join(lines) + "\n"


def text_grid(
    columns: list[str], rows: list[list[str]], width: int, strong: Callable[[str], str] = lambda text: text
) -> list[str]:
    """Return aligned columns under folded headings; columns that do not fit follow below, with the row labels
    repeated."""
    parts = [list(texts) for texts in zip(*rows, strict=True)]
    for place, texts in enumerate(parts):
        if any(text.endswith(STAR) for text in texts):  # stars stick out to the right, so that figures stay aligned
            parts[place] = [text if text.endswith(STAR) else text + " " * len(STAR) for text in texts]
    widest = [max(len(text) for text in texts) for texts in parts]
    heads = [folded(name, max(widest[place], MAX_HEADING)) for place, name in enumerate(columns)]
    labels = [folded(text, MAX_LABEL) for text in parts[0]]
    widest[0] = max(len(part) for label in labels for part in label)
    sizes = [max([widest[place], *(len(part) for part in heads[place])]) for place in range(len(columns))]
    lines: list[str] = []
    for block in blocks_of(sizes, width):
        lines += [""] if lines else []
        right = [place > 0 and is_numeric(parts[place]) for place in block]
        widths = [sizes[place] for place in block]
        height = max(len(heads[place]) for place in block)
        for level in range(height):
            texts = [[*[""] * (height - len(heads[place])), *heads[place]][level] for place in block]
            lines.append(joined(texts, widths, right))
        for level, label in enumerate(labels):
            lines += [joined([part], widths[:1], right[:1]) for part in label[:-1]]
            texts = [label[-1], *(parts[place][level] for place in block[1:])]
            lines.append(joined(texts, widths, right, strong))
    return lines


def folded(text: str, width: int) -> list[str]:
    """Fold a label at spaces into lines of at most `width`; an arrow stays with the name that it points to."""
    bound = text.replace("→ ", "→\xa0").replace(" ·", "\xa0·")
    lines = textwrap.wrap(bound, width, break_long_words=False, break_on_hyphens=False) or [""]
    return [line.replace("\xa0", " ") for line in lines]


def blocks_of(sizes: list[int], width: int) -> list[list[int]]:
    """Return which columns are side by side; each block begins with the labels, column 0."""
    blocks = [[0]]
    for place in range(1, len(sizes)):
        if len(blocks[-1]) > 1 and sum(sizes[other] + GAP for other in [*blocks[-1], place]) - GAP > width:
            blocks.append([0])
        blocks[-1].append(place)
    return blocks


def is_numeric(texts: Sequence[str]) -> bool:
    return all(text[:1] in "0123456789-+–<" or text.strip() in ("", "failed") for text in texts)


def numeric_columns(rows: list[list[str]]) -> list[bool]:
    """Return which columns are numeric, and so right-aligned; the labels in column 0 never are."""
    return [place > 0 and is_numeric(texts) for place, texts in enumerate(zip(*rows, strict=True))]


def joined(
    texts: list[str], widths: list[int], right: list[bool], strong: Callable[[str], str] = lambda text: text
) -> str:
    """Return texts padded to their columns, starred ones highlighted."""
    parts = []
    for text, size, to_right in zip(texts, widths, right, strict=True):
        pad = " " * (size - len(text))
        shown = strong(text) if text.endswith(STAR) else text
        parts.append(pad + shown if to_right else shown + pad)
    return (" " * GAP).join(parts).rstrip()
