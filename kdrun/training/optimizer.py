"""Optimizers and stateless learning-rate schedules: the rate is a pure function of (epoch, step), so checkpoints
need no scheduler state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.options import OptimizerOptions

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def make_optimizer(
    options: OptimizerOptions, modules: Iterable[nn.Module], device: torch.device
) -> torch.optim.Optimizer:
    """Return one optimizer over the trainable parameters of student and method, which share lr, momentum and decay."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    seen: set[int] = set()
    for module in modules:
        undecayed = set() if options.decay_norm_and_bias else _norms_and_biases(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                (plain if name in undecayed else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    fused = device.type in ("cpu", "cuda") and all(part.is_floating_point() for part in (*decayed, *plain))
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=options.nesterov, fused=fused)
    # Only graphs=true records the steps, and until then PyTorch warns that it need not be able to.
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(
        groups,
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        fused=fused,
        capturable=device.type == "cuda",
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of `state`. The settings remain the optimizer's own: a saved rate may be a tensor, and older
    checkpoints lack some of them."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def _norms_and_biases(module: nn.Module) -> set[str]:
    """Return the parameters that timm's recipes do not decay: normalisation, biases, and those named by the model
    itself."""
    names = {name for name, parameter in module.named_parameters() if parameter.ndim <= 1}
    for path, part in module.named_modules():
        if isinstance(part, NORMS):
            names |= {f"{path}.{name}" if path else name for name, _ in part.named_parameters(recurse=False)}
    own = getattr(module, "no_weight_decay", None)
    return names | (set(own()) if callable(own) else set())  # type: ignore[call-overload]


def learning_rate(options: OptimizerOptions, epochs: int, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Return the rate for step `step` of epoch `epoch` (both from 0) of `epochs`.

    Multistep and step change between epochs, as MultiStepLR stepped once per epoch; cosine (Loshchilov & Hutter 2017)
    and one-cycle (Smith & Topin 2018: linear up to lr at peak_fraction, cosine down to 1/1000 of it) change at every
    step. Warm-up is linear from warmup_lr over warmup_epochs, which count as part of the schedule.
    """
    position = epoch + step / steps_per_epoch
    if position < options.warmup_epochs:
        return options.warmup_lr + (options.lr - options.warmup_lr) * position / options.warmup_epochs
    if options.schedule == "multistep":
        return options.lr * options.gamma ** sum(epoch >= milestone for milestone in options.milestones)
    if options.schedule == "step":
        return options.lr * options.gamma ** (epoch // options.step_epochs)
    if options.schedule == "cosine":
        start = options.warmup_epochs
        share = (position - start) / max(epochs - start, 1e-9)
        return options.min_lr + 0.5 * (options.lr - options.min_lr) * (1 + math.cos(math.pi * share))
    if options.schedule == "one_cycle":
        share, peak, low = position / epochs, options.peak_fraction, options.lr / 25
        if share < peak:
            return low + (options.lr - low) * share / peak
        last = options.lr / 1000
        return last + 0.5 * (options.lr - last) * (1 + math.cos(math.pi * (share - peak) / (1 - peak)))
    return options.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
