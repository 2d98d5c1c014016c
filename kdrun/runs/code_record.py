"""Record of the user's own code for a run or a stored teacher: digests in provenance.json, copies in code/."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.config.method_schema import MethodSource, is_ours, method_of, yaml_name
from kdrun.config.own_code import OwnFile, changed, digests
from kdrun.errors import CheckpointError, ConfigError, RunError
from kdrun.files import read_json, refused

MOST = 8 << 20  # bytes of code stored in one directory


@dataclass(frozen=True)
class Code:
    """User code of a run or its teacher. files: name -> file of all own code that it imports; settings: digest of
    its identity without that code."""

    files: dict[str, OwnFile]
    settings: str

    @property
    def kept(self) -> list[OwnFile]:
        """Return the files whose copies a directory stores: the shortest first, as far as there is room."""
        kept, room = [], MOST
        for file in sorted(self.files.values(), key=lambda file: len(file.source or b"")):
            if file.source is not None and len(file.source) <= room:
                kept.append(file)
                room -= len(file.source)
        return kept

    def about(self) -> dict[str, Any]:
        """Return the entries for provenance.json."""
        left_out = sorted(self.files.keys() - {file.name for file in self.kept})
        about = {"settings": self.settings, "code": digests(self.files)}
        return {**about, "code_not_copied": left_out} if left_out else about


@dataclass(frozen=True)
class Recorded:
    """Content of provenance.json about own code. files: name -> SHA-256, None in directories of older versions;
    other_images: as in a plan."""

    files: dict[str, str] | None = None
    settings: str = ""
    started_at: str = ""
    other_images: str = ""


def recorded(folder: Path) -> Recorded:
    try:
        about = read_json(folder / "provenance.json")
    except CheckpointError:
        return Recorded()
    files = about.get("code")
    if not isinstance(files, dict):
        return Recorded()
    started_at, other_images = str(about.get("started_at")), str(about.get("other_images", ""))
    return Recorded(files, str(about.get("settings")), started_at, other_images)


def about_method(method: MethodSource) -> dict[str, Any]:
    """Return the entries about a method for provenance.json, so that a finished run can be used without the method's
    source."""
    flags = ("needs_teacher", "trains_teacher", "deploys")
    return {"name": method.name, **{flag: getattr(method, flag) for flag in flags}}


def method_of_run(folder: Path, node: dict[str, Any]) -> MethodSource:
    """Return a run's method under the name used for the run: kdrun's own, or the user's as it was when the run was
    trained.

    For a run of an older version it is read from its source, or inferred from the record of its teacher.
    """
    target = str(node["_target_"])
    if is_ours(target) and all(is_ours(str(part.get("_target_"))) for part in node.get("parts") or ()):
        return method_of(node)
    try:
        about = read_json(folder / "provenance.json")
    except CheckpointError:
        about = {}
    told = about.get("method")
    if not isinstance(told, dict):
        with suppress(ConfigError):
            return method_of(node)
        taught = about.get("teacher")
        learns = isinstance(taught, dict) and taught.get("kind") == "learns along"
        told = {"name": yaml_name(node), "needs_teacher": taught is not None, "trains_teacher": learns}
    flags = {flag: told.get(flag) is True for flag in ("needs_teacher", "trains_teacher", "deploys")}
    return MethodSource(target, str(told.get("name")), {}, {}, {**flags, "combines": "parts" in node}, "")


def write_copies(folder: Path, files: Iterable[OwnFile]) -> None:
    """Write files into folder/code, under their names. Raises RunError if writing fails."""
    for file in files:
        place = folder / "code" / file.name
        assert ".." not in Path(file.name).parts and file.source is not None
        if not place.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{place} is a link that leads out of the run's directory; remove it.")
        try:
            if not place.is_file() or place.read_bytes() != file.source:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.source)
        except OSError as error:
            raise refused(error, place) from error


class Siblings:
    """Siblings of new run directories, each read only once."""

    def __init__(self) -> None:
        self.known: dict[Path, dict[Path, Recorded]] = {}

    def outdated(self, new: Path, code: Code) -> tuple[str, list[str]] | None:
        """Return (the latest directory that differs from a new one only in own code, the files that have changed
        since)."""
        if not code.files:
            return None
        alike = [
            (about.started_at, path.name, about.files)
            for path, about in self.beside(new)
            if path != new and about.settings == code.settings and about.files
        ]
        if not alike:
            return None
        _, name, before = max(alike, key=lambda one: one[:2])
        return name, changed(digests(code.files), before)

    def of_other_images(self, new: Path, other_images: str) -> Path | None:
        """Return the latest directory that differs from a new one only in the content of the images."""
        alike = [(about.started_at, path) for path, about in self.beside(new) if about.other_images == other_images]
        return max(alike)[1] if alike else None

    def beside(self, new: Path) -> Iterable[tuple[Path, Recorded]]:
        if new.parent not in self.known:
            places = (path.parent for path in new.parent.glob("*/provenance.json"))
            self.known[new.parent] = {place: recorded(place) for place in places}
        return self.known[new.parent].items()
