"""Contact sheets: originals above their derived images, a column for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kdrun.data.splits import ArraySet
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.cache import Derived
from kdrun.evaluation.testsets.registry import title
from kdrun.files import write_atomically

CELL = 96  # pixels of the sheet per image: a whole multiple of 32 px
MARGIN, LINE = 6, 18
MAX_CLASSES = 10


def contact_sheet(
    heading: str,
    originals: np.ndarray,
    derived: np.ndarray,
    captions: list[str],
    below: list[str] | None = None,
    rows: int = 2,
) -> np.ndarray:
    """Return uint8 [h, w, 3]: `rows` pairs of rows, each original above its derived image.

    originals, derived: uint8 [rows * C, H, W, 3], row after row; captions: C column heads; below: a line under each
    pair (the texture's class), or None.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = len(captions)
    pair = 2 * CELL + 2 * MARGIN + (LINE if below else 0) + MARGIN
    width, head = MARGIN + columns * (CELL + MARGIN), 2 * LINE + MARGIN
    font = ImageFont.load_default(13)
    width = max(width, round(font.getlength(heading)) + 2 * MARGIN)
    canvas = Image.new("RGB", (width, head + rows * pair), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 3), heading, "black", font)
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
    """Return (indices [rows * C] of the first `rows` images of up to ten classes, row after row, the classes [C])."""
    classes = [label for label in np.unique(labels) if (labels == label).sum() >= rows][:MAX_CLASSES]
    first = [np.flatnonzero(labels == label)[:rows] for label in classes]
    return np.array(first, dtype=np.int64).reshape(len(classes), rows).T.ravel(), np.array(classes, dtype=np.int64)


def _fitting(text: str) -> str:
    return text if len(text) <= 13 else text[:12] + "…"


def _filter(side: int) -> int:
    from PIL import Image

    return Image.Resampling.NEAREST if side <= CELL else Image.Resampling.LANCZOS


def write_sheet(place: Path, wished: NamedSet, found: Derived, clean: ArraySet, class_names: list[str]) -> None:
    """Write the contact sheet as PNG. Images of a published set are shown below others of their class unless the
    order is the same."""
    from PIL import Image

    below = None
    chosen, classes = chosen_images(found.data.labels)
    originals = chosen
    heading = f"{title(wished)}   ({wished.recipe})"
    if not np.array_equal(found.data.labels, clean.labels):
        originals, _ = chosen_images(clean.labels)
        heading += "   above: other images of the class"
    if found.texture_labels is not None:
        below = [class_names[label] for label in found.texture_labels[chosen]]
    pixels = contact_sheet(
        heading, clean.images[originals], found.data.images[chosen], [class_names[label] for label in classes], below
    )
    write_atomically(place, lambda file: Image.fromarray(pixels).save(file, "PNG"))
