"""The images of `kdrun gradcam`: some of the run's own, or files, prepared as evaluation prepares them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdrun.config.options import DatasetOptions
from kdrun.data.datasets import STREAMED
from kdrun.data.decode import read_image
from kdrun.data.image_tree import SUFFIXES
from kdrun.data.splits import AnySet, ArraySet
from kdrun.errors import ConfigError, DataError, one_line
from kdrun.training.build import Data


@dataclass(frozen=True)
class Images:
    """pixels uint8 [N, S, S, 3]; labels [N] int64, -1 where the class is unknown; names of the files, or numbers."""

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def own_images(chosen: AnySet, count: int, options: DatasetOptions) -> Images:
    """The first `count` images of `spread`, prepared."""
    order = spread(chosen.labels)[:count]
    part = chosen.take(order)
    if isinstance(part, ArraySet):
        pixels = np.ascontiguousarray(part.images)
    else:
        pixels = np.stack([prepared(part.root / path, options) for path in part.paths])
    return Images(pixels, part.labels, [str(number) for number in order])


def spread(labels: np.ndarray) -> np.ndarray:
    """All positions in an order that is random and always the same, one of every class before any second one."""
    order = np.random.default_rng(0).permutation(len(labels))
    seen: dict[int, int] = {}
    turns = []
    for label in labels[order].tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return order[np.argsort(turns, kind="stable")]


def files_named(word: str) -> list[Path]:
    """The image files that images=… means. Raises ConfigError or DataError."""
    found: list[Path] = []
    for part in word.split(","):
        path = Path(part).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise DataError(f"images={part}: the folder holds no images ({', '.join(SUFFIXES)}).")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"images={part}: no such file or folder (or give a number of the run's own images).")
    return found


def read_files(files: list[Path], data: Data) -> Images:
    """Their images; the name of a file's folder is its class where the data set has such a one."""
    classes = {name: label for label, name in enumerate(data.splits.class_names)}
    pixels = np.stack([prepared(path, data.config.dataset) for path in files])
    labels = np.array([classes.get(path.absolute().parent.name, -1) for path in files], dtype=np.int64)
    return Images(pixels, labels, [str(path) for path in files])


def prepared(path: Path, options: DatasetOptions) -> np.ndarray:
    """One file as evaluation sees it, before normalisation: uint8 [S, S, 3]. Raises DataError."""
    try:
        if options.name not in STREAMED:
            return read_image(path, options.image_size)
        pixels = read_image(path, None)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and its own kinds for damaged files
        raise DataError(f"image {path} cannot be read ({one_line(error)}).") from error
    import torch

    from kdrun.data.transform import PlainView

    transform = PlainView(options.image_size, options.resize)
    return transform(torch.from_numpy(pixels.copy()).permute(2, 0, 1)).permute(1, 2, 0).numpy()


def batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
