"""User code ("own code"): all files that importing a module would run, located and read without running any.

Own code lies neither in the standard library nor among installed packages nor in kdrun: a file in the current
directory, a folder on PYTHONPATH, an editable install. Import statements are followed wherever they stand, and so is
import_module("literal"); a name computed at run time cannot be followed (see `own_import.unfollowed`).
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    BuiltinImporter,
    FrozenImporter,
    PathFinder,
)
from pathlib import Path
from traceback import walk_tb

from kdrun.errors import KdrunError, out_of_memory, reason_of

LARGEST = 1 << 20  # bytes: a longer file is hashed, but neither followed nor stored
SUFFIXES = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)  # in the order in which an import tries them
NEVER_OWN = ("kdrun", "torch", "torchvision")  # even if run from a checkout of thousands of files
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARY = tuple(
    {
        os.path.join(kind(sysconfig.get_paths()[key]), "")
        for key in ("stdlib", "platstdlib")
        for kind in (os.path.abspath, os.path.realpath)
    }
)


@dataclass(frozen=True)
class OwnFile:
    """File of one module. name: the module as a path, independent of where the code lies; source: with line feeds
    only, or None if it is not source or longer than `LARGEST`; sha256: of the source, else of the file."""

    module: str
    name: str
    path: str
    sha256: str
    source: bytes | None = field(repr=False)

    @property
    def is_package(self) -> bool:
        return os.path.basename(self.path).startswith("__init__.")


@dataclass(frozen=True)
class Place:
    """Location of a module. file: None for a namespace package; folders: of its submodules, empty for a plain
    module."""

    file: str | None
    folders: tuple[str, ...] = ()


def own_code(modules: Iterable[str]) -> dict[str, OwnFile]:
    """Return name -> file of all own code that importing these modules would run, sorted by name.

    A missing module, or one that cannot be parsed, is ignored here: importing it gives the better error.
    """
    finder, found = shared[-1] if shared else Finder(), {}
    pending, seen = list(modules), set()
    while pending:
        module = pending.pop()
        if module in seen or module.partition(".")[0] in NEVER_OWN:
            continue
        seen.add(module)
        pending += [module.rpartition(".")[0]] if "." in module else []  # an import runs a module's parents first
        file = finder.read(module)
        if file is None:
            continue
        found[file.name] = file
        if file.source is not None:
            pending += imports(file.source, module, file.is_package)
    return dict(sorted(found.items()))


@contextmanager
def read_once() -> Iterator[None]:
    """Read each file only once inside the block, so that plans made together see the same state of the code."""
    shared.append(Finder())
    try:
        yield
    finally:
        shared.pop()


def digests(code: Mapping[str, OwnFile]) -> dict[str, str]:
    """Return name -> SHA-256."""
    return {name: file.sha256 for name, file in code.items()}


def changed(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Return the names of the files that differ; if all of them differ, of those that only one side has."""
    edited = [name for name in now if name in before and now[name] != before[name]]
    return sorted(edited or now.keys() ^ before.keys())


def module_of(model: str) -> str | None:
    """Return package.module of a network called `package.module:callable`; None for every other network."""
    source, colon, _ = model.partition(":")
    return source if colon and source not in ("timm", "torchvision") else None


def is_own(path: str) -> bool:
    """Return True if a path, as located, is the user's: files of an installed package may themselves link into a
    cache."""
    if not path or {"site-packages", "dist-packages"} & set(Path(path).parts):
        return False
    return not path.startswith((*LIBRARY, os.path.join(PACKAGE, "")))


