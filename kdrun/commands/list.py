"""kdrun list: show all available choices, and the existing runs. Reads only YAML files and results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import Parsed, output_root_setting, parse
from kdrun.config.groups import choices, group_files, read_yaml
from kdrun.config.method_schema import read_method, sections
from kdrun.config.options import setting
from kdrun.config.words import ALIASES
from kdrun.errors import ConfigError, suggest
from kdrun.reporting.run_list import ORDERS, STATES, chosen, in_order, listed_runs, table_of_runs
from kdrun.runs.directory import outputs_folder

GROUPS = ("teachers", "students", "datasets", "optimizers", "benchmarks", "pairs", "experiments", "sweeps")
KINDS = ("methods", *GROUPS, "testsets", "settings", "runs", "teachers-trained")

HELP = f"""
usage: kdrun list [KIND …] [--config-dir FOLDER] [output_root=FOLDER]
       kdrun list runs [KEY=VALUE,… …] [state=done|running|failed|unfinished] [tag=NAME] [sort=top1|finished|…]

KIND is one of {", ".join(KINDS[:9])},
{", ".join(KINDS[9:])}.
Without KIND: every group with its names. runs and teachers-trained list the contents of the output folder; runs can be
filtered by settings: kdrun list runs method=kd,dkd optimizer.lr=0.1 sort=top1.
"""


@dataclass
class Options:
    state: str | None = setting(None, choices=STATES, help="only runs in this state")
    tag: str | None = setting(None, help="only runs with this tag (kdrun runs tag)")
    sort: str = setting("path", choices=tuple(ORDERS), help="order of the runs")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("list", words, Options, passes=True)
    config_dir = parsed.config_dir
    check_filters(parsed)
    if not parsed.names:
        return overview(config_dir)
    for kind in parsed.names:
        if kind not in KINDS:
            raise ConfigError(f"list {kind}: no such list.{suggest(kind, KINDS)} Available: {', '.join(KINDS)}.")
        if kind == "methods":
            list_methods(config_dir)
        elif kind == "sweeps":
            list_sweeps(config_dir)
        elif kind == "settings":
            list_settings()
        elif kind in GROUPS:
            list_group(kind.removesuffix("s"), config_dir)
        elif kind == "testsets":
            list_testsets()
        else:
            list_runs(parsed.options, parsed.rest, teachers=kind != "runs")
    return 0


def check_filters(parsed: Parsed[Options]) -> None:
    """Raise ConfigError for filters on a list other than runs."""
    asked, plain = parsed.options, Options()
    given = [*parsed.rest, *(key for key in ("state", "tag", "sort") if getattr(asked, key) != getattr(plain, key))]
    for key in given if not {"runs", "teachers-trained"} & set(parsed.names) else ():
        raise ConfigError(f"{key}: only lists of runs can be filtered and sorted: kdrun list runs {key}=…")


def overview(config_dir: str | None) -> int:
    rows = [["methods", ", ".join(choices("method", config_dir))]]
    for group in GROUPS:
        names = choices(group.removesuffix("s"), config_dir)
        rows.append([group, ", ".join(name for name in names if name != "any")])
    console.table("", ["group", "names"], rows)
    console.note("Other models: timm:NAME, torchvision:NAME, package.module:callable. Details: kdrun list GROUP.")
    return 0


def list_methods(config_dir: str | None) -> None:
    """Print each method's common name, its paper and the first sentence of its docstring."""
    rows, files = [], group_files("method", config_dir)
    for name, path in sorted(files.items()):
        parts = sections(read_method(read_yaml(path)["_target_"]).doc)
        aliases = [alias for alias, target in ALIASES.items() if target == name and alias not in files]
        called = f"{name} ({', '.join(aliases)})" if aliases else name
        rows.append([called, field_name(path), short_reference(parts.get("Paper", "")), " ".join(parts[""].split())])
    console.table("", ["method", "name", "paper", "what it does"], rows)
    console.note("kdrun explain method=NAME shows equation, settings and published numbers.")


def field_name(path: Path) -> str:
    """Return a method's common name: the start of its YAML's comment, up to the reference; "" for a file's path."""
    first = path.read_text().partition("\n")[0]
    name = re.split(r" \(|[,;:.]", first.removeprefix("#").strip())[0]
    return name if first.startswith("#") and "/" not in name else ""


def short_reference(paper: str) -> str:
    """Return `Zhao et al., CVPR 2022` from a section Paper; an empty string if it names no paper of its own."""
    found = re.match(
        r'(?:after )?((?:[A-Z][\w-]+, )*[A-Z][\w-]+), "[^"]+"[^,]*,\s+((?:[A-Z]\w+ )?\d{4})', " ".join(paper.split())
    )
    if found is None:
        return ""
    authors = found.group(1).split(", ")
    return f"{' & '.join(authors) if len(authors) < 3 else f'{authors[0]} et al.'}, {found.group(2)}"


def list_group(group: str, config_dir: str | None) -> None:
    """Print the title of each file, or the first sentence of its comment."""
    rows = []
    for name, path in sorted(group_files(group, config_dir).items()):
        lines = path.read_text().splitlines()
        comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line)
        title = next((line.partition(":")[2].strip().strip('"') for line in lines if line.startswith("title:")), None)
        rows.append([name, title or re.split(r"(?<=\.)(?<!et al\.) ", comment)[0]])
    console.table("", [group, ""], rows)


def list_sweeps(config_dir: str | None) -> None:
    """Print each sweep's title, number of cells, required data and cost."""
    from kdrun.sweeps.catalogue import catalogue

    rows = [[item.name, item.title, f"{item.cells:,}", item.data, item.cost] for item in catalogue(config_dir)]
    console.table("", ["sweep", "", "cells", "data", "cost, according to its file"], rows)
    console.note(
        "kdrun train -m sweep=NAME dry_run=true measures the cost here; kdrun table NAME shows the published values."
    )


def list_settings() -> None:
    """Print every setting of a run with its type, default and meaning."""
    from kdrun.config.explained import every_setting

    rows = []
    for item in every_setting():
        kind = f"{item.kind} ({item.bounds})" if item.bounds else item.kind
        rows.append([item.key, kind, item.default, item.meaning])
    console.table("", ["setting", "type", "default", "meaning"], rows)
    console.note("One setting: kdrun explain KEY. Settings of a method: kdrun explain method=NAME.")


def list_testsets() -> None:
    """Print each test set: its name, what it measures, how it is made, and its parameters with defaults."""
    from kdrun.evaluation.testsets.registry import SETS, settings

    rows = [[name, kind.measures, kind.usual, settings(kind)] for name, kind in SETS.items()]
    console.table("", ["testset", "measures", "made by", "parameters"], rows)
    console.note("kdrun testset NAME dataset=… creates and shows one.")


def list_runs(options: Options, filters: dict[str, str], teachers: bool) -> None:
    """Print finished, running and failed runs (or stored teachers) with their accuracy, filtered as requested."""
    root = outputs_folder(options.output_root)
    every = listed_runs(root, teachers)
    if not every:
        console.note(f"{root} has none yet.")
        return
    runs = in_order(chosen(every, filters, options.state, options.tag), options.sort)
    if not runs:
        console.note(f"none of the {len(every):,} in {root} matches.")
        return
    heads, rows, notes = table_of_runs(runs, root, "teacher" if teachers else "run", console.out.width)
    console.table("", heads, rows)
    for line in notes:
        console.note(line)
    if len(runs) < len(every):
        console.note(f"{len(runs):,} of {len(every):,}")
