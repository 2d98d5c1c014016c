"""Pictures within a page: each is reduced, and their total size stays small enough for an e-mail."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

BUDGET = 12 * 2**20  # total bytes of a page's pictures
WIDEST = 1600  # pixels; wider than a page
MOST_PIXELS = 40_000_000
COLOURS = 256  # enough for charts and for heat maps, at a third of the size


@dataclass
class Album:
    """Pictures of one page. left: bytes still available; left_out: number of pictures that did not fit."""

    left: int = BUDGET
    left_out: int = 0

    def picture(self, place: Path, text: str, kind: str = "") -> str:
        """Return a picture as HTML; an empty string if the file is not a picture, or a link to elsewhere."""
        data = compact(place)
        if data is None:
            return ""
        if len(data) > self.left:
            self.left_out += 1
            return ""
        self.left -= len(data)
        code = base64.b64encode(data).decode()
        return f'<img{kind and f" class={kind}"} alt="{html.escape(text)}" src="data:image/png;base64,{code}">'


def compact(place: Path) -> bytes | None:
    """Return a PNG of at most WIDEST pixels across and COLOURS colours; None if it cannot be read."""
    from PIL import Image

    if place.is_symlink() or place.parent.is_symlink():
        return None
    try:
        with Image.open(place, formats=("PNG",)) as found:
            if found.width * found.height > MOST_PIXELS:
                return None
            image = found.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(content, "PNG", optimize=True)
    return content.getvalue()
