"""Section of `kdrun report` with the output of `kdrun bias`: the heat maps and the contact sheets."""

from __future__ import annotations

import html
from pathlib import Path

from kdrun.reporting.html.album import Album
from kdrun.runs.ledger import ledger_path


def bias_folder(root: Path, name: str) -> Path:
    """Return the folder in which `kdrun bias` writes by default."""
    return ledger_path(root, name).parent / "bias"


def bias_section(root: Path, name: str, album: Album) -> str:
    """Return the section; an empty string if the sweep has no grid yet."""
    folder = bias_folder(root, name)
    grids, sheets = sorted(folder.glob("grid*.png")), sorted(folder.glob("sheet-*.png"))
    if not grids:
        return ""
    words = (
        "Left: share of the clean accuracy kept on each derived test set, both above chance. Right: how far "
        "distillation shifted it from the independent student, in points, and as a fraction of the distance to the "
        "teacher (0 to 1) where that exceeds noise. All figures are in grid.csv and grid.md next to the sweep's ledger."
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
