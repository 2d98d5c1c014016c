"""Cells of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CellSpec:
    """Cell before composition. row and column are "" in a sweep without a YAML: they follow from the run.

    chosen: True if it is to run now; kept_out: the command line's overrides that do not apply to it.
    """

    row: str
    column: str
    overrides: list[str]
    published: bool = True
    chosen: bool = True
    kept_out: list[str] = field(default_factory=list)
