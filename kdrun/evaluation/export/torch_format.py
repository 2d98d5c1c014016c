"""Export within PyTorch: self-describing TorchScript and torch.export archives."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from kdrun.errors import RunError, one_line
from kdrun.evaluation.deployed import Card
from kdrun.evaluation.export.gate import Forward, module_forward

if TYPE_CHECKING:
    from torch import nn

CARD = "kdrun.json"  # name of the card among the archive's extra files


def write_torch_file(model: nn.Module, card: Card, path: Path, kind: str) -> Forward:
    """Write `model` as kind=torchscript or torch_export, with any batch size, and return the forward of the file as
    read back. Raises RunError if PyTorch cannot trace the network."""
    import torch

    example = torch.rand(2, 3, card.input_size, card.input_size)
    told = {CARD: json.dumps(asdict(card))}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if kind == "torchscript":
                torch.jit.save(torch.jit.trace(model, example, check_trace=False), path, _extra_files=told)
                return module_forward(torch.jit.load(path))
            program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, path, extra_files=told)
            return module_forward(torch.export.load(path).module())
    except Exception as error:  # the tracers raise many types, each with pages of text
        raise RunError(f"{card.network} cannot be written as {kind} ({one_line(error)}).") from error
