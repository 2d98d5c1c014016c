"""Resume states and weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from kdrun import files
from kdrun.errors import CheckpointError, one_line
from kdrun.files import check_archive, write_atomically


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save a resume state: only tensors and plain values, so that it loads with `weights_only`."""
    write_atomically(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> dict[str, Any]:
    """Load a state written by `save_state`. Raises CheckpointError with the way out if the file is damaged."""
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError and more
        raise unusable(path, f"cannot be read ({one_line(error)})") from error
    if not isinstance(state, dict):
        raise unusable(path, "does not contain a run's state")
    return state


def unusable(path: Path, problem: str) -> CheckpointError:
    """Return the error for an unusable resume state, with the way out."""
    return CheckpointError(f"{path} {problem}; delete it to start the run again from the beginning.")


def save_weights(path: Path, state: dict[str, Any]) -> None:
    """Save a state dict as safetensors, in contiguous memory. What layers share is written for each of them: the format
    refuses tensors that share memory."""
    if files.onlooking:
        return
    apart: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor
    data = save(apart)
    write_atomically(path, lambda file: file.write(data))
