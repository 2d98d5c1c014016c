"""kdrun list: everything that can be chosen, and the runs that exist. Reads YAML and results only."""

from __future__ import annotations

from pathlib import Path

import yaml

from kdrun import console
from kdrun.compose import ALIASES
from kdrun.conf_groups import choices, group_files
from kdrun.errors import ConfigError, suggest
from kdrun.methods.source import read_method, sections
from kdrun.runs import RunDirectory, outputs_folder

GROUPS = ("teachers", "students", "datasets", "optimizers", "benchmarks", "pairs", "experiments", "sweeps")
KINDS = ("methods", *GROUPS, "testsets", "runs", "teachers-trained")

HELP = f"""
usage: kdrun list [{"|".join(KINDS)}] [output_root=FOLDER]

Without a word: every group with its names. runs and teachers-trained show what is in the output folder.
"""


def command(words: list[str]) -> int:
    kinds = [word for word in words if "=" not in word]
    root = next((word.partition("=")[2] for word in words if word.startswith("output_root=")), None)
    if not kinds:
        return overview()
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"list {kind}: no such list.{suggest(kind, KINDS)} There are: {', '.join(KINDS)}.")
        if kind == "methods":
            list_methods()
        elif kind in GROUPS:
            list_group(kind.removesuffix("s"))
        elif kind == "testsets":
            list_testsets()
        else:
            list_runs(outputs_folder(root), teachers=kind != "runs")
    return 0


def overview() -> int:
    rows = [["methods", ", ".join(choices("method"))]]
    rows += [[group, ", ".join(name for name in choices(group.removesuffix("s")) if name != "any")] for group in GROUPS]
    console.table("", ["group", "names"], rows)
    console.note("Models also: timm:NAME, torchvision:NAME, package.module:callable. More: kdrun list GROUP.")
    return 0


def list_methods() -> None:
    """Name, whether it needs a teacher, and the claim of its docstring."""
    rows = []
    for name in choices("method"):
        source = read_method(yaml.safe_load(group_files("method")[name].read_text())["_target_"])
        claim = " ".join(sections(source.doc)[""].split())
        other = [alias for alias, target in ALIASES.items() if target == name]
        rows.append([name, "yes" if source.needs_teacher else "no", claim, ", ".join(other)])
    console.table("", ["method", "teacher", "what it does", "also called"], rows)
    console.note("kdrun explain method=NAME shows paper, equation, settings and published numbers.")


def list_group(group: str) -> None:
    """The title of each file, or its first comment line."""
    rows = []
    for name in choices(group):
        lines = group_files(group)[name].read_text().splitlines()
        comments = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
        title = next((line.partition(":")[2].strip().strip('"') for line in lines if line.startswith("title:")), None)
        rows.append([name, title or (comments[0] if comments else "")])
    console.table("", [group, ""], rows)


def list_testsets() -> None:
    """Name, what it measures, how it is made, and its parameters with their defaults."""
    from kdrun.testsets.registry import SETS, settings

    rows = [[name, kind.measures, kind.usual, settings(kind)] for name, kind in SETS.items()]
    console.table("", ["testset", "measures", "made by", "parameters"], rows)
    console.note("kdrun testset NAME dataset=… makes one and shows it.")


def list_runs(root: Path, teachers: bool) -> None:
    """Finished, running and failed runs (or stored teachers) with their accuracy."""
    from kdrun.checkpoint import read_json
    from kdrun.errors import CheckpointError

    rows = []
    for folder in sorted(root.glob("teachers/*/*/*" if teachers else "runs/*/*/*/*")):
        state, top1 = "unfinished", ""
        if (folder / "result.json").is_file():
            try:
                result = read_json(folder / "result.json")
                state, top1 = "done", f"{result['top1_last']:.2f}"
            except (CheckpointError, KeyError) as error:
                state = f"damaged: {error}"
        elif (folder / "failed.txt").is_file():
            state = f"failed: {RunDirectory(folder).failure()}"
        rows.append([str(folder.relative_to(root)), top1, state])
    if not rows:
        console.note(f"{root} holds none yet.")
        return
    console.table("", ["teacher" if teachers else "run", "top-1, %", "state"], rows)
