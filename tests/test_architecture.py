"""The floor plan: who may import whom, no circle, no torch where the command line starts, nothing too long to read.

And the style of docstrings: a function's begins with a verb, a class's with a noun, none with a relative clause.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

import kdrun as package
from tests.conftest import TINY

PACKAGE = Path(package.__file__).parent
FILE_LINES, FUNCTION_LINES = 320, 50
RELATIVE = re.compile(r"(What|Which|Where|Who)(ever)?|Whether|How|When|Why|Whose")
NO_VERB = re.compile(
    r"[^A-Z].*||An?|The|Of|One|Two|Each|Every|All|Both|Some|Nothing|No|As|At|By|For|From|In|On|To|With|It"
)
RELATIVE_CLAUSES, NO_VERBS = 0, 0  # ceilings: docstrings that begin so in kdrun, scripts and tests; functions in kdrun
ENTRIES = 23  # files and folders at the top of the package

# room -> the rooms, or single modules of them, that it may import; itself always.
GROUND = ("errors", "files", "structures", "display", "hardware", "streams", "draws", "shares")
ENGINE = (*GROUND, "config", "data", "models", "methods", "runs")
MAY_IMPORT = {
    "errors": (),
    "files": ("errors",),
    "streams": (),
    "draws": ("streams",),
    "shares": (),
    "structures": ("draws", "shares"),
    "display": ("errors",),
    "hardware": ("errors",),
    "config": ("errors", "streams"),
    "data": (*GROUND, "config.augment", "config.options"),
    "models": ("errors", "files", "structures", "config.own_code"),
    "methods": (
        "errors",
        "structures",
        "draws",
        "models",
        "data",
        "config.options",
        "config.own_code",
        "config.method_schema",
    ),
    "runs": ("errors", "files", "streams", "display", "hardware", "config", "data.datasets", "data.splits"),
    "training": ENGINE,
    "evaluation": (*ENGINE, "training"),
    "sweeps": (*ENGINE, "training", "evaluation"),
    "reporting": ("errors", "files", "display", "config", "runs", "evaluation"),
    "console": ("errors", "display", "runs", "sweeps.messages"),
    "api": ("errors", "display", "config", "runs", "evaluation"),
    "commands": (*ENGINE, "training", "evaluation", "sweeps", "reporting", "console"),
    "cli": ("errors", "display", "commands", "config.arguments", "training.signals"),
    "__main__": ("cli",),
    "__init__": ("api",),
}
# Imported before torch is: whole rooms, and single modules.
TORCH_FREE = (
    "__init__",
    "errors",
    "files",
    "shares",
    "streams",
    "display",
    "config",
    "runs",
    "reporting",
    "sweeps",
    "console",
    "cli",
    "commands",
    "data.datasets",
    "data.processes",
    "data.splits",
    "training.heartbeat",
    "training.ranks",
    "training.signals",
    "evaluation.loading",
    "evaluation.targets",
    "evaluation.bias",
    "evaluation.bias_grid",
    "evaluation.bias_runs",
    "evaluation.differences",
    "evaluation.transfer",
    "evaluation.stats",
    "evaluation.predictions",
    "evaluation.testsets.registry",
)


@cache
def modules() -> dict[str, Path]:
    """Dotted name below kdrun -> file; a package goes by its own name."""
    named = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


@cache
def imported(name: str) -> frozenset[str]:
    """Modules of kdrun that a module imports anywhere: inside functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "kdrun":
            origin = node.module.removeprefix("kdrun").lstrip(".")
            below = {f"{origin}.{alias.name}".lstrip(".") for alias in node.names}
            found |= {module if module in modules() else origin for module in below}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("kdrun.") for alias in node.names if alias.name.startswith("kdrun.")}
    return frozenset(found - {""})


