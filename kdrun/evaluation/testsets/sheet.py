"""A contact sheet: originals above their derived images, a column for each class."""

from __future__ import annotations

import numpy as np

CELL = 96  # pixels of the sheet for one image: at 32 px a whole enlargement
MARGIN, LINE = 6, 18
MAX_CLASSES = 10


def contact_sheet(
    title: str,
    originals: np.ndarray,
    derived: np.ndarray,
    captions: list[str],
    below: list[str] | None = None,
    rows: int = 2,
) -> np.ndarray:
    """uint8 [h, w, 3]: `rows` pairs of rows, each original above its derived image.

    originals, derived: uint8 [rows * C, H, W, 3], row after row; captions: C column heads; below: a line under each
    pair (the texture's class), or None.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = len(captions)
    pair = 2 * CELL + 2 * MARGIN + (LINE if below else 0) + MARGIN
    width, head = MARGIN + columns * (CELL + MARGIN), 2 * LINE + MARGIN
    font = ImageFont.load_default(13)
    width = max(width, round(font.getlength(title)) + 2 * MARGIN)
    canvas = Image.new("RGB", (width, head + rows * pair), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 3), title, "black", font)
    for position in range(rows * columns):
        row, column = divmod(position, columns)
        x, y = MARGIN + column * (CELL + MARGIN), head + row * pair
        if row == 0:
            draw.text((x, LINE + 3), _fitting(captions[column]), "black", font)
        for image, top in ((originals[position], y), (derived[position], y + CELL + MARGIN // 2)):
            enlarged = Image.fromarray(image).resize((CELL, CELL), _filter(image.shape[0]))
            canvas.paste(enlarged, (x, top))
        if below:
            draw.text((x, y + 2 * CELL + MARGIN), _fitting(below[position]), "black", font)
    return np.asarray(canvas)


def chosen_images(labels: np.ndarray, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """(indices [rows * C] of the first `rows` images of up to ten classes, row after row, the classes [C])."""
    classes = [label for label in np.unique(labels) if (labels == label).sum() >= rows][:MAX_CLASSES]
    first = [np.flatnonzero(labels == label)[:rows] for label in classes]
    return np.array(first, dtype=np.int64).reshape(len(classes), rows).T.ravel(), np.array(classes, dtype=np.int64)


def _fitting(text: str) -> str:
    return text if len(text) <= 13 else text[:12] + "…"


def _filter(side: int) -> int:
    from PIL import Image

    return Image.Resampling.NEAREST if side <= CELL else Image.Resampling.LANCZOS
