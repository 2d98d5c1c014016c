"""Test sets as PNG files: class folders, or one archive of them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO

import numpy as np

from kdrun.data.splits import ArraySet
from kdrun.display import Track


def png_files(
    data: ArraySet, class_names: list[str], texture_labels: np.ndarray | None, track: Track
) -> Iterator[tuple[str, bytes]]:
    """Yield (relative name, PNG): <class>/<index>.png; for a cue conflict <shape class>/<index>_<texture class>.png."""
    from PIL import Image

    folders = [name.replace("/", "_").replace("\\", "_") for name in class_names]
    for index in track(iter(range(len(data))), len(data), f"writing {len(data):,} images"):
        ending = "" if texture_labels is None else f"_{folders[texture_labels[index]]}"
        buffer = BytesIO()
        Image.fromarray(data.images[index]).save(buffer, "PNG")
        yield f"{folders[data.labels[index]]}/{index:05d}{ending}.png", buffer.getvalue()


def write_zip(file: IO[bytes], files: Iterable[tuple[str, bytes]]) -> None:
    """Write an archive with reproducible bytes: entries have no time stamp, and PNG is already compressed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)
