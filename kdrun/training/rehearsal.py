"""One step of a method on untrained networks: what cannot run says so before a teacher is trained for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from kdrun.methods.base import check_terms
from kdrun.methods.factory import make_method
from kdrun.runs.plan import Plan
from kdrun.streams import Streams
from kdrun.structures import Batch, Progress
from kdrun.training.build import Data, data_spec, make_lane, make_loaders, make_network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher


def rehearse(plan: Plan, data: Data, numerics: Numerics) -> None:
    """Pass two images of noise through the method. Raises PairingError, ConfigError."""
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
    with torch.no_grad():
        check_terms(lane.method(batch, student, taught, Progress(0, 1, 0, 1)), lane.method, gradient=False)
