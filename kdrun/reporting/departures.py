"""Differences between a run's settings and those of the publication whose value is shown next to it. No torch here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from kdrun.config.compose import compose
from kdrun.config.groups import conf_dir, group_file, group_files, read_yaml
from kdrun.errors import KdrunError
from kdrun.reporting.compare import flattened
from kdrun.runs.ledger import changes_numbers
from kdrun.runs.published import Published

# Settings shown elsewhere in a table, or never stated by a publication (how numbers are computed is in the header).
UNSAID = (
    "seed",
    "teacher.seed",
    "benchmark",
    "experiment",
    "device",
    "threads",
    "eval_batch_size",
    "eval_every",
    "precision",
    "teacher.precision",
    "compile",
    "deterministic",
    "teacher_cache",
    "graphs",
    "optimizer.epochs",  # covered by the run's own epochs and batch_size
    "optimizer.batch_size",
    "dataset.on_error",
    "dataset.allow_missing_classes",
    "dataset.split_seed",
    "dataset.fake_train",
    "dataset.fake_test",
    "dataset.fake_classes",
    "method._name_",
    "method._target_",
)
SHOWN = 4  # settings listed per cell; further ones are counted


class PublishedSettings:
    """Settings of a benchmark's published cells, composed on demand."""

    def __init__(self) -> None:
        self._pairs: dict[str, dict[str, str]] | None = None
        self._bases: dict[tuple[str, str], dict[str, Any]] = {}
        self._cells: dict[tuple[str, str, str], dict[str, Any] | None] = {}
        self._read: dict[str, dict[str, Any]] = {}

    def pair(self, teacher: str | None, student: str | None) -> str | None:
        """Return the pair of a teacher and a student; if only one is given, the first pair that it belongs to."""
        if self._pairs is None:
            files = {name: read_yaml(place).get("pair") for name, place in sorted(group_files("pair").items())}
            self._pairs = {name: pair for name, pair in files.items() if isinstance(pair, dict)}
        for name, pair in self._pairs.items():
            if student in (None, pair.get("student")) and teacher in (None, pair.get("teacher")):
                return name
        return None

    def cell(self, benchmark: str, pair: str, method: str) -> dict[str, Any] | None:
        """Return the flat settings of a published cell; None if no configuration has them."""
        key = benchmark, pair, method
        if key not in self._cells:
            try:
                self._cells[key] = self._composed(*key)
            except KdrunError:
                self._cells[key] = None
        return self._cells[key]

    def _composed(self, benchmark: str, pair: str, method: str) -> dict[str, Any] | None:
        """Compose benchmark=, pair= and method= as Hydra does, but run Hydra only once for all methods of a pair: a
        table has a hundred cells."""
        words = [f"benchmark={benchmark}", f"pair={pair}"]
        files = group_files("method")
        if method not in files:
            return None
        recipe = group_file("recipe", f"{benchmark}_{pair}_{method}", conf_dir())
        own, above = read_yaml(files[method]), {} if recipe is None else read_yaml(recipe)
        if "defaults" in own or "defaults" in above:
            return flattened(OmegaConf.to_container(compose([*words, f"method={method}"]), resolve=True))  # type: ignore[arg-type]
        if (benchmark, pair) not in self._bases:
            composed = OmegaConf.to_container(compose([*words, "method=none"]))
            composed.pop("method")  # type: ignore[union-attr]
            self._bases[benchmark, pair] = flattened(composed)  # type: ignore[arg-type]
        above.pop("pairs", None)
        found = self._bases[benchmark, pair] | flattened({"method": own}) | flattened(above)
        return {key: found.get(str(value)[2:-1], value) for key, value in found.items()}  # epochs: ${optimizer.epochs}

    def departures(self, run: Path, theirs: Published, taught_by: str | None = None) -> list[str]:
        """Return `epochs 20, published 240` for each setting in which a run differs from the published one; empty if
        nothing is known.

        taught_by: the value is that of this teacher itself, so only the teacher's part of the run counts.
        """
        try:
            text = (run / "config.yaml").read_text()
        except (OSError, ValueError):
            return []
        if text not in self._read:
            self._read[text] = settings_of(text)
        ours = self._read[text]
        itself = taught_by is not None
        teacher, student = (taught_by, None) if itself else (theirs.teacher or None, theirs.student)
        pair = str(ours.get("pair.name")) if fits(ours, teacher, student) else self.pair(teacher, student)
        said = None if pair is None else self.cell(theirs.benchmark, pair, theirs.method)
        if said is None:
            return []
        if itself:
            ours = {key: value for key, value in ours.items() if key.split(".")[0] in ("teacher", "dataset")}
        return differing_words(ours, said, itself or teacher is not None)


def fits(ours: dict[str, Any], teacher: str | None, student: str | None) -> bool:
    """Return True if a run's own pair contains one of these networks."""
    wanted = {"pair.teacher": teacher, "pair.student": student}
    return "pair.name" in ours and all(name in (None, ours.get(key)) for key, name in wanted.items())


@cache
def published_settings() -> PublishedSettings:
    """Return the instance shared by all tables."""
    return PublishedSettings()


def settings_of(text: str) -> dict[str, Any]:
    """Return a config.yaml flattened; empty if it cannot be read."""
    try:
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return flattened(content) if isinstance(content, dict) else {}


def differing_words(ours: dict[str, Any], theirs: dict[str, Any], taught: bool) -> list[str]:
    """Return the differing settings as text. A setting that only the publication has is newer than the run; without
    a teacher, the teacher's settings do not count."""
    words = []
    for key, value in ours.items():
        said = key not in UNSAID and key.split(".")[0] not in ("pair", "resolved") and changes_numbers(key)
        if not said or (key.startswith("teacher") and not taught) or (key not in theirs and value is None):
            continue
        if key not in theirs and key.startswith("method."):
            continue
        if not same(value, theirs.get(key, {})):
            published = f", published {shown(theirs[key])}" if key in theirs else ""
            words.append(f"{key} {shown(value)}{published}")
    return words if len(words) <= SHOWN else [*words[:SHOWN], f"and {len(words) - SHOWN} more"]


def same(one: Any, other: Any) -> bool:
    """Return True if two values are equal in any spelling: 1e-3 and 0.001, 1 and 1.0."""
    if isinstance(one, list) or isinstance(other, list):
        if not isinstance(one, list) or not isinstance(other, list):
            return False
        return len(one) == len(other) and all(map(same, one, other))
    try:
        return one == other or float(one) == float(other)
    except (TypeError, ValueError):
        return str(one).lower() == str(other).lower()


def shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
