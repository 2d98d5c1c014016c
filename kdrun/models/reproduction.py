"""Checks that a user's network is reproduced by its weights, and by a second pass on the same images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.models.memory_layout import same

DEEPEST = 4  # levels of containers that are searched for layers; a container may hold itself


def is_random(model: nn.Module, image: Tensor) -> bool:
    """Return True if the logits in evaluation depend on the random state, as with dropout that is never off."""
    first, second = (evaluated(model, image, seed) for seed in (0, 1))
    return not same(first, second)


def loses_state(model: nn.Module, image: Tensor) -> bool:
    """Return True if a pass in training mode changes the logits in evaluation by more than `state_dict` holds: through
    buffers that are not persistent, or plain attributes. False for a network that cannot be copied or trained."""
    try:
        trained, loaded = copy.deepcopy(model), copy.deepcopy(model)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trained.train()
            trained(image.clone())
        loaded.load_state_dict(trained.state_dict())
    except Exception:  # deepcopy and a user's forward can raise any type; who trains the network tells
        return False
    return not same(evaluated(trained, image), evaluated(loaded, image))


def evaluated(model: nn.Module, image: Tensor, seed: int = 0) -> Tensor:
    """Return the logits in evaluation, drawn from `seed` if they are random."""
    mode = model.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.eval()
        try:
            return model(image.clone())
        finally:
            model.train(mode)


def unregistered(model: nn.Module) -> list[str]:
    """Return the attributes that hold layers or parameters in a plain list or dictionary, where PyTorch does not see
    them: they are neither trained nor saved."""
    seen = {id(item) for item in [*model.modules(), *model.parameters()]}
    found = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and any(id(item) not in seen for item in weights_in(value)):
                found.append(f"{name}.{attribute}" if name else attribute)
    return found


def weights_in(value: Any, levels: int = DEEPEST) -> Iterator[nn.Module | nn.Parameter]:
    """Yield the parameters, and the modules that have any, in a container of containers; nothing of anything else."""
    if not levels or not isinstance(value, list | tuple | dict):
        return
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, nn.Parameter) or (isinstance(item, nn.Module) and any(True for _ in item.parameters())):
            yield item
        else:
            yield from weights_in(item, levels - 1)
