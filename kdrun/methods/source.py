"""What a method's source file says of it, read with `ast`: composing, checking and explaining a configuration must not
import torch, which takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdrun.errors import ConfigError, one_line, suggest


@dataclass(frozen=True)
class MethodSource:
    """parameters: name -> annotation as written; flags: class attributes that are plain literals."""

    target: str
    name: str
    parameters: dict[str, str]
    required: tuple[str, ...]
    flags: dict[str, object]
    doc: str

    @property
    def needs_teacher(self) -> bool:
        return bool(self.flags.get("needs_teacher", True))

    @property
    def trains_teacher(self) -> bool:
        return bool(self.flags.get("trains_teacher", False))

    @property
    def combines(self) -> bool:
        return bool(self.flags.get("combines", False))

    @property
    def deploys(self) -> bool:
        return bool(self.flags.get("deploys", False))


@cache
def read_method(target: str) -> MethodSource:
    """The class behind a YAML's `_target_`, found and parsed without being imported.

    The method's name is its module's: one file per method. Raises ConfigError where there is no such class.
    """
    module, _, class_name = target.rpartition(".")
    nodes = _classes(module, target)
    if class_name not in nodes:
        raise ConfigError(f"method._target_={target}: {module} has no class {class_name}.{suggest(class_name, nodes)}")
    parameters: dict[str, str] = {}
    required: list[str] = []
    flags: dict[str, object] = {}
    for node in reversed(_ancestry(class_name, nodes, module)):
        flags |= _literals(node)
        found = _constructor(node)
        if found is not None:
            parameters, required = found
    doc = inspect.cleandoc(ast.get_docstring(nodes[class_name]) or "")
    return MethodSource(target, module.rpartition(".")[2], parameters, tuple(required), flags, doc)


def combined_name(source: MethodSource, node: dict[str, Any]) -> str:
    """What a run is called: the method's name, or the names of its parts."""
    if not source.combines:
        return source.name
    return "+".join(read_method(part["_target_"]).name for part in node["parts"])


@cache
def _module_tree(module: str) -> ast.Module | None:
    if os.getcwd() not in sys.path:  # a console script does not look into the current directory by itself
        sys.path.insert(0, os.getcwd())
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return ast.parse(Path(spec.origin).read_text(), spec.origin)


def _classes(module: str, target: str) -> dict[str, ast.ClassDef]:
    try:
        tree = _module_tree(module)
    except (ImportError, ValueError, SyntaxError, OSError) as error:
        raise ConfigError(f"method._target_={target}: {module or 'it'} cannot be read ({one_line(error)}).") from error
    if tree is None:
        raise ConfigError(f"method._target_={target}: there is no module {module}.")
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _ancestry(name: str, nodes: dict[str, ast.ClassDef], module: str) -> list[ast.ClassDef]:
    """The class and the bases whose source can be followed, nearest first; the seam's base class ends the line."""
    node = nodes[name]
    line = [node]
    for base in node.bases:
        if not isinstance(base, ast.Name) or base.id in ("Method", "Module"):
            continue
        if base.id in nodes:
            line += _ancestry(base.id, nodes, module)
        else:
            line += _imported(base.id, module)
    return line


def _imported(name: str, module: str) -> list[ast.ClassDef]:
    tree = _module_tree(module)
    for node in tree.body if tree else []:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _ancestry(alias.name, _classes(node.module, name), node.module)
    return []


def _literals(node: ast.ClassDef) -> dict[str, object]:
    found: dict[str, object] = {}
    for item in node.body:
        target = (
            item.target
            if isinstance(item, ast.AnnAssign)
            else item.targets[0]
            if isinstance(item, ast.Assign)
            else None
        )
        value = item.value if isinstance(item, ast.AnnAssign | ast.Assign) else None
        if isinstance(target, ast.Name) and value is not None:
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found


def _constructor(node: ast.ClassDef) -> tuple[dict[str, str], list[str]] | None:
    """(name -> annotation, names without a default) of __init__, or None where the class has none."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = item.args
            plain = arguments.args[1:]
            named = {
                arg.arg: ast.unparse(arg.annotation) if arg.annotation else "Any"
                for arg in plain + arguments.kwonlyargs
            }
            optional = (
                {arg.arg for arg in plain[len(plain) - len(arguments.defaults) :]} if arguments.defaults else set()
            )
            optional |= {
                arg.arg for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default
            }
            return named, [name for name in named if name not in optional]
    return None


def sections(doc: str) -> dict[str, str]:
    """A method's docstring by section: "" is the claim, then Paper, Equation, Hyperparameters, Disagreements."""
    found: dict[str, list[str]] = {"": []}
    current = ""
    for line in doc.splitlines():
        head, colon, rest = line.partition(":")
        if colon and head in ("Paper", "Equation", "Hyperparameters", "Disagreements"):
            current = head
            found[current] = [rest.strip()] if rest.strip() else []
        else:
            found[current].append(line)
    return {name: inspect.cleandoc("\n".join(lines)).strip() for name, lines in found.items()}


def hyperparameters(text: str) -> dict[str, str]:
    """name -> meaning from the section Hyperparameters: `name: meaning`, continued on indented lines."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and ":" in line:
            name, _, meaning = line.partition(":")
            found[name] = meaning.strip()
        elif name:
            found[name] += f" {line.strip()}"
    return found