def within(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def circles() -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    least: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = least[name] = len(number)
        stack.append(name)
        for other in imported(name) & modules().keys():
            if other not in number:
                visit(other)
            if other in stack:
                least[name] = min(least[name], least[other])
        if least[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in modules():
        if name not in number:
            visit(name)
    return found


def test_every_module_is_in_a_room():
    assert {name.partition(".")[0] for name in modules()} == set(MAY_IMPORT)
    assert len([place for place in PACKAGE.iterdir() if place.name != "__pycache__"]) <= ENTRIES


def test_rooms_import_what_lies_below_them():
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        for other in imported(name)
        if not within(other, (name.partition(".")[0], *MAY_IMPORT[name.partition(".")[0]]))
    ]
    assert not wrong, wrong


def test_no_circle_among_modules():
    assert not circles()


def test_a_command_imports_no_other_command():
    wrong = [
        f"{name} imports {other}"
        for name in modules()
        if name.startswith("commands.")
        for other in imported(name)
        if other.startswith("commands.")
    ]
    assert not wrong, wrong


def test_the_start_is_free_of_torch():
    names = sorted(name for name in modules() if within(name, TORCH_FREE) and name != "__main__")
    assert len(names) >= 75
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'\n"
    )
    dotted = [f"kdrun.{name}" if name != "__init__" else "kdrun" for name in names]
    done = subprocess.run([sys.executable, "-c", program, *dotted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_drawer():
    assert not [name for name in modules() if any(word in name for word in ("util", "helper", "common", "misc"))]


def test_files_and_functions_are_short():
    """At most 320 lines a file, and 50 a function."""
    assert (FILE_LINES, FUNCTION_LINES) == (320, 50)
    long = [name for name, path in modules().items() if len(path.read_text().splitlines()) > FILE_LINES]
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno > FUNCTION_LINES:
                long.append(f"{name}.{node.name}: {node.end_lineno - node.lineno}")
    assert not long


def openings(text: str) -> list[tuple[int, str, str]]:
    """Return (line, kind of the node, first word) of each docstring of a module."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            words = (ast.get_docstring(node) or "").split()
            if words:
                found.append((getattr(node, "lineno", 1), type(node).__name__, words[0].strip(".,:;()\"'")))
    return sorted(found)


def relative_clauses(text: str) -> list[int]:
    """Return the lines of a module's docstrings that begin with a relative clause."""
    return [line for line, _, word in openings(text) if RELATIVE.fullmatch(word)]


def without_verb(text: str) -> list[int]:
    """Return the lines of a module's functions whose docstring cannot begin with a verb."""
    functions = [(line, word) for line, kind, word in openings(text) if "Function" in kind]
    return [line for line, word in functions if RELATIVE.fullmatch(word) or NO_VERB.fullmatch(word)]


def test_docstrings_begin_with_a_verb_or_a_noun():
    root = PACKAGE.parent
    own = [*PACKAGE.rglob("*.py")]
    others = [path for room in ("scripts", "tests") for path in (root / room).rglob("*.py")]
    clauses = [f"{path}:{line}" for path in [*own, *others] for line in relative_clauses(path.read_text())]
    assert len(clauses) <= RELATIVE_CLAUSES, clauses
    verbless = [f"{path}:{line}" for path in own for line in without_verb(path.read_text())]
    assert len(verbless) <= NO_VERBS, verbless


def test_openings_of_docstrings_are_counted():
    sample = '''
"""What this is."""
class Cell:
    """Cell of a grid."""
    def side(self):
        """The side in pixels."""
    def area(self):
        """Return the area."""
def of(x):
    """Whether x is one."""
async def plain():
    pass
def later(x):
    """x, later."""
'''
    assert relative_clauses(sample) == [1, 9]
    assert without_verb(sample) == [5, 9, 13]


def test_seven_files_from_the_command_to_the_loss(kdrun, monkeypatch):
    """kdrun's own files on the call stack where the loss is computed in training."""
    from kdrun.methods import dkd

    stacks = []
    usual = dkd.dkd_loss

    def recorded(*arguments, **settings):
        stacks.append(
            {frame.filename for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)}
        )
        return usual(*arguments, **settings)

    monkeypatch.setattr(dkd, "dkd_loss", recorded)
    assert kdrun("train", *TINY, "epochs=1", "method=dkd")[0] == 0
    assert len(stacks) >= 3
    assert max(len(stack) for stack in stacks) <= 7, stacks[-1]
