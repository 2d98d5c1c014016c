"""Tags and notes that a user gives to runs: marks.json in the run's directory. They change nothing about the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from kdrun.errors import CheckpointError, ConfigError
from kdrun.files import read_json, write_json

MARKS = "marks.json"


@dataclass
class Marks:
    """Tags and a note of one run."""

    tags: list[str] = field(default_factory=list)
    note: str = ""

    def __str__(self) -> str:
        """Return tags and note as one line; an empty string if there are none."""
        return "; ".join(part for part in (", ".join(self.tags), self.note) if part)


def read_marks(run: Path) -> Marks:
    """Return a run's marks; empty if there are none, or if they cannot be read."""
    place = run / MARKS
    if not place.is_file() or place.is_symlink():
        return Marks()
    try:
        found = read_json(place)
    except CheckpointError:
        return Marks()
    tags, note = found.get("tags"), found.get("note")
    return Marks([str(tag) for tag in tags] if isinstance(tags, list) else [], note if isinstance(note, str) else "")


def write_marks(run: Path, marks: Marks) -> None:
    """Write a run's marks; remove the file if none are left."""
    place = run / MARKS
    if place.is_symlink():
        raise ConfigError(f"{place} is a link, which kdrun will not write through: remove it.")
    if marks == Marks():
        place.unlink(missing_ok=True)
    else:
        write_json(place, asdict(marks))


def check_tag(tag: str) -> str:
    """Return a tag. Raises ConfigError if it is not a single word usable in a filter."""
    if not tag.isprintable() or any(sign in tag for sign in " ,=/") or not tag.strip("-"):
        raise ConfigError(f"tag={tag}: a tag is one word without commas, slashes or equals signs.")
    return tag
