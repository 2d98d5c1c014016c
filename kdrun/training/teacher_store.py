"""Store of trained teachers: outputs/teachers/<data set>/<name>/s<seed>-<digest8>/, shared by all runs whose teacher
has the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdrun.errors import CheckpointError, listed
from kdrun.files import sha256_of
from kdrun.models.weights import load_weights
from kdrun.runs.directory import RunDirectory
from kdrun.runs.recorded import check_unchanged


def load_stored(run: RunDirectory, model: nn.Module, name: str) -> str:
    """Load a finished teacher's weights into `model`. Return their SHA-256, checked against the recorded one.

    Raises CheckpointError if the file is missing or changed.
    """
    recorded = run.recorded_sha256()
    if not run.weights_path.is_file():
        raise CheckpointError(f"{run.weights_path} is missing; delete {run.path} to train the teacher again.")
    found = sha256_of(run.weights_path)
    if found != recorded:
        raise CheckpointError(
            f"{run.weights_path} is not the file that was trained (sha256 {found[:12]}…, recorded "
            f"{recorded[:12] or 'none'}…); delete {run.path} to train the teacher again."
        )
    check_unchanged(run.weights_path, found)  # also against checksums.json, in case both were replaced
    load_weights(model, run.weights_path, name)
    return found


def check_loaded(model: nn.Module, again: nn.Module, classes: int) -> None:
    """Raise CheckpointError if a teacher of zero epochs has initial weights that were drawn at random, such as a new
    classifier's. again: the same network, created from another seed."""
    other = again.state_dict()
    drawn = [name for name, value in model.state_dict().items() if not torch.equal(value, other[name])]
    if drawn:
        parts = dict.fromkeys(name.rpartition(".")[0] or name for name in drawn)
        raise CheckpointError(
            f"teacher.recipe.epochs=0 leaves {listed(parts)} of the teacher untrained: set teacher.recipe.epochs, or "
            f"teacher.checkpoint=FILE with weights for {classes} classes (teacher.random=true is an untrained control)."
        )


def record_weights(run: RunDirectory) -> None:
    """Record the finished weights' SHA-256 next to them."""
    from kdrun.files import write_text

    write_text(run.sha256_path, sha256_of(run.weights_path) + "\n")


def describe(kind: str, name: str, top1: float | None, sha256: str | None, place: Path | str | None) -> dict[str, Any]:
    """Return the description of the teacher for provenance."""
    return {"kind": kind, "name": name, "top1": top1, "sha256": sha256, "from": None if place is None else str(place)}
