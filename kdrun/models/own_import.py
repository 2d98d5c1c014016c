"""Imports of the user's own code that run exactly the content named by its digest: as it was read when the run was
planned, even if the files have been edited since (hours later in a sweep's queue, or between two calls in one
notebook)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

from kdrun.config.own_code import OwnFile, is_own, own_code, read_file
from kdrun.errors import RunError


class KeptSource(SourceFileLoader):
    """Loader of stored source, under its file's name."""

    def __init__(self, file: OwnFile):
        super().__init__(file.module, file.path)
        self.file = file

    def path_stats(self, path: str) -> Any:
        raise OSError("the file's bytecode may belong to another version of the source")

    def get_data(self, path: str) -> bytes:
        assert self.file.source is not None
        return self.file.source if path == self.file.path else super().get_data(path)

    def exec_module(self, module: ModuleType) -> None:
        loaded[self.file.module] = self.file
        super().exec_module(module)


class KeptFinder:
    """Finder that locates the modules of `served` before Python searches the disk."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        file = served.get(name)
        if file is None or file.source is None:
            return None
        folders = [os.path.dirname(file.path)] if file.is_package else None
        return spec_from_file_location(name, file.path, loader=KeptSource(file), submodule_search_locations=folders)


served: dict[str, OwnFile] = {}  # module -> file that an import gets now
loaded: dict[str, OwnFile] = {}  # modules already imported in this process
earlier: set[str] = set()  # modules that existed when `pinned` was entered


@contextmanager
def pinned(files: Iterable[OwnFile]) -> Iterator[None]:
    """Make every import of these modules in the block run exactly these contents. Raises RunError if a content is no
    longer available, or if two contradict each other."""
    wanted: dict[str, OwnFile] = {}
    for file in files:
        kept = wanted.setdefault(file.module, file)
        now = file if file.source is not None else read_file(file.module, file.path)
        if now is None or now.sha256 != file.sha256 or kept.sha256 != file.sha256:
            raise RunError(f"{file.name} has changed since this run was planned; repeat the command to plan it again.")
    before = dict(served)
    earlier.clear()
    earlier.update(sys.modules)
    try:
        serve(wanted)
        yield
    finally:
        serve(before)


def serve(files: dict[str, OwnFile]) -> None:
    served.clear()
    served.update(files)
    if KeptFinder not in sys.meta_path:
        sys.meta_path.insert(0, KeptFinder)  # type: ignore[arg-type]


def import_own(module: str) -> ModuleType:
    """Import a module as pinned, else as its files are now; never as this process imported it before an edit."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if served:
        return fresh(module)
    with pinned(own_code([module]).values()):
        return fresh(module)


def fresh(module: str) -> ModuleType:
    """Import a module of `served`. If any of them was imported with other content, or outside this module, all are
    imported again: one module may hold objects that another one defined."""
    stale = {
        name
        for name, file in served.items()
        if file.source is not None
        and loaded.get(name) != file
        and name in sys.modules
        and is_own(getattr(sys.modules[name], "__file__", None) or "")
    }
    if stale:
        for name in stale | loaded.keys():
            sys.modules.pop(name, None)
        loaded.clear()
    return importlib.import_module(module)


def unfollowed() -> list[str]:
    """Return own modules, other than the pinned ones, that were imported under names computed at run time."""
    roots = {root_of(file.module, file.path) for file in served.values()}
    found = []
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name not in served and name not in earlier and path and is_own(path) and root_of(name, path) in roots:
            found.append(name)
    return sorted(found)


def root_of(module: str, path: str) -> str:
    """Return the folder in which the search for a module began."""
    folder = os.path.dirname(path)
    levels = module.count(".") + os.path.basename(path).startswith("__init__.")
    for _ in range(levels):
        folder = os.path.dirname(folder)
    return folder
