"""Dry run: one step of a method on untrained networks, to find what cannot run before a teacher is trained for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdrun.errors import ConfigError
from kdrun.methods.base import check_terms
from kdrun.methods.factory import make_method
from kdrun.runs.plan import Plan
from kdrun.streams import Streams
from kdrun.structures import Batch, Progress
from kdrun.training.build import Data, data_spec, make_lane, make_loaders, make_network
from kdrun.training.precision import Numerics, unrepeatable
from kdrun.training.teacher import Teacher


def rehearse(plan: Plan, data: Data, numerics: Numerics) -> None:
    """Pass two images of noise through the method. Raises PairingError or ConfigError."""
    config, side = plan.config, data.splits.image_size
    streams = Streams("student", config.seed)
    student = make_network(config.student, data, streams, numerics, 2)
    teacher = None
    if plan.method.needs_teacher:
        untrained = replace(config.teacher, checkpoint=None, pretrained="false")
        teacher = make_network(untrained, data, streams, numerics, 2)
    loaders = make_loaders(data, config.batch_size, streams, "same", numerics)
    lane = make_lane(
        student=student,
        teacher=teacher,
        method=make_method(config.method),
        optimizer=config.optimizer,
        epochs=1,
        streams=streams,
        spec=data_spec(data, loaders.train),
    )
    device = numerics.torch_device
    image = torch.randn(2, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    batch = Batch(image, torch.arange(2, device=device), torch.arange(2, device=device), image, image)
    lane.student.tap.train()
    taught = None if teacher is None else Teacher(teacher)
    if numerics.deterministic:
        numerics.apply()  # for some operations only the gradient is not deterministic
    with torch.set_grad_enabled(numerics.deterministic):
        terms = lane.method(batch, student, taught, Progress(0, 1, 0, 1))
        check_terms(terms, lane.method, gradient=False)
    if numerics.deterministic:
        rehearse_gradient(terms)


def rehearse_gradient(terms: dict[str, Tensor]) -> None:
    """Raise ConfigError if a gradient needs an operation that PyTorch cannot repeat."""
    try:
        torch.stack(list(terms.values())).sum().backward()
    except RuntimeError as error:
        if line := unrepeatable(error):
            raise ConfigError(line) from error
        raise
