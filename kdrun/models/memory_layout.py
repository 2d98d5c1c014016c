"""Check whether a network works in channels-last memory, in which convolutions are fastest: some code depends on the
memory layout."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.own_code import located

ROUNDING = 1e-4  # relative to the largest logit: generous room for a different order of summation
PLAIN, LAST = torch.contiguous_format, torch.channels_last


def channels_last_problem(model: nn.Module, image: Tensor) -> str:
    """Return why `model` needs contiguous memory; an empty string if it does not.

    A copy of it runs on `image` in both layouts: forward in evaluation, forward and backward in training. A failure in
    both is not caused by the layout.
    """
    try:
        trial = copy.deepcopy(model)
    except Exception:  # deepcopy can raise any type, as with weight_norm
        trial = model
    mode, kept = model.training, {name: value.clone() for name, value in model.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        try:
            return evaluation_problem(trial, image) or training_problem(trial, image)
        finally:
            if trial is model:
                model.to(memory_format=PLAIN).zero_grad(set_to_none=True)
                model.train(mode)
                restore(model, kept)


def evaluation_problem(model: nn.Module, image: Tensor) -> str:
    """Return how the logits in channels-last memory differ from those in contiguous memory."""
    model.eval()
    with torch.no_grad():
        expected = outputs(model, image, PLAIN)
        try:
            found = outputs(model, image, LAST)
        except Exception as error:
            return located(error)
        if same(expected, found) or not same(expected, outputs(model, image, PLAIN, seed=1)):  # or it is random
            return ""
    return "its logits silently change in channels-last memory"


def training_problem(model: nn.Module, image: Tensor) -> str:
    """Return the error that a training step raises only in channels-last memory."""
    model.train()
    try:
        backward(outputs(model, image, LAST))
    except Exception as error:
        try:
            backward(outputs(model, image, PLAIN))
        except Exception:
            return ""
        return located(error)
    return ""


def outputs(model: nn.Module, image: Tensor, layout: torch.memory_format, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return model.to(memory_format=layout)(image.clone(memory_format=layout))


def same(one: Tensor, other: Tensor) -> bool:
    scale = one.abs().max().item()
    return torch.allclose(one, other, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)


def backward(logits: Any) -> None:
    if isinstance(logits, Tensor) and logits.requires_grad:
        logits.sum().backward()


def restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Restore the buffers (statistics)."""
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])


class Contiguous:
    """Forward pre-hook that lays images out in contiguous memory."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(item.contiguous() if isinstance(item, Tensor) else item for item in inputs)


class Copied:
    """Forward pre-hook that copies a batch's images for a network that overwrites its input."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(item.clone() if isinstance(item, Tensor) else item for item in inputs)
