"""Overview of a data set in a line or two, to check before training on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import numpy as np

from kdrun.config.options import DatasetOptions
from kdrun.data.splits import AnySet, Dataset, FileSet
from kdrun.display import legible, plural

MOST_NAMES = 8
LONGEST_NAME = 24
SAMPLED = 48  # number of files whose image size is read
FIRST = 5  # unreadable images listed by name
RESIZED = {"stretch": "stretched", "fit": "fit, centre", "crop": "centre crop"}


def overview(splits: Dataset, options: DatasetOptions, flat: bool) -> str:
    """Return classes, images of each split, smallest and largest class, and sizes. flat: True if kdrun made the
    splits."""
    parts = [
        f"{splits.num_classes:,} classes ({names_in_short(splits.class_names)})",
        split_sizes(splits, flat, options.evaluate_on),
        class_sizes(splits),
        image_sizes(splits.train, options),
    ]
    return " · ".join(parts)


def names_in_short(names: list[str], most: int = MOST_NAMES) -> str:
    """Return cat, dog, fox; for many names the first, and how many more."""
    shown = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    if len(names) <= most:
        return ", ".join(shown)
    return f"{', '.join(shown[: most - 3])} and {len(names) - most + 3:,} more"


def split_sizes(splits: Dataset, flat: bool, evaluate_on: str) -> str:
    """Return the number of images in each split. evaluate_on: the kind of images that evaluation uses, test or val."""
    held = {"validation": splits.val, "test" if evaluate_on == "test" else "validation": splits.test}
    text = ", ".join(
        [f"{len(splits.train):,} train", *(f"{len(part):,} {name}" for name, part in held.items() if part is not None)]
    )
    if not flat or evaluate_on != "test":
        return text
    every = len(splits.train) + sum(len(part) for part in held.values() if part is not None)
    return f"{text} ({100 * len(splits.test) / every:.0f} % of each class)"


def class_sizes(splits: Dataset) -> str:
    """Return how many training images the smallest and the largest class have, with their names."""
    counts = np.bincount(splits.train.labels, minlength=splits.num_classes)
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[few] == counts[many]:
        return f"{plural(int(counts[few]), 'training image')} per class"
    names = [names_in_short([splits.class_names[label]]) for label in (few, many)]
    return f"{counts[few]:,} ({names[0]}) to {counts[many]:,} ({names[1]}) training images per class"


def image_sizes(images: AnySet, options: DatasetOptions) -> str:
    side = f"{options.image_size}×{options.image_size}"
    if not isinstance(images, FileSet):
        return side
    found = Counter(sampled_sizes(images))
    if not found:
        return f"→ {side}"
    if found.keys() == {(options.image_size, options.image_size)}:
        return side
    return f"{sizes_in_short(found)} → {side} ({RESIZED[options.resize]})"


def sizes_in_short(found: Counter[tuple[int, int]]) -> str:
    (width, height), _ = found.most_common(1)[0]
    return f"{width}×{height}" + (" and other sizes" if len(found) > 1 else "")


def sampled_sizes(images: FileSet) -> Iterator[tuple[int, int]]:
    """Yield (width, height) of some files spread over all, from their first bytes; rotated as their EXIF tag says."""
    from PIL import Image

    for position in np.unique(np.linspace(0, len(images) - 1, min(SAMPLED, len(images))).astype(int)):
        try:
            with Image.open(images.root / images.paths[position]) as image:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
                width, height = image.size
                yield (height, width) if turned else (width, height)
        except Exception:  # reported when it is read as an image
            continue


def name_of(options: DatasetOptions) -> str:
    """Return the data set's name; for a folder its own name."""
    if options.name != "folder" or options.root is None:
        return options.name
    return legible(os.path.basename(os.path.abspath(os.path.expanduser(options.root))))


def unreadable_in_words(unreadable: list[tuple[str, str]], left_out: str = "left out") -> str:
    """Return a note: 2 images cannot be read and are left out: cat/1.jpg (the file is empty), cat/7.jpg (…)."""
    shown = ", ".join(f"{legible(image)} ({reason})" for image, reason in unreadable[:FIRST])
    more = f" and {len(unreadable) - FIRST:,} more" if len(unreadable) > FIRST else ""
    count = len(unreadable)
    what = "image cannot be read and is" if count == 1 else "images cannot be read and are"
    return f"{count:,} {what} {left_out}: {shown}{more}"
