#!/usr/bin/env python3
"""Measure the speed of reading images from files: kdrun's streamed loader against torchvision's ImageFolder and
DataLoader.

Both read the same JPEGs (500 x 375, crops of the photographs bundled with scikit-image and scikit-learn), resize them
to 224, flip half of them and normalise them, in one process without workers. Rounds alternate; a round reads every
image once, timed in CPU time, so that other work on the machine has little effect. Prints and, with `save=`, writes as
Markdown: images per CPU-second, and kdrun's over ImageFolder's as the median of the rounds' ratios, with their range;
the same with `dataset.cache=resized`, for the epoch that fills the cache and for those after it.
Usage: scripts/input_speed.py [images=256] [rounds=7] [root=FOLDER] [save=FILE.md]     (root: instead of generated
images)
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import PIL
import skimage.data
import sklearn.datasets
import torch
import torchvision
from PIL import Image, features
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from kdrun.config.augment import Augment
from kdrun.config.options import DatasetOptions
from kdrun.data.image_tree import scan
from kdrun.data.keep_resized import kept
from kdrun.data.splits import FileSet
from kdrun.data.stream import StreamTrain
from kdrun.display import untracked
from kdrun.hardware import cpu_name, keep_freed_memory

SIDE, BATCH = 224, 64
STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BUNDLED = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")


def make_images(root: Path, count: int) -> None:
    """Write `count` photographs into eight class folders."""
    places = [Path(skimage.data.__file__).parent / name for name in BUNDLED]
    places += sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    photographs = [Image.open(place).convert("RGB") for place in places]
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width = int(min(photograph.width, photograph.height * 4 / 3) * generator.uniform(0.6, 1))
        height = width * 3 // 4
        left, top = (
            int(generator.integers(room + 1)) for room in (photograph.width - width, photograph.height - height)
        )
        place = root / f"class_{number % 8}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        area = photograph.crop((left, top, left + width, top + height))
        area.resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=95)


def ours(files: FileSet, augment: Augment) -> Callable[[int], int]:
    """Return kdrun's loader: epoch -> number of images read."""
    loader = StreamTrain(
        files,
        image_size=SIDE,
        resize="stretch",
        batch_size=BATCH,
        seed=0,
        stats=STATS,
        augment=augment,
        teacher_view="same",
        workers=0,
        device=torch.device("cpu"),
    )
    return lambda epoch: sum(len(batch.label) for batch in loader.epoch(epoch))


def plain(root: Path, first: T.RandomResizedCrop | T.Resize) -> Callable[[int], int]:
    """Return the loop of torchvision's reference training."""
    transform = T.Compose([first, T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*STATS)])
    loader = DataLoader(ImageFolder(str(root), transform), batch_size=BATCH, shuffle=True)
    return lambda epoch: sum(len(label) for _, label in loader)


def measure(root: Path, rounds: int) -> list[str]:
    """Measure, and return a table row for each kind of cropping."""
    rows = []
    for name, augment, first in (
        ("stretch", Augment(crop="none", flip=0.5), T.Resize((SIDE, SIDE))),
        ("RandomResizedCrop", Augment(crop="resized", resized_scale=[0.08, 1.0], flip=0.5), T.RandomResizedCrop(SIDE)),
    ):
        loaders = {"kdrun": ours(scan(root).files(), augment), "ImageFolder": plain(root, first)}
        rows.append(row_of(name, in_turn(loaders, rounds)))
    return rows


def measure_cache(root: Path, rounds: int) -> list[str]:
    """Return table rows for cached stretched images: the epoch that fills the cache, and those after it."""
    tree = scan(root)
    options = DatasetOptions(name="folder", image_size=SIDE, workers=0, cache="resized")
    augment = Augment(crop="none", flip=0.5)

    def first(epoch: int) -> int:
        with tempfile.TemporaryDirectory() as cache:
            files = kept(tree.files(), tree.content, options, Path(cache), untracked, fill=True)
            assert isinstance(files, FileSet)
            return ours(files, augment)(epoch)

    with tempfile.TemporaryDirectory() as cache:
        files = kept(tree.files(), tree.content, options, Path(cache), untracked, fill=True)
        assert isinstance(files, FileSet)
        usual = {"ImageFolder": plain(root, T.Resize((SIDE, SIDE)))}
        return [
            row_of(f"stretch, dataset.cache=resized, {name}", in_turn({"kdrun": loader} | usual, rounds))
            for name, loader in (("first epoch", first), ("later epochs", ours(files, augment)))
        ]


def in_turn(loaders: dict[str, Callable[[int], int]], rounds: int) -> dict[str, list[float]]:
    """Images per CPU-second of each loader in each round, after one that warms up."""
    paces: dict[str, list[float]] = {key: [] for key in loaders}
    for number in range(rounds + 1):
        for key, epoch in loaders.items():
            begun = time.process_time()
            images = epoch(number)
            if number:
                paces[key].append(images / (time.process_time() - begun))
    return paces


def row_of(name: str, paces: dict[str, list[float]]) -> str:
    ratios = [one / other for one, other in zip(paces["kdrun"], paces["ImageFolder"], strict=True)]
    pace = {key: f"{median(found):.0f}" for key, found in paces.items()}
    spread = f"{median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}]"
    return f"| {name} | {pace['kdrun']} | {pace['ImageFolder']} | {spread} |"


def main(words: list[str]) -> None:
    settings = dict(word.split("=", 1) for word in words)
    count, rounds = int(settings.get("images", 256)), int(settings.get("rounds", 7))
    torch.set_num_threads(1)
    keep_freed_memory()  # as in every kdrun run; ImageFolder benefits too
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(settings.get("root", scratch))
        if "root" not in settings:
            make_images(root, count)
        sizes = [place.stat().st_size for place in root.rglob("*.*") if place.is_file()]
        rows = [*measure(root, rounds), *measure_cache(root, rounds)]
    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    lines = [
        "# Images from files, per CPU-second",
        "",
        f"`scripts/input_speed.py {' '.join(words)}`",
        "",
        f"{len(sizes):,} images, {np.mean(sizes) / 1000:.0f} kB on average, to {SIDE} px in batches of {BATCH}; "
        f"{rounds} alternating rounds, CPU time of one process without workers. {cpu_name()}; {versions}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}.",
        "",
        "| resized by | kdrun | ImageFolder + DataLoader | ratio: median [range] of rounds |",
        "|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if "save" in settings:
        Path(settings["save"]).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
