"""Moving average of a network's weights."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import ConfigError, reason_of

foreach: Any = torch  # its functions on lists are typed as private, though optimizers use them


class Average(nn.Module):
    """Exponential moving average of a network's parameters and buffers, started as a copy after the first update.

    The arithmetic and the state are those of `torch.optim.swa_utils.AveragedModel`, whose count of updates is on the
    CPU, so that every update would have to wait for it.
    """

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: float, device: torch.device):
        super().__init__()
        try:
            self.module = copy.deepcopy(network)
        except RuntimeError as error:  # of tensors in attributes that have a gradient
            raise ConfigError(
                f"optimizer.ema_decay={decay}: the network cannot be copied ({reason_of(error)}): keep no outputs of a "
                "forward pass in its attributes, or leave ema_decay out."
            ) from error
        self.decay = decay
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long, device=device))
        self.begun = False
        self.register_load_state_dict_post_hook(_recall)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with the current network."""
        new, old = tensors_of(network), tensors_of(self.module)
        if not self.begun:
            foreach._foreach_copy_(old, new)
            self.begun = True
        else:
            for floats in (True, False):
                mine = [x for x in old if x.is_floating_point() == floats]
                other = [x for x in new if x.is_floating_point() == floats]
                self.mix(mine, other, floats)
        self.n_averaged += 1

    def mix(self, old: list[Tensor], new: list[Tensor], floats: bool) -> None:
        if not old:
            return
        if floats:
            foreach._foreach_lerp_(old, new, 1 - self.decay)
        else:  # counters, rounded down
            mixed = foreach._foreach_mul(old, self.decay)
            foreach._foreach_add_(mixed, foreach._foreach_mul(new, 1 - self.decay))
            foreach._foreach_copy_(old, mixed)


def tensors_of(network: nn.Module) -> list[Tensor]:
    return [x.detach() for x in chain(network.parameters(), network.buffers())]


def _recall(average: nn.Module, _: object) -> None:
    assert isinstance(average, Average)
    average.begun = bool(average.n_averaged > 0)
