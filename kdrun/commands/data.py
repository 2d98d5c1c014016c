"""kdrun data: inspect a data set, and find its damaged files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import Parsed, parse
from kdrun.config.compose import load
from kdrun.config.options import DatasetOptions, RunConfig, setting
from kdrun.data.contact_sheet import contact_sheet
from kdrun.data.datasets import DataSource
from kdrun.data.decode import RANGES
from kdrun.data.image_tree import Tree
from kdrun.data.overview import sizes_in_short
from kdrun.data.readable import DARK, Checked, check
from kdrun.data.splits import AnySet, ArraySet, Dataset, FileSet
from kdrun.display import legible
from kdrun.errors import ConfigError
from kdrun.files import write_atomically
from kdrun.runs.directory import short_path
from kdrun.runs.plan import output_root

HELP = """
usage: kdrun data FOLDER [save=SHEET.png] [dataset.KEY=VALUE …]
       kdrun data dataset=NAME [dataset.root=FOLDER] [save=SHEET.png] [dataset.KEY=VALUE …]

Shows the data as training would read it: classes with their number of images in each split, sizes, mean and standard
deviation, and files in the folder that are not read. Every image is decoded, and damaged ones are listed; exit code 1
if there are any. save= writes a sheet with some images of each class.

  kdrun data photos save=sheet.png
  kdrun data dataset=cifar100 dataset.root=/data/cifar100
