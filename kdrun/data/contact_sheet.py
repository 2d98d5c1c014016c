"""Contact sheet of a data set: a row for each class, with its name and some of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdrun.data.decode import read_image
from kdrun.data.splits import AnySet, Dataset, FileSet

if TYPE_CHECKING:
    from PIL.Image import Image

CELL, GAP, LABEL = 96, 6, 170  # pixels
COLUMNS, ROWS = 8, 40  # images per class, classes per sheet


def contact_sheet(heading: str, splits: Dataset) -> Image:
    """Draw the first classes, each with evenly spread training images; unreadable images stay blank."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    names = splits.class_names[:ROWS]
    # Pillow's default font lacks × and most non-ASCII letters.
    font, head = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12), 26
    width = max(LABEL + COLUMNS * (CELL + GAP), round(font.getlength(heading)) + 2 * GAP)
    sheet = Image.new("RGB", (width, head + len(names) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 5), heading, "black", font)
    for label, name in enumerate(names):
        members = np.flatnonzero(splits.train.labels == label)
        top = head + label * (CELL + GAP)
        draw.text((GAP, top + CELL // 2 - 16), shortened(name, font), "black", font)
        draw.text((GAP, top + CELL // 2), f"{len(members):,} images", "gray", font)
        for column, image in enumerate(thumbnails(splits.train, spread(members, COLUMNS))):
            left = LABEL + column * (CELL + GAP) + (CELL - image.width) // 2
            sheet.paste(image, (left, top + (CELL - image.height) // 2))
    return sheet


def spread(members: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the members, evenly spread."""
    places = np.linspace(0, len(members) - 1, min(most, len(members)))
    return members[np.unique(places.astype(int))]


def thumbnails(images: AnySet, positions: Sequence[int] | np.ndarray) -> list[Image]:
    """Return the complete images in their own proportions, no side longer than CELL."""
    from PIL import Image

    made = []
    for position in positions:
        try:
            if isinstance(images, FileSet):
                image = Image.fromarray(read_image(images.root / images.paths[position], None))
            else:
                image = Image.fromarray(np.asarray(images.images[position]))
        except Exception:  # reported when it is read for training
            image = Image.new("RGB", (CELL, CELL), "lightgray")
        scale = CELL / max(image.size)
        side = [max(round(length * scale), 1) for length in image.size]
        smooth = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        made.append(image.resize((side[0], side[1]), smooth))
    return made


def shortened(name: str, font: object) -> str:
    """Return the name, shortened to the space next to the images."""
    length = getattr(font, "getlength", len)
    kept = name
    while kept and length(kept) > LABEL - 2 * GAP:
        kept = kept[:-1]
    return kept if kept == name else f"{kept[:-1]}…"
