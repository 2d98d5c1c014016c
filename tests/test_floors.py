"""Imports point down: ground floor, first floor, the door, the top."""

from __future__ import annotations

import ast
from pathlib import Path

import kdrun

PACKAGE = Path(kdrun.__file__).parent
FLOORS = {
    0: ("errors", "cores", "neighbours", "streams", "draws", "options", "batch", "losses", "models", "data", "testsets",
        "own_code", "own_import"),
    1: ("methods", "checkpoint", "runs", "bf16", "numerics", "optim", "metrics", "network", "engine", "cache", "job", "fit", "probe", "provenance",
        "teachers", "reference", "analysis", "stop", "cost", "measure", "ledger",
        "loggers", "derive", "chunks", "answers", "code_record"),
    2: ("config", "words", "compose", "identity", "assemble", "sweeps", "groups", "trained", "deployment", "onnx_file",
        "gate", "torch_file", "interface"),
    3: ("console", "report", "commands", "cli", "__main__"),
}  # fmt: skip
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def modules() -> list[tuple[str, Path]]:
    return [(".".join(path.relative_to(PACKAGE).with_suffix("").parts), path) for path in sorted(PACKAGE.rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Names of kdrun modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kdrun"):
            rest = node.module.removeprefix("kdrun").lstrip(".")
            found |= {rest} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("kdrun.") for alias in node.names if alias.name.startswith("kdrun.")}
    return {name for name in found if name != "__version__"}


def test_every_module_has_a_floor():
    tops = {name.partition(".")[0] for name, _ in modules()} - {"__init__"}
    assert tops <= set(FLOOR_OF), f"give {tops - set(FLOOR_OF)} a floor"


def test_imports_point_down():
    wrong = []
    for name, path in modules():
        top = name.partition(".")[0]
        if top == "__init__":
            continue
        wrong += [
            f"{name} imports {other}" for other in imported(path) if FLOOR_OF[other.partition(".")[0]] > FLOOR_OF[top]
        ]
    assert not wrong, wrong


def test_no_drawer():
    assert not [name for name, _ in modules() if "util" in name or "helper" in name or "common" in name]


def test_files_stay_readable():
    """Under 250 lines, architectures and data tables excepted; functions under 40 statements' worth of lines."""
    long_files = [name for name, path in modules() if len(path.read_text().splitlines()) > 320]
    assert not long_files
    long_functions = []
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno > 50:
                long_functions.append(f"{name}.{node.name}: {node.end_lineno - node.lineno}")
    assert not long_functions