def own_place(error: BaseException | None) -> str:
    """Return `file, line N` of the innermost line of user code in an error's traceback, relative to the current
    directory if the file lies in it; an empty string if there is none."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        frames = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:  # code that cannot be parsed has no frame
            frames.append((error.filename, error.lineno or 1))
        own = [(path, line) for path, line in frames if path.endswith(".py") and is_own(os.path.abspath(path))]
        if own:
            return short_place(*own[-1])
        error = error.__cause__
    return ""


def short_place(path: str, line: int) -> str:
    """Return `file, line N`."""
    here = os.path.relpath(path)
    return f"{path if here.startswith(os.pardir) else here}, line {line}"


def located(error: BaseException) -> str:
    """Return `reason_of` an error and its location in the user's code. kdrun's own errors name the location
    themselves."""
    if line := out_of_memory(error):
        return line
    place = "" if isinstance(error, KdrunError) else own_place(error)
    reason = f"SyntaxError: {error.msg}" if place and isinstance(error, SyntaxError) else reason_of(error)
    return f"{reason} ({place})" if place else reason


def search_path() -> list[str]:
    """Return the folders searched for own code, the current one first, which a console script does not search by
    itself.

    Python's own path is unchanged: nothing else is imported from here.
    """
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return path if os.getcwd() in path else [os.getcwd(), *path]


class Finder:
    """Finder of modules by name. Each is located and read once, as an import would locate it, without importing its
    parents."""

    def __init__(self) -> None:
        self.known: dict[str, Place | None] = {"kdrun": Place(os.path.join(PACKAGE, "__init__.py"), (PACKAGE,))}
        self.files: dict[str, OwnFile | None] = {}
        self.path = search_path()

    def read(self, module: str) -> OwnFile | None:
        """Return the file of an own module; None if it is not the user's, or missing."""
        if module not in self.files:
            place = self.find(module)
            path = None if place is None else place.file
            self.files[module] = read_file(module, path) if path is not None and is_own(path) else None
        return self.files[module]

    def find(self, module: str) -> Place | None:
        """Return the location of a module, or None."""
        if module not in self.known:
            parent, dot, tail = module.rpartition(".")
            above = self.find(parent) if dot else Place(None, tuple(self.path))
            found = None
            if above is not None and tail and not any(sign in tail for sign in "/\\\0"):
                found = look(tail, above.folders) or (None if dot else hooked(tail))
            self.known[module] = found
        return self.known[module]


shared: list[Finder] = []  # stack of `read_once`


def look(name: str, folders: Sequence[str]) -> Place | None:
    """Return the package or module `name` in the first of `folders` that has it, or a namespace package over all."""
    portions = []
    for folder in folders:
        base = os.path.join(folder, name)
        inner = os.path.join(base, "__init__")
        is_folder = os.path.isdir(base)
        for suffix in SUFFIXES if is_folder else ():
            if os.path.isfile(inner + suffix):
                return Place(inner + suffix, (base,))
        for suffix in SUFFIXES:
            if os.path.isfile(base + suffix):
                return Place(base + suffix)
        portions += [base] if is_folder else []
    return Place(None, tuple(portions)) if portions else None


def hooked(name: str) -> Place | None:
    """Return a top-level module that only an import hook can locate, as for editable installs."""
    for finder in sys.meta_path:
        find_spec = getattr(finder, "find_spec", None)
        if finder in (BuiltinImporter, FrozenImporter, PathFinder) or find_spec is None:
            continue
        try:
            spec = find_spec(name, None)
        except Exception:  # a foreign hook may raise anything; importing will raise it again
            continue
        if spec is not None:
            file = spec.origin if spec.origin and os.path.isfile(spec.origin) else None
            return Place(file, tuple(map(str, spec.submodule_search_locations or ())))
    return None


def read_file(module: str, path: str) -> OwnFile | None:
    """Read a module's file; None if it cannot be read."""
    base = os.path.basename(path)
    tail = "__init__" if base.startswith("__init__.") else module.rpartition(".")[2]
    name = module.replace(".", "/") + ("/__init__" if tail == "__init__" else "") + base.removeprefix(tail)
    try:
        if os.path.getsize(path) > LARGEST or not path.endswith(tuple(SOURCE_SUFFIXES)):
            with open(path, "rb") as file:
                return kept(module, name, path, hashlib.file_digest(file, "sha256").hexdigest(), None)
        source = Path(path).read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    except OSError:
        return None
    return kept(module, name, path, hashlib.sha256(source).hexdigest(), source)


kept = cache(OwnFile)  # shared by the plans of a sweep


@cache
def imports(source: bytes, module: str, is_package: bool) -> tuple[str, ...]:
    """Return the names that a source imports and that may be modules; for a package also those in its `__all__`,
    which `from package import *` imports."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid escapes: importing will show them
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    return tuple(dict.fromkeys(name for node in ast.walk(tree) for name in imported_by(node, module, is_package)))


def imported_by(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Yield the names that one statement or call imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = absolute(node.module or "", node.level, module, is_package)
        if origin:
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        if called in ("import_module", "__import__") and isinstance(name, str):
            bare = name.lstrip(".")
            yield absolute(bare, len(name) - len(bare), module, is_package)
    elif isinstance(node, ast.Assign) and is_package and [ast.unparse(item) for item in node.targets] == ["__all__"]:
        names = (item.value for item in getattr(node.value, "elts", ()) if isinstance(item, ast.Constant))
        yield from (f"{module}.{name}" for name in names if isinstance(name, str))


def absolute(name: str, level: int, module: str, is_package: bool) -> str:
    """Return the absolute name of `name` after `level` dots in `module`; an empty string if it leaves the top
    package."""
    if not level:
        return name
    parts = module.split(".")
    kept = len(parts) - level + is_package
    return ".".join([*parts[:kept], *([name] if name else [])]) if kept > 0 else ""
