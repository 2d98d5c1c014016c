"""Declaration of a setting: a dataclass field with validation rules, and bounds that many settings share."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from omegaconf import MISSING

# Far above realistic values: a larger number is a typing error that would cost hours or all memory.
LARGEST_SEED = 2**32 - 1  # NumPy's limit, so that a seed means the same everywhere
LARGEST_SIDE, LARGEST_BATCH, MOST_EPOCHS, LARGEST_RATE = 8192, 2**20, 100_000, 100


def setting(default: Any = MISSING, **rules: Any) -> Any:
    """Return a dataclass field with validation rules. A list or dict default is copied."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=rules)
    return field(default=default, metadata=rules)
