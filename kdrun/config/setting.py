"""How a setting is declared: a dataclass field with the rules that its values keep, and the bounds that many share."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from omegaconf import MISSING

# Far above what anybody trains with: beyond these a number is a slip, which would cost hours or all memory.
LARGEST_SEED = 2**32 - 1  # what NumPy and others take, so that a seed means the same everywhere
LARGEST_SIDE, LARGEST_BATCH, MOST_EPOCHS, LARGEST_RATE = 8192, 2**20, 100_000, 100


def setting(default: Any = MISSING, **rules: Any) -> Any:
    """A dataclass field with validation rules; a list or dict default is copied."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=rules)
    return field(default=default, metadata=rules)
