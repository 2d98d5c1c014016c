"""Engine steps that kdrun bench times: networks as in real training, and endless training steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from kdrun.data.splits import ArraySet
from kdrun.methods.factory import make_method
from kdrun.streams import Streams
from kdrun.structures import Batch
from kdrun.training.bench.setup import Bench
from kdrun.training.bench.timing import Step
from kdrun.training.build import data_spec, make_lane, make_loaders, make_network
from kdrun.training.loop import batches, evaluate
from kdrun.training.meters import TrainMeter
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher


def untrained_student(bench: Bench, numerics: Numerics) -> Network:
    return make_network(bench.config.student, bench.data, Streams("student", 0), numerics, bench.config.batch_size)


def untrained_teacher(bench: Bench, numerics: Numerics) -> Network:
    """Return a teacher with the statistics of real activations in its normalisation layers."""
    config = bench.config
    teacher = make_network(config.teacher, bench.data, Streams("teacher", 0), numerics, config.batch_size)
    loader = make_loaders(bench.data, config.batch_size, Streams("teacher", 0), "same", bench.numerics).train
    with torch.no_grad():
        for batch in batches(loader, 3):
            teacher.tap.train()(batch.image)
    return teacher


class EngineSteps:
    """Training steps of the real engine, including its input pipeline: of one method, or of several as lanes.

    methods: their checked configuration nodes.
    """

    def __init__(self, bench: Bench, row: str, methods: Sequence[dict[str, Any]]):
        streams = Streams("student", 0)
        config, numerics = bench.config, bench.numerics_of(row)
        made = [make_method(node) for node in methods]
        views = tuple(dict.fromkeys(view for method in made for view in method.views))
        self.batch_size = config.batch_size
        self.loaders = make_loaders(
            bench.data, config.batch_size, streams, config.teacher_view, bench.numerics, views=views
        )
        shared = untrained_teacher(bench, numerics)
        self.lanes = []
        for method in made:
            network = untrained_teacher(bench, numerics) if method.trains_teacher else shared
            lane = make_lane(
                student=untrained_student(bench, numerics),
                teacher=network,
                method=method,
                optimizer=config.optimizer,
                epochs=config.epochs,
                streams=streams,
                spec=data_spec(bench.data, self.loaders.train),
            )
            lane.student.tap.train()
            self.lanes.append(lane)
        self.teacher = Teacher(shared)
        self.batches = self.endless()

    def endless(self) -> Iterator[tuple[int, int, int, Batch]]:
        """Yield (epoch, step, steps, batch) of full batches, with fresh meters at each epoch's start; the small last
        batch is skipped, since it would be a different kind of step."""
        steps = self.loaders.train.steps_per_epoch
        for epoch in range(10**6):
            for lane in self.lanes:
                lane.meter = TrainMeter(lane.device, steps)
            for step, batch in enumerate(self.loaders.train.epoch(epoch)):
                if len(batch.label) == self.batch_size:
                    yield epoch, step, steps, batch

    def step_lanes(self) -> int:
        """Train every lane on one batch and one teacher forward; return the images, summed over students."""
        epoch, step, steps, batch = next(self.batches)
        shared = self.teacher.for_batch(batch)
        for lane in self.lanes:
            lane.step(batch, lane.peer or shared, epoch, step, steps)
        return len(self.lanes) * self.batch_size

    def step_alone(self) -> int:
        """Train every lane on its own batch and its own teacher forward."""
        for lane in self.lanes:
            epoch, step, steps, batch = next(self.batches)
            lane.step(batch, lane.peer or self.teacher.for_batch(batch), epoch, step, steps)
        return len(self.lanes) * self.batch_size


def evaluation_step(bench: Bench, row: str) -> Step:
    """Return a pass over the test set."""
    numerics = bench.numerics_of(row)
    network = untrained_student(bench, numerics)
    loader = make_loaders(bench.data, bench.config.batch_size, Streams("student", 0), "same", numerics).test

    def step() -> int:
        evaluate(network.tap.model, network.tap.prepare, loader, numerics)
        return loader.num_samples

    return step


def plain_arguments(bench: Bench) -> tuple[Any, ...]:
    """Return the arguments of `plain_steps`: networks in PyTorch's own memory format and plain arrays."""
    networks = untrained_student(bench, bench.numerics), untrained_teacher(bench, bench.numerics)
    models = [network.tap.model.cpu().to(memory_format=torch.contiguous_format) for network in networks]
    sets = [
        ArraySet(np.array(part.images[:4096]), part.labels[:4096])
        for part in (bench.data.splits.train, bench.data.splits.test)
        if isinstance(part, ArraySet)
    ]
    augment = bench.config.dataset.augment
    return (
        *models,
        *sets,
        bench.data.stats,
        augment.padding,
        augment.flip,
        bench.config.batch_size,
        bench.numerics.device,
        bench.numerics.threads,
    )
