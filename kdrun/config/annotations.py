"""Types of annotations in a method's source, without evaluating them: the source may be anybody's file."""

from __future__ import annotations

import ast
from functools import reduce
from operator import or_
from typing import Any

PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict, "tuple": tuple}


def annotated_type(annotation: str) -> Any:
    """Return the type of an annotation made of numbers, text, lists, dictionaries, tuples and unions of them; Any
    for every other annotation."""
    try:
        return type_of(ast.parse(annotation, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return Any


def type_of(node: ast.expr) -> Any:
    """Return the type of a parsed annotation, as `annotated_type` does."""
    if isinstance(node, ast.Constant):
        return None if node.value is None else annotated_type(node.value) if isinstance(node.value, str) else Any
    if isinstance(node, ast.Name | ast.Attribute):
        return PLAIN.get(name_of(node).lower(), Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return either([type_of(node.left), type_of(node.right)])
    return subscripted(node) if isinstance(node, ast.Subscript) else Any


def subscripted(node: ast.Subscript) -> Any:
    """Return the type of list[…], dict[…], tuple[…], Optional[…] or Union[…]."""
    outer = name_of(node.value).lower()
    elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    inner = [... if isinstance(part, ast.Constant) and part.value is ... else type_of(part) for part in elements]
    if outer == "optional":
        return either([*inner, None])
    if outer == "union":
        return either(inner)
    return PLAIN[outer][tuple(inner)] if outer in ("list", "dict", "tuple") else Any


def either(kinds: list[Any]) -> Any:
    return Any if Any in kinds else reduce(or_, kinds)


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
