"""One-line explanation of an error in a network's forward: what failed, in which file and layer, and what to do."""

from __future__ import annotations

import inspect
import re
from traceback import walk_tb

from torch import nn

from kdrun.config.own_code import is_own, own_place, short_place
from kdrun.errors import reason_of

# Pattern of the error message -> what to do. PyTorch has no error types to distinguish them.
ADVICE = {
    r"to have (\d+) channels, but got 3 channels": "The images are RGB: the first layer must accept 3 channels.",
    r"forward\(\) (missing|takes)": "kdrun calls it with the images as the only argument.",
    r"CUDA|cuda|NVIDIA|on the same device": "Remove .cuda() and .to(device): device= places it and the images.",
    r"same dtype|scalar type|should be the same": "Weights and images are float32: remove .half(), .double() and "
    "similar calls; precision= sets the arithmetic.",
}


def explain(error: Exception, model: nn.Module) -> tuple[str, str]:
    """Return (what went wrong and where, advice or an empty string)."""
    reason = reason_of(error)
    where = [place for place in (own_place(error) or defined_at(model), layer_of(error, model)) if place]
    line = f"{reason.rstrip('.')} ({', '.join(where)})." if where else f"{reason.rstrip('.')}."
    return line, next((advice for pattern, advice in ADVICE.items() if re.search(pattern, reason)), "")


def defined_at(model: nn.Module) -> str:
    """Return the location of the network's forward in the user's code; an empty string if somebody else wrote it."""
    code = inspect.unwrap(type(model).forward).__code__
    return short_place(code.co_filename, code.co_firstlineno) if is_own(code.co_filename) else ""


def layer_of(error: Exception, model: nn.Module) -> str:
    """Return the innermost layer of the network in the error's traceback."""
    names = {id(module): name for name, module in model.named_modules() if name}
    inside = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    found = [part for part in inside if id(part) in names]
    return f"in its {type(found[-1]).__name__} {names[id(found[-1])]}" if found else ""
