"""Models of timm, torchvision and the user's own packages, with a head for the data set's classes."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdrun.config.own_code import located, own_place
from kdrun.errors import ConfigError, KdrunError, one_line, reason_of, suggest
from kdrun.models import hub
from kdrun.models.own_import import import_own

IMAGENET_CLASSES = 1000
# Constructor arguments with which timm and torchvision would load weights without kdrun's control.
WEIGHTS_BY_KWARGS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "weights",
    "weights_backbone",
)


def create_timm(
    name: str, num_classes: int, image_size: int, pretrained: bool, role: str, kwargs: dict[str, Any]
) -> nn.Module:
    """Create `timm:NAME`; transformers with a fixed input get `img_size` from the data set. pretrained: load timm's
    own weights."""
    import timm

    check_kwargs(f"timm:{name}", kwargs)
    bare, _, tag = name.partition(".")
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(bare):
        raise ConfigError(f"timm:{name}: timm {timm.__version__} has no such model.{suggest(bare, timm.list_models())}")
    if tag and tag not in (tags := [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]):
        listed = f" Known: {', '.join(tags)}." if tags else " It has none."
        raise ConfigError(f"timm:{name}: {bare} has no weights of that name.{suggest(tag, tags)}{listed}")
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    options = dict(kwargs)
    if cfg is not None and cfg.fixed_input_size:
        options.setdefault("img_size", image_size)
    with building(f"timm:{name}", options):
        if not pretrained:
            return timm.create_model(name, num_classes=num_classes, **options)
        with hub.reached(f"timm:{name}", hub.timm_weights(cfg), role):
            return timm.create_model(name, pretrained=True, num_classes=num_classes, **options)


def timm_layouts(model: nn.Module) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """Return timm's conversion of other projects' names, and of position embeddings of another size; None for models
    without one."""
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    return None if convert is None else lambda state: convert(state, model)


def create_torchvision(name: str, num_classes: int, pretrained: bool, role: str, kwargs: dict[str, Any]) -> nn.Module:
    """Create `torchvision:NAME`; a pretrained network is built with its own head first, then given a new one."""
    from torchvision import models

    check_kwargs(f"torchvision:{name}", kwargs)
    warnings.filterwarnings("ignore", "The default weight initialization of", FutureWarning)
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"torchvision:{name}: torchvision has no such classification model.{suggest(name, known)}")
    with building(f"torchvision:{name}", kwargs):
        if not pretrained:
            return models.get_model(name, weights=None, num_classes=num_classes, **kwargs)
        url = models.get_model_weights(name)["DEFAULT"].url
        with hub.reached(f"torchvision:{name}", hub.Weights(url=url), role):
            model = models.get_model(name, weights="DEFAULT", **kwargs)
    if num_classes != IMAGENET_CLASSES:
        replace_head(model, num_classes)
    return model


@contextmanager
def building(name: str, arguments: dict[str, Any]) -> Iterator[None]:
    """Raise ConfigError (one line) for whatever a library's constructor raises in this block."""
    try:
        yield
    except KdrunError:
        raise
    except RuntimeError as error:
        raise ConfigError(f"{name}: {one_line(error)}") from error
    except Exception as error:  # wrong arguments can raise any type
        raise ConfigError(f"{name} cannot be built with {arguments}: {reason_of(error)}") from error


def check_kwargs(name: str, kwargs: dict[str, Any]) -> None:
    """Raise ConfigError for an argument that names weights: these have settings of their own."""
    for key in WEIGHTS_BY_KWARGS:
        if key in kwargs:
            raise ConfigError(f"{name}: kwargs.{key}: set weights by pretrained= or checkpoint=, not by kwargs.")


def create_own(path: str, num_classes: int, image_size: int, kwargs: dict[str, Any]) -> nn.Module:
    """Create `package.module:callable`, called with num_classes, and with image_size if it accepts it."""
    module_name, _, attribute = path.partition(":")
    factory = own_factory(path, module_name, attribute)
    try:
        accepted = inspect.signature(factory).parameters
    except ValueError as error:  # callables written in C
        raise ConfigError(f"{path}: {attribute} has no signature that Python can read.") from error
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    options = {"num_classes": num_classes, "image_size": image_size, **kwargs}
    passed = {key: value for key, value in options.items() if everything or key in accepted or key in kwargs}
    if "num_classes" not in passed:
        raise ConfigError(f"{path}: the callable must take num_classes (the data set has {num_classes}).")
    try:
        model = factory(**passed)
    except KdrunError:
        raise
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"{path} cannot be called with {passed}: {located(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{path} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def own_factory(path: str, module: str, attribute: str) -> Callable[..., Any]:
    """Return the callable behind `package.module:callable`. Raises ConfigError."""
    if module.endswith(".py") or "/" in module:
        file = Path(module.removesuffix(".py"))
        if file.is_absolute() or ".." in file.parts or "~" in file.parts:
            out = f"start kdrun in {file.parent}, or add that folder to PYTHONPATH, and write {file.name}:{attribute}"
        else:
            out = f"{'.'.join(file.parts)}:{attribute}"
        raise ConfigError(f"{path}: a network is named by its module, not by a file: {out}.")
    try:
        found = import_own(module)
    except SystemExit as error:
        raise ConfigError(
            f"{path}: importing {module} exits Python ({own_place(error)}); put the script's main part below "
            "if __name__ == '__main__'."
        ) from error
    except Exception as error:  # a user's module may raise anything
        line = f"{path}: cannot import {module}: {located(error)}"
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            line += "; start kdrun in the folder that contains it, or add that folder to PYTHONPATH."
        raise ConfigError(line) from error
    factory = getattr(found, attribute, None)
    if factory is None:
        raise ConfigError(f"{path}: {module} has no {attribute}.{suggest(attribute, vars(found))}")
    if isinstance(factory, nn.Module):
        raise ConfigError(f"{path}: {attribute} is a network already; name the class or function that builds it.")
    if not callable(factory):
        raise ConfigError(f"{path}: {attribute} is a {type(factory).__name__}, which cannot be called.")
    return factory


def head_path(model: nn.Module) -> str:
    """Return the path of the classifier: the last Linear in the order of definition."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ConfigError(f"{type(model).__name__} has no Linear classifier to replace; give it num_classes itself.")
    return names[-1]


def replace_head(model: nn.Module, num_classes: int, dropout: float | None = None) -> None:
    """Replace the classifier by a new Linear, after Dropout if requested."""
    path = head_path(model)
    old = model.get_submodule(path)
    assert isinstance(old, nn.Linear)
    new: nn.Module = nn.Linear(old.in_features, num_classes)
    if dropout is not None:
        new = nn.Sequential(nn.Dropout(dropout), new)
    parent, _, attribute = path.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
