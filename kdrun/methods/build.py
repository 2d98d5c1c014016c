"""A method's object from its configuration."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdrun.methods.base import Method


def make_method(node: dict[str, Any]) -> Method:
    """The class behind `_target_`, with every other key as a hyperparameter."""
    module, _, name = node["_target_"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind(**{key: value for key, value in node.items() if key != "_target_"})
