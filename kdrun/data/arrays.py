"""Arrays on disk, read without trusting their content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdrun.errors import one_line


def read_array(place: Path, mmap_mode: Literal["r", "c"] | None = None) -> np.ndarray:
    """Read an array of numpy.save; nothing is ever unpickled. Raises ValueError if it is damaged or missing."""
    try:
        found: Any = np.load(place, mmap_mode=mmap_mode, allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, and the parser may raise anything
        raise ValueError(f"{place.name}: {one_line(error)}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{place.name}: an archive of arrays, not an array")
    return found


def sha256_of_values(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's values, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
