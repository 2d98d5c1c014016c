"""Reading weights that others wrote, without ever unpickling code."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import CheckpointError, one_line

# Where the projects of this field put the state dict inside their files.
NESTS = ("model", "state_dict", "state_dict_ema", "model_state_dict", "net", "student", "teacher")
PREFIXES = ("module.", "student.", "model.", "_orig_mod.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in `path`: safetensors, or a torch file with a plain, RepDistiller, mdistiller or timm layout.

    Torch files are read with `weights_only`: a file that holds anything beside tensors and plain values is refused.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = load_torch_file(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} holds more than tensors and is not unpickled, since that could run code "
            f"({refused_name(error)}); re-save its state_dict alone with torch.save or safetensors."
        ) from error
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({one_line(error)}); it may be truncated.") from error
    return unwrap(content, path)


def load_torch_file(path: Path) -> Any:
    """torch.load with `weights_only`, allowing the harmless extras of RepDistiller's files (NumPy scalars, options)."""
    import numpy as np

    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar  # type: ignore[attr-defined]
    harmless = [scalar, np.dtype, argparse.Namespace, type(np.dtype("float64")), type(np.dtype("float32"))]
    with torch.serialization.safe_globals(harmless):
        return torch.load(path, map_location="cpu", weights_only=True)


def refused_name(error: Exception) -> str:
    """The global that weights_only refused, from PyTorch's message."""
    for word in str(error).replace("`", " ").split():
        if "." in word and word[0].isalpha() and "pytorch.org" not in word:
            return word.strip(".,()")
    return "an object"


def unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Follow the known nestings down to name -> tensor and strip the wrappers' prefixes."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in NESTS if isinstance(content.get(name), Mapping)), None)
        if inner is None and any(isinstance(value, Tensor) for value in content.values()):
            break
        if inner is None:
            raise CheckpointError(
                f"checkpoint {path} holds no state dict; its entries are {', '.join(map(str, content))}."
            )
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict.")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name[len(prefix) :]: value for name, value in state.items()}
                stripped = True
    return state


def load_weights(model: nn.Module, path: Path, name: str, new_head: bool = False) -> None:
    """Load `path` into `model` strictly, or raise one line that says what does not fit.

    new_head: leave the classifier as it is where the file's has another number of classes (fine-tuning).
    """
    state = read_state_dict(path)
    own = model.state_dict()
    if new_head:
        head = head_names(model)
        state = {key: value for key, value in state.items() if key not in head or value.shape == own[key].shape}
        state |= {key: own[key] for key in head if key not in state}
    missing = sorted(own.keys() - state.keys() - {key for key in own if key.endswith("num_batches_tracked")})
    extra = sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or extra or shapes:
        problems = [
            f"{len(names)} {what}, first {names[0]}"
            for names, what in ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape"))
            if names
        ]
        detail = ""
        if shapes:
            key = shapes[0]
            detail = f" ({tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model)"
        raise CheckpointError(f"checkpoint {path} does not fit {name}: {'; '.join(problems)}{detail}.")
    model.load_state_dict({**{key: own[key] for key in own if key not in state}, **state})


def head_names(model: nn.Module) -> set[str]:
    """State-dict names of the last Linear: the classifier that fine-tuning replaces."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # A distilled ViT has two heads of the same kind.
    heads = {name for name in last[-2:] if "head" in name} | set(last[-1:])
    return {f"{name}.{part}" for name in heads for part in ("weight", "bias")} & set(model.state_dict())
