"""Cells of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CellSpec:
    """Cell before composition. row and column are "" in a sweep without a YAML: they follow from the run.

    chosen: True if it is to run now; row_words, column_words: the overrides that make its row and column what they are.
    """

    row: str
    column: str
    overrides: list[str]
    published: bool = True
    chosen: bool = True
    row_words: list[str] = field(default_factory=list)
    column_words: list[str] = field(default_factory=list)
