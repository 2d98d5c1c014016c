"""A method's object from its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdrun.config.own_code import located
from kdrun.errors import ConfigError, KdrunError
from kdrun.models.own_import import import_own

if TYPE_CHECKING:
    from kdrun.methods.base import Method


def make_method(node: dict[str, Any]) -> Method:
    """The class behind `_target_`, with every key that is not for kdrun itself (`_name_`) as a hyperparameter. Raises
    ConfigError where it is none of a method."""
    target = node["_target_"]
    kind = method_class(target)
    try:
        return kind(**{key: value for key, value in node.items() if key not in ("_target_", "_name_")})
    except KdrunError:
        raise
    except Exception as error:  # whatever one's own constructor raises
        raise ConfigError(f"method._target_={target}: {kind.__name__}(…) failed: {located(error)}") from error


def method_class(target: str) -> type[Method]:
    """The class that `target` names. Raises ConfigError where there is none that returns losses."""
    from kdrun.methods.base import Method

    module, _, name = target.rpartition(".")
    try:
        kind = getattr(import_own(module), name, None)
    except Exception as error:  # whatever one's own module raises
        raise ConfigError(f"method._target_={target}: cannot import {module}: {located(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ConfigError(
            f"method._target_={target}: {name} is no method; derive it: class {name}(kdrun.methods.base.Method)."
        )
    if kind.losses is Method.losses and kind.forward is Method.forward:
        raise ConfigError(
            f"method._target_={target}: {name} has no losses(self, batch, student, teacher, progress), which returns "
            "a dictionary of scalar tensors that depend on the student."
        )
    return kind
