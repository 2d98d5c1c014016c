"""Configuration groups: the file behind `GROUP=NAME`, in kdrun's conf/ and in the user's folder.

`teacher=` and `student=` share conf/model. A recipe is chosen as `<benchmark>_<pair>_<method>`: the file
conf/recipe/<benchmark>_<method>.yaml holds it for every pair that it lists under `pairs`, and a pair whose values
differ has a file of its own. `<experiment>_<method>.yaml` holds an experiment's values for its own method.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kdrun.errors import ConfigError, one_line

MODEL_GROUPS = ("teacher", "student")
GROUPS = (*MODEL_GROUPS, "method", "dataset", "optimizer", "benchmark", "pair", "recipe", "experiment")


def conf_dir() -> Path:
    """Return the checkout's conf/ where there is one (an editable install), else the copy inside the package."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "conf", package / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"conf/config.yaml is missing next to {package}: reinstall kdrun.")


def roots(config_dir: str | None) -> list[Path]:
    """Return kdrun's conf/ and the user's folder. Raises ConfigError if the latter is not a folder."""
    if config_dir is None:
        return [conf_dir()]
    if not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder.")
    return [conf_dir(), Path(config_dir)]


def folders_of(group: str) -> tuple[str, ...]:
    """Return the folders of conf/ that hold a group."""
    return (group, "model") if group in MODEL_GROUPS else (group,)


def group_files(group: str, config_dir: str | None = None) -> dict[str, Path]:
    """Return name -> file of one group, from kdrun and from the user's folder, whose files take precedence."""
    folders = [root / folder for root in roots(config_dir) for folder in folders_of(group)]
    return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}


def choices(group: str, config_dir: str | None = None) -> list[str]:
    """Return the names of one group, sorted: kdrun's own, and those of the user's folder if given."""
    return sorted(group_files(group, config_dir))


def group_file(group: str, name: str, root: Path) -> Path | None:
    """Return the file in `root` that `group=name` reads, or None."""
    own = next((path for folder in folders_of(group) if (path := root / folder / f"{name}.yaml").is_file()), None)
    return shared_recipe(name, root) if own is None and group == "recipe" else own


def shared_recipe(cell: str, root: Path) -> Path | None:
    """Return the file `<benchmark>_<method>.yaml` that lists the pair of a cell `<benchmark>_<pair>_<method>`."""
    for path in (root / "recipe").glob("*.yaml"):
        cuts = [cut for cut, letter in enumerate(path.stem) if letter == "_"]
        pairs = [
            cell[cut + 1 : len(cell) - len(path.stem) + cut]
            for cut in cuts
            if cell.startswith(path.stem[: cut + 1]) and cell.endswith(path.stem[cut:])
        ]
        if pairs and set(pairs) & set(read_yaml(path).get("pairs") or ()):
            return path
    return None


def has_recipe(cell: str, config_dir: str | None = None) -> bool:
    """Return True if kdrun or the user's folder has the recipe of a cell `<benchmark>_<pair>_<method>`."""
    return any(group_file("recipe", cell, root) for root in roots(config_dir))


def published_methods(benchmark: str, pair: str, config_dir: str | None = None) -> list[str]:
    """Return the methods that have a recipe for a pair of a benchmark, sorted."""
    methods = choices("method", config_dir)
    return [method for method in methods if has_recipe(f"{benchmark}_{pair}_{method}", config_dir)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file that holds a mapping. Raises ConfigError if it is damaged."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not valid YAML ({getattr(error, 'problem', None) or one_line(error)}).") from error
    return content if isinstance(content, dict) else {}
