"""Creation of a method's object from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdrun.config.own_code import located
from kdrun.errors import ConfigError, KdrunError
from kdrun.models.own_import import import_own

if TYPE_CHECKING:
    from kdrun.methods.base import Method


def make_method(node: dict[str, Any]) -> Method:
    """Create the method of `_target_`, with every key except kdrun's own (`_name_`) as a hyperparameter. Raises
    ConfigError if it is not a method."""
    target = node["_target_"]
    kind = method_class(target)
    try:
        return kind(**{key: value for key, value in node.items() if key not in ("_target_", "_name_")})
    except KdrunError:
        raise
    except Exception as error:  # a user's constructor may raise anything
        raise ConfigError(f"method._target_={target}: {kind.__name__}(…) failed: {located(error)}") from error


def method_class(target: str) -> type[Method]:
    """Return the class that `target` names. Raises ConfigError unless it is a method with `losses`."""
    from kdrun.methods.base import Method

    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_own(module), name, None)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"method._target_={target}: cannot import {module}: {located(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(
            f"method._target_={target}: {name} is not a method; derive it: class {name}(kdrun.methods.base.Method)."
        )
    if kind.losses is Method.losses and kind.forward is Method.forward:
        raise ConfigError(
            f"method._target_={target}: {name} lacks losses(self, batch, student, teacher, progress), returning "
            "a dictionary of scalar tensors that depend on the student."
        )
    return kind
