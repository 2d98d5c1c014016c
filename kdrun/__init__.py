"""kdrun: a config-driven experiment runner for knowledge distillation of image classifiers.

In Python: `kdrun.load(RUN)` loads a trained network with its transform, class names, configuration and metrics;
`kdrun.results("outputs")` is a table of all finished runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from kdrun.api import Trained

__version__ = "0.1.0"
__all__ = ["__version__", "load", "results"]


def load(
    run: str | Path, model: str = "student", weights: str = "last", device: str = "cpu", *, trust: bool = False
) -> Trained:
    """Load a trained network of `run` (a run directory, a digest prefix, or a directory of teachers/), ready to use:
    `.model`, `.transform`, `.class_names`, `.config`, `.metrics`, `.result`.

    model: student or teacher. weights: last or best. trust: allow a run from elsewhere to execute the user code that it
    names.
    """
    from kdrun import api  # torch is imported here, not by `import kdrun`

    return api.load(run, model, weights, device, trust)


def results(outputs: str | Path = "outputs") -> pd.DataFrame:
    """Return one row per finished run below `outputs`, with typed columns."""
    from kdrun import api

    return api.results(outputs)
