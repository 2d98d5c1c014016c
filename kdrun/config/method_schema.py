"""Schema of a method, read from its source file with `ast`: composing, checking and explaining a configuration must
not import torch, which takes seconds."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kdrun.config.own_code import Finder, absolute
from kdrun.errors import ConfigError, one_line, suggest


@dataclass(frozen=True)
class MethodSource:
    """Declaration of a method's class in its source file.

    name: the method's name; parameters: name -> annotation as written; defaults: name -> default value of an optional
    parameter, Ellipsis if it is not a plain literal; flags: class attributes that are plain literals.
    """

    target: str
    name: str
    parameters: dict[str, str]
    defaults: dict[str, object]
    flags: dict[str, object]
    doc: str

    @property
    def required(self) -> list[str]:
        return [name for name in self.parameters if name not in self.defaults]

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

    @property
    def takes_mixed(self) -> bool:
        return bool(self.flags.get("takes_mixed", False))


def read_method(target: str) -> MethodSource:
    """Parse the class behind a YAML's `_target_` without importing it, under its module's name.

    Raises ConfigError if there is no such class.
    """
    return _read_once(target) if target.startswith("kdrun.") else _read(target)  # user code may have been edited


def _read(target: str) -> MethodSource:
    module, _, class_name = target.rpartition(".")
    nodes = _classes(module, target)
    if class_name not in nodes:
        raise ConfigError(f"method._target_={target}: {module} has no class {class_name}.{suggest(class_name, nodes)}")
    parameters: dict[str, str] = {}
    defaults: dict[str, object] = {}
    flags: dict[str, object] = {}
    for node in reversed(_ancestry(class_name, nodes, module)):
        flags |= _literals(node)
        found = _constructor(node)
        if found is not None:
            parameters, defaults = found
    doc = inspect.cleandoc(ast.get_docstring(nodes[class_name]) or "")
    return MethodSource(target, module.rpartition(".")[2], parameters, defaults, flags, doc)


_read_once = cache(_read)


def is_ours(target: str) -> bool:
    """Return True if a method's `_target_` is one of kdrun's own, rather than the user's."""
    return target.startswith("kdrun.methods.")


def method_of(node: dict[str, Any]) -> MethodSource:
    """Return the class behind a method's node, under the name used for its runs. Raises ConfigError."""
    source, name = read_method(node["_target_"]), yaml_name(node)
    if source.combines and name == "combine":
        name = "+".join(map(yaml_name, node["parts"]))
    return replace(source, name=name)


def yaml_name(node: dict[str, Any]) -> str:
    """Return the name by which a method was chosen: that of its YAML, or of its module in runs of older versions."""
    return str(node.get("_name_") or str(node["_target_"]).rpartition(".")[0].rpartition(".")[2])


def _module_tree(module: str) -> ast.Module | None:
    place = Finder().find(module)
    if place is None or place.file is None or not place.file.endswith(".py"):
        return None
    return _parse(Path(place.file).read_bytes(), place.file)


@cache
def _parse(source: bytes, path: str) -> ast.Module:
    return ast.parse(source, path)


def _classes(module: str, target: str) -> dict[str, ast.ClassDef]:
    try:
        tree = _module_tree(module)
    except (ValueError, SyntaxError, OSError) as error:
        raise ConfigError(f"method._target_={target}: {module or 'it'} cannot be read ({one_line(error)}).") from error
    if tree is None:
        raise ConfigError(f"method._target_={target}: no module {module} on the import path.")
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _ancestry(name: str, nodes: dict[str, ast.ClassDef], module: str) -> list[ast.ClassDef]:
    """Return the class and those of its bases whose source can be followed, nearest first, up to the base class
    `Method`."""
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
    tree, place = _module_tree(module), Finder().find(module)
    is_package = place is not None and bool(place.folders)
    for node in tree.body if tree else []:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = absolute(node.module, node.level, module, is_package)
                    return _ancestry(alias.name, _classes(origin, f"{module}.{name}"), origin)
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
        if isinstance(target, ast.Name) and (literal := _literal(value)) is not ...:
            found[target.id] = literal
    return found


def _constructor(node: ast.ClassDef) -> tuple[dict[str, str], dict[str, object]] | None:
    """Return (name -> annotation, name -> default, for parameters that have one) of __init__; None if the class has
    none."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = item.args
            plain = arguments.args[1:]
            named = {
                arg.arg: ast.unparse(arg.annotation) if arg.annotation else "Any"
                for arg in plain + arguments.kwonlyargs
            }
            given = [*zip(plain[len(plain) - len(arguments.defaults) :], arguments.defaults, strict=True)]
            given += [pair for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if pair[1]]
            return named, {argument.arg: _literal(default) for argument, default in given}
    return None


def _literal(node: ast.expr | None) -> object:
    """Return the value of a plain literal; Ellipsis for any other expression."""
    try:
        return ast.literal_eval(node) if node else ...
    except ValueError:
        return ...


def sections(doc: str) -> dict[str, str]:
    """Split a method's docstring into sections: "" is the summary, then Paper, Equation, Hyperparameters,
    Disagreements."""
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
    """Return name -> meaning from the section Hyperparameters: `name: meaning`, continued on indented lines."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and ":" in line:
            name, _, meaning = line.partition(":")
            found[name] = meaning.strip()
        elif name:
            found[name] += f" {line.strip()}"
    return found
