"""Catalogue of named sweeps: their number of cells, the data that they need, and the cost stated in their YAML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kdrun.config.groups import group_files, read_yaml
from kdrun.sweeps.definition import grid, read_sweep

NEEDED = {
    "digits": "digits (built in)",
    "fake": "fake (synthetic)",
    "cifar10": "CIFAR-10 (163 MiB to download, or dataset.root=)",
    "cifar100": "CIFAR-100 (161 MiB to download, or dataset.root=)",
    "imagenet": "ImageNet: dataset.root=FOLDER",
    "folder": "your images: dataset.root=FOLDER",
}


@dataclass(frozen=True)
class Listed:
    """Entry of a named sweep in the catalogue."""

    name: str
    title: str
    cells: int
    data: str
    cost: str


def catalogue(config_dir: str | None = None) -> list[Listed]:
    """Return every named sweep, sorted by name. Raises ConfigError if one of the user's files is damaged."""
    return [listed(name, path, config_dir) for name, path in sorted(group_files("sweep", config_dir).items())]


def listed(name: str, path: Path, config_dir: str | None) -> Listed:
    content = read_sweep(name, config_dir)
    specs = grid(content)
    sets = dict.fromkeys(dataset_of(spec.overrides, config_dir) for spec in specs)
    data = ", ".join(NEEDED.get(data, data) for data in sets)
    cells = len(specs) * len(content.get("seeds", [0]))
    return Listed(name, content.get("title", name), cells, data, cost_of(path.read_text()))


def dataset_of(words: list[str], config_dir: str | None) -> str:
    """Return the data set that a cell's overrides choose, directly or through a benchmark or an experiment."""
    chosen = "digits"
    for word in words:
        group, _, name = word.partition("=")
        if group in ("benchmark", "experiment"):
            file = group_files(group, config_dir).get(name)
            for item in read_yaml(file).get("defaults", []) if file else []:
                if isinstance(item, dict) and "override /dataset" in item:
                    chosen = str(item["override /dataset"])
                elif isinstance(item, dict) and "override /benchmark" in item:
                    chosen = dataset_of([f"benchmark={item['override /benchmark']}"], config_dir)
        elif group == "dataset":
            chosen = name
    return chosen


def cost_of(text: str) -> str:
    """Return the sentence in a YAML's comment that begins with "Costs", without that word."""
    comment = " ".join(line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#"))
    found = re.search(r"\bCosts (.+?)[.;](?= |$)", comment)
    return found[1].strip() if found else ""
