"""Matplotlib figures as files: PNG, and next to it the vector formats of `figures=`."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.config.options import VECTORS
from kdrun.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200  # of PNG; a column of a paper is 3.3 inches wide


def pyplot() -> Any:
    """Return matplotlib's pyplot, set up to draw without a screen and without messages."""
    import matplotlib

    matplotlib.use("Agg")
    # Equal figures give equal files: no random identifiers in SVG, and text stays text.
    matplotlib.rcParams.update({"svg.hashsalt": "kdrun", "svg.fonttype": "none", "pdf.fonttype": 42})
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # the first start announces its font cache
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    import matplotlib.pyplot as plt

    return plt


def write_figure(figure: Figure, place: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write a figure to `place` (a PNG) and, under the same name, in other formats; close it, and return the paths."""
    written = []
    for kind in ("png", *formats):
        content = io.BytesIO()
        if kind in VECTORS:
            date = {"svg": "Date", "pdf": "CreationDate"}[kind]
            figure.savefig(content, format=kind, dpi=DPI, metadata={date: None})
        else:
            figure.savefig(content, format=kind, dpi=DPI)
        target, data = place.with_suffix(f".{kind}"), content.getvalue()
        write_atomically(target, lambda file, data=data: file.write(data))
        written.append(target)
    pyplot().close(figure)
    return written
