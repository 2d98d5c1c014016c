"""Sweeps: conf/sweep/NAME.yaml, or comma-separated values on the command line, as a list of cells to run.

A sweep's YAML holds
    title      one line
    base       overrides of every cell
    seeds      a list
    rows       label -> overrides
    columns    label -> overrides
    cells      {row, column, overrides, published}: instead of the cell of the same row and column, or beside the grid
    skip       {row, column, why}: cells of the grid that nobody can run, or that the publication leaves blank
    table      the shape of its table: value, baseline, against, teacher_row, benchmark
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from kdrun.compose import config_folders, split_arguments
from kdrun.errors import ConfigError, one_line, suggest
from kdrun.ledger import TableShape
from kdrun.runs import digest_of

GROUP_KEYS = ("method", "teacher", "student", "dataset", "seed")
PLACES = ("output_root", "dataset.root", "dataset.workers", "hydra", "launcher", "name", "save_every_minutes", "logger")
TABLE_KEYS = {field.name for field in dataclasses.fields(TableShape)} - {"rows", "columns"}


@dataclass
class Wish:
    """A cell before it is composed. row and column are "" in a sweep without a YAML: they follow from the run."""

    row: str
    column: str
    overrides: list[str]
    published: bool = True


@dataclass
class Sweep:
    """name: the ledger's; wishes: in the table's order."""

    name: str
    title: str
    wishes: list[Wish]
    shape: TableShape = field(default_factory=TableShape)


def read_sweep(name: str, config_dir: str | None) -> dict[str, Any]:
    """The YAML of a named sweep, checked. Raises ConfigError."""
    files = {path.stem: path for folder in config_folders(config_dir) for path in (folder / "sweep").glob("*.yaml")}
    if name not in files:
        raise ConfigError(f"sweep={name}: no such sweep.{suggest(name, files)} There are: {', '.join(sorted(files))}.")
    try:
        content = yaml.safe_load(files[name].read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"sweep/{name}.yaml: not valid YAML ({one_line(error)}).") from error
    known = ("title", "base", "seeds", "rows", "columns", "cells", "skip", "table")
    for key in content:
        if key not in known:
            raise ConfigError(f"sweep/{name}.yaml: {key}: no such key.{suggest(key, known)}")
    for key in content.get("table", {}):
        if key not in TABLE_KEYS:
            raise ConfigError(f"sweep/{name}.yaml: table.{key}: no such key.{suggest(key, TABLE_KEYS)}")
    return content


def named_sweep(name: str, extra: Sequence[str], given_name: str | None, config_dir: str | None) -> Sweep:
    """Every cell of a named sweep, with the command line's own overrides behind its own. `seed=…` and `row=…`,
    `column=…` there choose seeds and parts of the table; other overrides make a ledger of their own."""
    content = read_sweep(name, config_dir)
    chosen = {"row": [], "column": [], "seed": []}
    rest = []
    for word in extra:
        key, equals, value = word.partition("=")
        if equals and key in chosen:
            chosen[key] = [part.strip() for part in value.split(",")]
        else:
            rest.append(word)
    seeds = [int(seed) for seed in chosen["seed"] if seed.isdigit()] or content.get("seeds", [0])
    rows, columns = content.get("rows", {}), content.get("columns", {"": []})
    own = content.get("cells", [])
    places = {(row, column): Wish(row, column, [*over, *overrides])
              for column, over in columns.items() for row, overrides in rows.items()}  # fmt: skip
    for left_out in content.get("skip", []):
        places.pop((left_out["row"], left_out["column"]), None)
    given: set[tuple[str, str]] = set()
    for cell in own:
        place = (cell["row"], cell["column"])
        if place in given:
            raise ConfigError(f"sweep/{name}.yaml: two cells for row {place[0]}, column {place[1]}.")
        given.add(place)
        over = columns.get(cell["column"], [])
        places[place] = Wish(*place, [*over, *cell["overrides"]], cell.get("published", True))
    shape = TableShape(**content.get("table", {}))
    shape.rows = ordered([*rows, *(cell["row"] for cell in own)])
    shape.columns = ordered([*columns, *(cell["column"] for cell in own)])
    for kind, known in (("row", shape.rows), ("column", shape.columns)):
        for label in chosen[kind]:
            if label not in known:
                raise ConfigError(f"{kind}={label}: sweep {name} has no such {kind}.{suggest(label, known)} "
                                  f"There are: {', '.join(known)}.")  # fmt: skip
    base = content.get("base", [])
    wishes = [Wish(wish.row, wish.column, [*base, *wish.overrides, *rest, f"seed={seed}"], wish.published)
              for wish in sorted(places.values(), key=lambda wish: shape.columns.index(wish.column))
              if not chosen["row"] or wish.row in chosen["row"]
              if not chosen["column"] or wish.column in chosen["column"]
              for seed in seeds]  # fmt: skip
    changing = sorted(word for word in rest if not word.startswith(tuple(f"{place}" for place in PLACES)))
    title = given_name or (f"{name}-{digest_of(changing)[:8]}" if changing else name)
    return Sweep(title, content.get("title", name), wishes, shape)


def ordered(labels: Sequence[str]) -> list[str]:
    """Without repetitions, first come first."""
    return list(dict.fromkeys(labels))


def multirun_sweep(overrides: Sequence[str], given_name: str | None) -> Sweep:
    """Every combination of comma-separated values, in Hydra's own grammar. Rows and columns follow from the runs."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from kdrun.compose import rewrite, translate

    try:
        parsed = OverridesParser.create().parse_overrides(rewrite(overrides))
        jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except Exception as error:
        raise translate(error) from error
    jobs = [[word.removeprefix("++") for word in job] for job in jobs]
    words = sorted(word for word in overrides if not word.startswith(PLACES))
    name = given_name or f"multirun-{digest_of(words)[:8]}"
    varying = {word.partition("=")[0] for word in overrides if "," in word} - set(GROUP_KEYS)
    wishes = [Wish(" ".join(word for word in job if word.partition("=")[0] in varying), "", job) for job in jobs]
    return Sweep(name, " ".join(overrides), wishes)


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str], list[str], str | None]:
    """(flags, {"sweep": …, "name": …} where given, the other overrides, --config-dir)."""
    flags, overrides, config_dir = split_arguments(words)
    own = {word.partition("=")[0]: word.partition("=")[2] for word in overrides if word.startswith(("sweep=", "name="))}
    return flags, own, [word for word in overrides if word.partition("=")[0] not in own], config_dir


def sweep_names(config_dir: str | None = None) -> list[str]:
    files = [path for folder in config_folders(config_dir) for path in (folder / "sweep").glob("*.yaml")]
    return sorted({path.stem for path in files})
