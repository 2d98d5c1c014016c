"""A method's object from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdrun.own_import import import_own

if TYPE_CHECKING:
    from kdrun.methods.base import Method


def make_method(node: dict[str, Any]) -> Method:
    """The class behind `_target_`, with every key that is not for kdrun itself (`_name_`) as a hyperparameter."""
    module, _, name = node["_target_"].rpartition(".")
    kind = getattr(import_own(module), name)
    return kind(**{key: value for key, value in node.items() if key not in ("_target_", "_name_")})
