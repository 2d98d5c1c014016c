"""Sweeps: conf/sweep/NAME.yaml, or comma-separated values on the command line, as a list of cells to run.

A sweep's YAML holds
    title      one line
    extends    another sweep, whose keys are used unless this one has its own
    base       overrides of every cell
    before     label -> all overrides of a run that is trained first; <label> in a later override is its directory,
               <label.teacher> that of its stored teacher
    seeds      a list
    rows       label -> overrides
    columns    label -> overrides
    cells      {row, column, overrides, published}: replaces the grid's cell of that row and column, or adds a cell
    skip       {row, column, why}: cells of the grid that cannot run, or that are blank in the publication
    table      the shape of its table: value, baseline, against, teacher_row, benchmark, margin,
               testsets
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from kdrun.config.arguments import split_arguments
from kdrun.config.groups import group_files
from kdrun.errors import ConfigError, one_line, suggest
from kdrun.runs.identity import digest_of
from kdrun.runs.ledger import TableShape, changes_numbers, check_name
from kdrun.runs.published import published
from kdrun.sweeps.applying import applying, tell_kept
from kdrun.sweeps.cells import CellSpec

GROUP_KEYS = ("method", "teacher", "student", "dataset", "seed")
KINDS = {
    "title": str,
    "extends": str,
    "base": list,
    "before": dict,
    "seeds": list,
    "rows": dict,
    "columns": dict,
    "cells": list,
    "skip": list,
    "table": dict,
}
CELL_KEYS = ("row", "column", "overrides", "published")
SKIP_KEYS = ("row", "column", "why")
TABLE_KEYS = {field.name for field in dataclasses.fields(TableShape)} - {"rows", "columns"}


@dataclass
class Sweep:
    """Sweep as a list of cells. name: the ledger's; specs: in the table's order; before: overrides of the runs that
    they start from; adds: True if existing cells of the ledger are kept."""

    name: str
    title: str
    specs: list[CellSpec]
    shape: TableShape = field(default_factory=TableShape)
    before: dict[str, list[str]] = field(default_factory=dict)
    adds: bool = False


class UniqueKeys(yaml.SafeLoader):
    """YAML loader that rejects repeated keys: a second row of the same label would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} occurs twice, line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_sweep(name: str, config_dir: str | None, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read and check the YAML of a named sweep, including the sweep that it extends. seen: the sweeps that extend
    it. Raises ConfigError."""
    files = group_files("sweep", config_dir)
    if name not in files:
        raise ConfigError(f"sweep={name}: no such sweep.{suggest(name, files)} Available: {', '.join(sorted(files))}.")
    try:
        content = yaml.load(files[name].read_text(), UniqueKeys)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise ConfigError(f"sweep/{name}.yaml{where}: not valid YAML ({problem}).") from error
    check_shape(name, content)
    if "extends" in content:
        if content["extends"] in (*seen, name):
            raise ConfigError(f"sweep/{name}.yaml: extends: {content['extends']}: it extends itself.")
        content = {**read_sweep(content["extends"], config_dir, (*seen, name)), **content}
    check_places(name, content)
    return content


def check_shape(name: str, content: Any) -> None:
    """Raise ConfigError for an unknown key, or a value of the wrong type."""
    if not isinstance(content, dict):
        raise ConfigError(f"sweep/{name}.yaml: expected keys and values, as in rows: and columns:.")
    for key, value in content.items():
        if key not in KINDS:
            raise ConfigError(f"sweep/{name}.yaml: {key}: no such key.{suggest(str(key), KINDS)}")
        if not isinstance(value, KINDS[key]):
            raise ConfigError(f"sweep/{name}.yaml: {key}: expected a {KINDS[key].__name__}, not {value!r}.")
    for group in ("rows", "columns", "before"):
        for label, overrides in content.get(group, {}).items():
            if not isinstance(label, str) or not are_overrides(overrides):
                raise ConfigError(f"sweep/{name}.yaml: {group}: {label}: expected a list of overrides, as [method=kd].")
    if not are_overrides(content.get("base", [])):
        raise ConfigError(f"sweep/{name}.yaml: base: expected a list of overrides, such as [dataset=digits].")
    if not all(type(seed) is int and seed >= 0 for seed in content.get("seeds", [])):
        raise ConfigError(f"sweep/{name}.yaml: seeds: expected whole numbers, such as [0, 1, 2].")
    for key in content.get("table", {}):
        if key not in TABLE_KEYS:
            raise ConfigError(f"sweep/{name}.yaml: table.{key}: no such key.{suggest(key, TABLE_KEYS)}")
    for group, needed, allowed in (("cells", CELL_KEYS[:3], CELL_KEYS), ("skip", SKIP_KEYS, SKIP_KEYS)):
        for entry in content.get(group, []):
            check_entry(f"sweep/{name}.yaml: {group}", entry, needed, allowed)


def check_entry(where: str, entry: Any, needed: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise ConfigError for an entry of `cells` or `skip` that lacks a key, or has an unknown one."""
    lacking = [key for key in needed if not isinstance(entry, dict) or key not in entry]
    if lacking:
        raise ConfigError(f"{where}: {entry}: {', '.join(lacking)} is missing.")
    for key in entry:
        if key not in allowed:
            raise ConfigError(f"{where}: {key}: no such key.{suggest(str(key), allowed)}")
    if not are_overrides(entry.get("overrides", [])) or not isinstance(entry.get("published", True), bool):
        raise ConfigError(f"{where}: {entry}: overrides must be a list of overrides, published true or false.")


def are_overrides(value: Any) -> bool:
    """Return True for a list of overrides."""
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def check_places(name: str, content: dict[str, Any]) -> None:
    """Raise ConfigError for two cells in the same place, a skipped place outside the grid, and an unknown row or
    benchmark of the table."""
    places = Counter((cell["row"], cell["column"]) for cell in content.get("cells", []))
    for (row, column), count in places.items():
        if count > 1:
            raise ConfigError(f"sweep/{name}.yaml: {count} cells for row {row}, column {column}: only one is allowed.")
    for left_out in content.get("skip", []):
        for key, known in (("row", content.get("rows", {})), ("column", content.get("columns", {"": []}))):
            if left_out[key] not in known:
                raise ConfigError(
                    f"sweep/{name}.yaml: skip: {left_out[key]}: no such {key}.{suggest(str(left_out[key]), known)}"
                )
    table, rows = content.get("table", {}), [*content.get("rows", {}), *(row for row, _ in places)]
    for testset in table.get("testsets", []):
        from kdrun.evaluation.testsets.registry import parse

        try:
            parse(testset)
        except ConfigError as error:
            raise ConfigError(f"sweep/{name}.yaml: table.testsets: {error}") from error
    margin = table.get("margin", 1.0)
    if type(margin) not in (int, float) or not 0 < margin < math.inf:
        raise ConfigError(f"sweep/{name}.yaml: table.margin: {margin}: expected points above 0, such as 0.5.")
    benchmarks = sorted({row.benchmark for row in published()})
    for key, known in (("baseline", rows), ("against", rows), ("benchmark", benchmarks)):
        if table.get(key) is not None and table[key] not in known:
            raise ConfigError(
                f"sweep/{name}.yaml: table.{key}: {table[key]}: no such "
                f"{'benchmark with published values' if key == 'benchmark' else 'row'}."
                f"{suggest(str(table[key]), known)}"
            )


def named_sweep(name: str, extra: Sequence[str], given_name: str | None, config_dir: str | None) -> Sweep:
    """Return every cell of a named sweep, with the command line's overrides appended, except where its row or column
    chooses otherwise.

    `seed=…`, `row=…` and `column=…` choose what runs now, while the ledger keeps all cells; other overrides make a
    separate ledger.
    """
    content = read_sweep(name, config_dir)
    shape = TableShape(**content.get("table", {}))
    shape.rows = ordered([*content.get("rows", {}), *(cell["row"] for cell in content.get("cells", []))])
    shape.columns = columns_of(content)
    chosen, rest = split_choice(name, extra, shape)
    seeds = [int(seed) for seed in chosen["seed"]]

    def is_chosen(spec: CellSpec, seed: int) -> bool:
        return all(
            not words or value in words
            for value, words in ((spec.row, chosen["row"]), (spec.column, chosen["column"]), (seed, seeds))
        )

    specs = [
        replace(spec, overrides=[*spec.overrides, f"seed={seed}"], chosen=is_chosen(spec, seed))
        for spec in sorted(grid(content, rest), key=lambda spec: shape.columns.index(spec.column))
        for seed in ordered([*content.get("seeds", [0]), *seeds])
    ]
    changing = changing_words(rest)
    own_name = given_name or (f"{name}-{digest_of(changing)[:8]}" if changing else name)
    before = {label: [*words, *applying([], words, rest)] for label, words in content.get("before", {}).items()}
    tell_kept(name, rest, specs, [word for words in before.values() for word in words])
    return Sweep(own_name, content.get("title", name), specs, shape, before)


def split_choice(name: str, extra: Sequence[str], shape: TableShape) -> tuple[dict[str, list[str]], list[str]]:
    """Return (what `row=`, `column=` and `seed=` choose, the other overrides). Raises ConfigError for a label that the
    sweep does not have, or for a seed that is not a number."""
    chosen: dict[str, list[str]] = {"row": [], "column": [], "seed": []}
    rest = []
    for word in extra:
        key, equals, value = word.partition("=")
        if equals and key in chosen:
            chosen[key] = [part.strip() for part in value.split(",")]
        else:
            rest.append(word)
    for seed in chosen["seed"]:
        if not seed.isdecimal():
            raise ConfigError(f"seed={seed}: the seeds of a named sweep are whole numbers, as in seed=0,1,2.")
    for kind, known in (("row", shape.rows), ("column", shape.columns)):
        for label in chosen[kind]:
            if label not in known:
                raise ConfigError(
                    f"{kind}={label}: sweep {name} has no such {kind}.{suggest(label, known)} "
                    f"Available: {', '.join(known)}."
                )
    return chosen, rest


def columns_of(content: dict[str, Any]) -> list[str]:
    """Return the labels of all columns, those of individual cells last."""
    return ordered([*content.get("columns", {"": []}), *(cell["column"] for cell in content.get("cells", []))])


def grid(content: dict[str, Any], given: Sequence[str] = ()) -> list[CellSpec]:
    """Return rows times columns without skipped places, and the cells given individually; without seeds. given: the
    command line's overrides, of which each cell has those that apply to it."""
    base, rows, columns = content.get("base", []), content.get("rows", {}), content.get("columns", {"": []})
    several, started = len(columns_of(content)) > 1, from_before(base)

    def cell(row: str, column: str, overrides: list[str], published: bool = True) -> CellSpec:
        over = columns.get(column, [])
        applies = applying([*started, *overrides], over if several else [], given)
        kept_out = [word for word in given if word not in applies]
        return CellSpec(row, column, [*base, *over, *overrides, *applies], published, kept_out=kept_out)

    places = {(row, column): cell(row, column, words) for column in columns for row, words in rows.items()}
    for left_out in content.get("skip", []):
        places.pop((left_out["row"], left_out["column"]), None)
    for one in content.get("cells", []):
        place = (one["row"], one["column"])
        places[place] = cell(*place, one["overrides"], one.get("published", True))
    return list(places.values())


def from_before(base: list[str]) -> list[str]:
    """Return the overrides of a sweep's base that take a run of `before:`, and those that choose its network."""
    roles = {word.partition(".")[0] for word in base if "=<" in word}
    return [word for word in base if "=<" in word or word.partition("=")[0] in roles]


def ordered(labels: Sequence[Any]) -> list[Any]:
    """Return the labels without repetitions, in order of first occurrence."""
    return list(dict.fromkeys(labels))


def changing_words(overrides: Sequence[str]) -> list[str]:
    """Return the overrides by which a separate ledger is named, in a canonical order."""
    return sorted(word for word in overrides if changes_numbers(word.partition("=")[0]))


def multirun_sweep(overrides: Sequence[str], given_name: str | None, config_dir: str | None = None) -> Sweep:
    """Return every combination of comma-separated values, in Hydra's own grammar. Rows and columns follow from the
    runs."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from kdrun.config.compose import translate
    from kdrun.config.words import rewrite, unquoted

    try:
        parsed = OverridesParser.create().parse_overrides(rewrite(overrides, config_dir, several=True))
        jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except Exception as error:
        raise translate(error) from error
    jobs = [[unquoted(word.removeprefix("++")) for word in job] for job in jobs]
    name = given_name or f"multirun-{digest_of(changing_words(overrides))[:8]}"
    varying = {word.key_or_group for word in parsed if word.is_sweep_override()} - set(GROUP_KEYS)
    specs = [CellSpec(" ".join(word for word in job if word.partition("=")[0] in varying), "", job) for job in jobs]
    return Sweep(name, name, specs, adds=given_name is not None)


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str], list[str], str | None]:
    """Return (flags, {"sweep": …, "name": …} if given, the other overrides, --config-dir)."""
    flags, overrides, config_dir = split_arguments(words)
    own = {word.partition("=")[0]: word.partition("=")[2] for word in overrides if word.startswith(("sweep=", "name="))}
    if "name" in own:
        check_name(own["name"])
    return flags, own, [word for word in overrides if word.partition("=")[0] not in own], config_dir
