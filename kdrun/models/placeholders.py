"""Placeholders for the objects beside tensors in a torch.save file: their weights are read, and none of their code."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Placeholder(dict[Any, Any]):
    """Object of a class that is not imported. A module's entries are those of its state dict; another object's are its
    attributes."""

    def __new__(cls, *args: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any):
        """Drop the arguments, which only the object's own code understands."""
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment]  # members of an enumeration are keys of dictionaries

    def __setstate__(self, state: Any) -> None:
        """Take the entries from a pickled state; the parts of the object have theirs already."""
        if isinstance(state, Mapping):
            self.update(module_weights(state) if is_module(state) else state)


class Entries:
    """Constructor of the plain dictionary that stands for an object of a subclass, which PyTorch does not fill."""

    def __new__(cls, *args: Any) -> OrderedDict[Any, Any]:
        return OrderedDict()


class Items:
    """Constructor of the plain list that stands for an object of another kind of list."""

    def __new__(cls, *args: Any) -> list[Any]:
        return []


def load_passing_over(path: Path) -> Any:
    """Run torch.load with `weights_only` on a file, and with a placeholder for each class and function that it would
    refuse; the format before PyTorch 1.6 gets none.

    Raises what torch.load does, UnpicklingError for what it refuses nevertheless.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    kinds: dict[str, type] = {name: placeholder(name) for name in names}
    while True:
        try:
            with torch.serialization.safe_globals([(kind, name) for name, kind in kinds.items()]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name, kind = container(error)
            if kinds.get(name, kind) is kind:
                raise
            kinds[name] = kind


def placeholder(name: str) -> type[Placeholder]:
    """Return a type that messages of PyTorch call `name`."""
    module, _, last = name.rpartition(".")
    return type(last, (Placeholder,), {"__module__": module})


def container(error: Exception) -> tuple[str, type]:
    """Return the class that PyTorch did not fill, from its message, and what stands for its objects instead."""
    found = re.search(r"Can only (append|extend|SETITEM).*got <class '([\w.]+)'", str(error), re.DOTALL)
    return (found.group(2), Items if found.group(1) != "SETITEM" else Entries) if found else ("", Entries)


def is_module(state: Mapping[str, Any]) -> bool:
    """Return True for the state of a torch.nn.Module."""
    return all(isinstance(state.get(part), Mapping) for part in ("_parameters", "_buffers", "_modules"))


def module_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of a torch.nn.Module from its pickled state, in which other modules are placeholders."""
    passing = state.get("_non_persistent_buffers_set", ())
    buffers = {name: value for name, value in state["_buffers"].items() if name not in passing}
    found = {name: value for name, value in {**state["_parameters"], **buffers}.items() if isinstance(value, Tensor)}
    for place, child in state["_modules"].items():
        if isinstance(child, Placeholder):
            found.update({f"{place}.{name}": value for name, value in child.items()})
    return found
