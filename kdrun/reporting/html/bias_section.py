"""The part of `kdrun report` that shows what `kdrun bias` wrote: the heat maps and the contact sheets."""

from __future__ import annotations

import html
from pathlib import Path

from kdrun.reporting.html.album import Album
from kdrun.runs.ledger import ledger_path


def bias_folder(root: Path, name: str) -> Path:
    """Where `kdrun bias` writes by itself."""
    return ledger_path(root, name).parent / "bias"


def bias_section(root: Path, name: str, album: Album) -> str:
    """Nothing where the sweep has no grid yet."""
    folder = bias_folder(root, name)
    grids, sheets = sorted(folder.glob("grid*.png")), sorted(folder.glob("sheet-*.png"))
    if not grids:
        return ""
    words = (
        "Left: the share of clean accuracy that is kept on each derived test set, both above chance. Right: how far "
        "distillation shifted it from the independent student, in points, and as a share of the way to the teacher (0 "
        "to 1) where that is longer than noise. Every figure is in grid.csv and grid.md beside the "
        "sweep's ledger."
    )
    shown = "".join(scrolled(album.picture(place, "heat map of the bias grid", "map")) for place in grids)
    made = "".join(
        scrolled(album.picture(place, f"contact sheet {place.stem.removeprefix('sheet-')}", "wide")) for place in sheets
    )
    folded = f"<details><summary>The derived test images</summary>{made}</details>" if sheets else ""
    head = f'<h2>Bias transfer</h2><p class="quiet">{html.escape(words)}</p>'
    return f'<section id="bias">{head}{shown}{folded}</section>'


def scrolled(picture: str) -> str:
    return f'<div class="scroll">{picture}</div>'