"""

MOST = 40  # most classes shown in the table


@dataclass
class Options:
    save: Path | None = setting(None, suffixes=(".png",), help="write a contact sheet with some images of each class")


def command(words: list[str]) -> int:
    parsed = parse("data", words, Options, passes=True)
    config = configured(parsed)
    source = DataSource(config.dataset)
    splits = source.load(output_root(config) / "caches" / "data", console.track, as_files=True)
    checked = [(tree, check(tree, console.track)) for tree in source.trees]
    console.fact(*source.overview(splits))
    show_classes(splits, checked)
    for line in splits.notes:
        console.note(f"note: {line}")
    for line in [*facts(checked), *copies(splits, checked)]:
        console.say(line)
    show_stats(splits, checked)
    if parsed.options.save is not None:
        sheet = contact_sheet(" ".join(source.overview(splits)), splits)
        write_atomically(parsed.options.save, lambda file: sheet.save(file, "png"))
        console.say(f"contact sheet: [bold]{escape(short_path(parsed.options.save))}[/]")
    unreadable = [
        (tree.root / tree.paths[position], reason) for tree, found in checked for position, reason in found.unreadable
    ]
    images = sum(len(tree.paths) for tree, _ in checked)
    way_out = "repair or remove them, or train with dataset.on_error=skip"
    console.unreadable(unreadable, images - len(unreadable), way_out)
    if images and not unreadable:
        console.say(f"[bold green]all {images:,} images can be read[/]")
    return 1 if unreadable else 0


def configured(parsed: Parsed[Options]) -> RunConfig:
    """Return the configuration of the data set given by the arguments. Raises ConfigError."""
    if len(parsed.names) > 1:
        raise ConfigError(f"data takes one folder, not {len(parsed.names)}: {', '.join(parsed.names)}.")
    for key in parsed.rest:
        if key.partition(".")[0] not in ("dataset", "output_root"):
            raise ConfigError(f"{key}: data takes a folder, save, output_root, dataset and its settings.")
    if not parsed.names:
        if "dataset" not in parsed.rest:
            raise ConfigError("data needs a folder with class folders, or dataset=NAME (kdrun list datasets).")
        return load(parsed.overrides, parsed.config_dir)
    (folder,) = parsed.names
    if "dataset.root" in parsed.rest:
        raise ConfigError(f"data: give {folder} or dataset.root={parsed.rest['dataset.root']}, not both.")
    named = [] if "dataset" in parsed.rest else ["dataset=folder"]
    config = load([*named, *parsed.overrides], parsed.config_dir)
    options: DatasetOptions = replace(config.dataset, root=folder)  # Hydra's grammar rejects some paths
    return replace(config, dataset=options)


def show_classes(splits: Dataset, checked: list[tuple[Tree, Checked]]) -> None:
    """Print a row for each class: its images in each split, and how many cannot be read."""
    parts = {"train": splits.train, "validation": splits.val, "test": splits.test}
    columns = {
        name: np.bincount(part.labels, minlength=splits.num_classes) for name, part in parts.items() if part is not None
    }
    damaged = sum(
        np.bincount(tree.labels[[position for position, _ in found.unreadable]], minlength=splits.num_classes)
        for tree, found in checked
    )
    if np.any(damaged):
        columns["unreadable"] = np.asarray(damaged)
    order = np.arange(splits.num_classes)
    if len(order) > MOST:
        by_size = np.argsort(columns["train"], kind="stable")
        order = np.sort(np.concatenate([by_size[: MOST // 2], by_size[-MOST // 2 :]]))
    rows = [[splits.class_names[label], *(f"{counts[label]:,}" for counts in columns.values())] for label in order]
    rows.append(["all", *(f"{counts.sum():,}" for counts in columns.values())])
    console.table("", ["class", *columns], rows)
    if len(order) < splits.num_classes:
        console.note(f"showing the {MOST // 2} smallest and {MOST // 2} largest of {splits.num_classes:,} classes")


def facts(checked: list[tuple[Tree, Checked]]) -> list[str]:
    """Return lines on the sizes and types of the files."""
    sizes: Counter[tuple[int, int]] = sum((found.sizes for _, found in checked), Counter())
    kinds = Counter(path.rpartition(".")[2].lower() for tree, _ in checked for path in tree.paths)
    lines = []
    if sizes:
        widths, heights = zip(*sizes, strict=True)
        span = (
            "" if len(sizes) == 1 else f" ({min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} high)"
        )
        lines.append(f"sizes: {sizes_in_short(sizes)}{span}")
    if kinds:
        lines.append(f"files: {', '.join(f'{count:,} {escape(kind)}' for kind, count in kinds.most_common(6))}")
    dark, total = sum(found.dark for _, found in checked), sum(sizes.values())
    if 2 * dark > total:
        lines.append(
            f"note: {dark:,} of {total:,} images are nearly black, without a value of {DARK} or above (of 255): 12-bit "
            "values in 16-bit files? Convert them to 8 bits, with the range of values that matters."
        )
    return lines + range_notes(checked)


def range_notes(checked: list[tuple[Tree, Checked]]) -> list[str]:
    """Return notes on images of 32-bit numbers: where the same value is not the same grey, and where values are cut."""
    ranges: Counter[tuple[float, float]] = sum((found.ranges for _, found in checked), Counter())
    usual = {limits: f"{limits[0]:,} to {limits[1]:,}" for limits in RANGES if limits in ranges}
    read = [f"{ranges[limits]:,} from {shown}" for limits, shown in usual.items()]
    if own := ranges.total() - sum(ranges[limits] for limits in usual):
        read.append(f"{own:,} each from its least to its greatest value")
    convert = "Convert the images to 8 bits, with one range for all."
    lines = []
    if own or len(read) > 1:
        lines.append(f"note: a value is not the same grey in all images, which are read {', '.join(read)}. {convert}")
    if cut := sum(found.cut for _, found in checked):
        lines.append(
            f"note: {cut:,} of {ranges.total():,} images of 16- or 32-bit numbers have values outside of what is read "
            f"({' or '.join(usual.values())}): those below are black, those above white. {convert}"
        )
    return lines


def copies(splits: Dataset, checked: list[tuple[Tree, Checked]]) -> list[str]:
    """Return notes on images with the same pixels in training and in another split, or in several classes."""
    if not checked:
        return []
    names = [f"{tree.root.name}/{path}" for tree, _ in checked for path in tree.paths]
    digests = np.concatenate([found.digests for _, found in checked])
    labels = np.concatenate([tree.labels for tree, _ in checked])
    return copies_of_training(splits, checked, names, digests) + copies_in_classes(names, digests, labels)


def copies_of_training(
    splits: Dataset, checked: list[tuple[Tree, Checked]], names: list[str], digests: np.ndarray
) -> list[str]:
    """Return a note for each split that has images with the pixels of a training image."""
    known = digests != 0
    trained = digests[members(splits.train, checked) & known]
    lines = []
    for kind, part in (("validation", splits.val), ("test", splits.test)):
        also = np.flatnonzero(members(part, checked) & known & np.isin(digests, trained))
        if part is not None and len(also):
            are = "is also a training image" if len(also) == 1 else "are also training images"
            shown = escape(legible(names[also[0]]))
            lines.append(
                f"note: {len(also):,} of {len(part):,} {kind} images {are}, such as {shown}: remove the copies"
            )
    return lines


def copies_in_classes(names: list[str], digests: np.ndarray, labels: np.ndarray) -> list[str]:
    """Return a note if images with the same pixels have different labels."""
    order = np.lexsort((labels, digests))
    same = (np.diff(digests[order]) == 0) & (np.diff(labels[order]) != 0) & (digests[order][1:] != 0)
    pairs = np.flatnonzero(same).tolist()
    if not pairs:
        return []
    count = len(np.unique(digests[order[pairs]]))
    first, second = (escape(legible(names[order[pairs[0] + step]])) for step in (0, 1))
    are = "picture is" if count == 1 else "pictures are"
    return [f"note: {count:,} {are} in more than one class, such as {first} and {second}: remove the wrong copies"]


def members(part: AnySet | None, checked: list[tuple[Tree, Checked]]) -> np.ndarray:
    """Return a mask over the images of all trees: True for those of a split."""
    root, chosen = (part.root, set(part.paths)) if isinstance(part, FileSet) else (None, set())
    return np.array([tree.root == root and path in chosen for tree, _ in checked for path in tree.paths], dtype=bool)


def show_stats(splits: Dataset, checked: list[tuple[Tree, Checked]]) -> None:
    """Print mean and standard deviation of the training images on the scale of 0 to 1, with equal weight for every
    file."""
    if isinstance(splits.train, ArraySet):
        from kdrun.data.resident import measured_stats

        mean, std = measured_stats(np.asarray(splits.train.images))
    else:
        moments = training_moments(splits.train, checked)
        if not len(moments):
            return
        first, second = moments.mean(axis=0)
        mean, std = first.tolist(), np.sqrt(np.maximum(second - first**2, 0)).tolist()
    shown = [f"[{', '.join(f'{value:.4f}' for value in values)}]" for values in (mean, std)]
    console.say(escape(f"mean {shown[0]}  std {shown[1]}  (training images)"))


def training_moments(train: FileSet, checked: list[tuple[Tree, Checked]]) -> np.ndarray:
    """Return the moments [N, 2, 3] of the readable training images."""
    every = np.concatenate([found.moments for _, found in checked])[members(train, checked)]
    return every[~np.isnan(every[:, 0, 0])]
