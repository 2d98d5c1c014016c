"""Notebook interface: load a finished run's network with everything that belongs to it, and read all results as a
table."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.config.options import RunConfig
from kdrun.config.schema import check_ranges
from kdrun.display import plural
from kdrun.errors import ConfigError, print_note
from kdrun.evaluation.deployed import Deployed, deploy, find_target, home
from kdrun.evaluation.loading import numerics_for
from kdrun.evaluation.targets import Which
from kdrun.runs.differing import differing
from kdrun.runs.directory import METRIC_COLUMNS, RunDirectory, finished_runs
from kdrun.runs.result import RESULT_KEYS, value_types

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

DTYPES = {
    int: "Int64",
    float: "Float64",
    bool: "boolean",
    str: "string",
    list: "string",
}  # pandas types with missing values


@dataclass
class Trained:
    """A trained network.

    model: maps the output of `transform` to logits [N, K], in evaluation mode and float32. config: the run's
    configuration. metrics: epoch, split, metric and value of its training. result: its result.json. For a teacher from
    the store, metrics and result are the teacher's own.
    """

    model: nn.Module
    class_names: list[str]
    config: RunConfig
    metrics: pd.DataFrame
    result: dict[str, Any]
    _deployed: Deployed

    def transform(self, images: Any) -> Tensor:
        """Prepare images as evaluation does (upright, RGB, resized, normalised): a PIL image, a path, an array
        uint8 [H, W, 3], or a list of them -> [N, 3, S, S] on the network's device. Raises TypeError for others."""
        import numpy as np

        several = images if isinstance(images, list | tuple) else [images]
        prepare = self._deployed.card.preparation
        return self._deployed.transform(np.stack([prepare(image) for image in several]))


def load(
    run: str | Path, model: str = "student", weights: str = "last", device: str = "cpu", trust: bool = False
) -> Trained:
    """Load the network of `run`: a run directory, a digest prefix, or a directory of teachers/.

    Raises a KdrunError (one line) if there is no such run, or if it names user code that is not trusted.
    """
    which = Which(model, weights, trust)
    check_ranges(which)
    target = find_target(str(run), which, {"device": device})
    numerics = numerics_for(replace(target.config, threads=None), "fp32")
    deployed = deploy(target, numerics)
    place, role = home(target), "student"
    assert place is not None
    if target.own is not None and target.own.stored is not None:
        place, role = target.own.stored.path, "teacher"
    directory = RunDirectory(place, role)
    return Trained(
        deployed.model,
        deployed.card.class_names,
        target.config,
        metrics_of(directory),
        directory.result() if directory.finished else {},
        deployed,
    )


def metrics_of(directory: RunDirectory) -> pd.DataFrame:
    """Return metrics.csv with typed columns."""
    import pandas as pd

    frame = pd.DataFrame(directory.read_metrics(), columns=list(METRIC_COLUMNS))
    return frame.astype({"epoch": "int64", "split": "string", "metric": "string", "value": "float64"})


def results(outputs: str | Path = "outputs") -> pd.DataFrame:
    """Return one row per finished run below `outputs`: `run` (its directory), the keys of result.json, and a column for
    each setting that differs between runs, such as optimizer.lr.

    Missing values are NA. Damaged results are counted on stderr. Raises ConfigError if there is no such folder.
    """
    import pandas as pd

    root = Path(os.path.expanduser(outputs))
    if not root.is_dir():
        raise ConfigError(f"outputs={outputs}: no such folder.")
    found = finished_runs(root)
    if damaged := len(list(root.glob("runs/*/*/*/*/result.json"))) - len(found):
        print_note(f"skipped {plural(damaged, 'damaged result')}; kdrun list runs output_root={root} lists them")
    rows = [
        {key: result.get(key) for key in RESULT_KEYS}
        | {"overrides": " ".join(result.get("overrides") or []), "run": str(place)}
        for place, result in found
    ]
    names, settings = differing(place for place, _ in found)
    frame = pd.DataFrame(rows, columns=["run", *RESULT_KEYS])
    kinds = {key: DTYPES[kind] for key, kind in value_types().items() if key != "finished_at"}
    frame = frame.astype({"run": "string", **kinds})
    frame["finished_at"] = pd.to_datetime(frame["finished_at"], utc=True)
    for name in names:
        frame[name] = pd.Series([settings[place].get(name) for place, _ in found], dtype="object").convert_dtypes()
    return frame
