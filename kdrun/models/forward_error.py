"""An error in a network's forward in one line: what, in whose file and layer, and what to do about it."""

from __future__ import annotations

import inspect
import re
from traceback import walk_tb

from torch import nn

from kdrun.config.own_code import is_own, own_place, short_place
from kdrun.errors import reason_of

# A pattern of the error's own line -> what to do. PyTorch has no kinds of errors to tell them by.
ADVICE = {
    r"to have (\d+) channels, but got 3 channels": "The images are RGB: its first layer has to take 3 channels.",
    r"forward\(\) (missing|takes)": "kdrun calls it with the images alone.",
    r"CUDA|cuda|NVIDIA|on the same device": "Leave .cuda() and .to(device) out: device= says where it and the "
    "images are.",
    r"same dtype|scalar type|should be the same": "Weights and images are float32: leave .half(), .double() and the "
    "like out; precision= sets the arithmetic.",
}


def explain(error: Exception, model: nn.Module) -> tuple[str, str]:
    """Return (what went wrong and where, advice or an empty string)."""
    reason = reason_of(error)
    where = [place for place in (own_place(error) or defined_at(model), layer_of(error, model)) if place]
    line = f"{reason.rstrip('.')} ({', '.join(where)})." if where else f"{reason.rstrip('.')}."
    return line, next((advice for pattern, advice in ADVICE.items() if re.search(pattern, reason)), "")


def defined_at(model: nn.Module) -> str:
    """Return where the user wrote the network's forward; an empty string where somebody else did."""
    code = inspect.unwrap(type(model).forward).__code__
    return short_place(code.co_filename, code.co_firstlineno) if is_own(code.co_filename) else ""


def layer_of(error: Exception, model: nn.Module) -> str:
    """Return the innermost part of the network that the error came through."""
    names = {id(module): name for name, module in model.named_modules() if name}
    inside = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    found = [part for part in inside if id(part) in names]
    return f"in its {type(found[-1]).__name__} {names[id(found[-1])]}" if found else ""
