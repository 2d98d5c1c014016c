"""A method's object from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdrun.errors import ConfigError, one_line
from kdrun.models.own_import import import_own

if TYPE_CHECKING:
    from kdrun.methods.base import Method


def make_method(node: dict[str, Any]) -> Method:
    """The class behind `_target_`, with every key that is not for kdrun itself (`_name_`) as a hyperparameter."""
    module, _, name = node["_target_"].rpartition(".")
    try:
        kind = getattr(import_own(module), name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"method._target_={node['_target_']}: cannot import {module} ({one_line(error)}).") from error
    return kind(**{key: value for key, value in node.items() if key not in ("_target_", "_name_")})
