"""Engine steps that kdrun bench times: networks as in real training, and endless training steps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from kdrun.data.splits import ArraySet
from kdrun.errors import RunError
from kdrun.methods.factory import make_method
from kdrun.streams import Streams
from kdrun.training.bench.setup import Bench
from kdrun.training.bench.timing import Step
from kdrun.training.build import data_spec, make_lane, make_loaders, make_network
from kdrun.training.control import measure_norms
from kdrun.training.graphs import Graphs
from kdrun.training.loop import Eager, Lane, TrainLoader, evaluate
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher


def untrained_student(bench: Bench, numerics: Numerics) -> Network:
    return make_network(bench.config.student, bench.data, Streams("student", 0), numerics, bench.config.batch_size)


def untrained_teacher(bench: Bench, numerics: Numerics) -> Network:
    """Return a teacher with the statistics of real activations in its normalisation layers."""
    config = bench.config
    teacher = make_network(config.teacher, bench.data, Streams("teacher", 0), numerics, config.batch_size)
    measure_norms(teacher, bench.data, 0)
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
        self.teacher, loader = Teacher(shared), self.loaders.train
        self.together = Steps(self.teacher, loader, self.lanes, numerics.graphs)
        self.apart = [Steps(self.teacher, loader, [lane], numerics.graphs) for lane in self.lanes]
        self.arithmetic = lambda: bench.arithmetic(numerics)

    def step_lanes(self) -> int:
        """Train every lane on the same batch and teacher forward; return the images, summed over students."""
        with self.arithmetic():
            return self.together.train()

    def step_alone(self) -> int:
        """Train every lane on its own batch and its own teacher forward."""
        with self.arithmetic():
            return sum(steps.train() for steps in self.apart)


class Steps:
    """Endless steps of some lanes on full batches. The small last batch of an epoch is skipped, since it would be a
    different kind of step. graphs: True if the steps are CUDA graphs."""

    def __init__(self, teacher: Teacher, loader: TrainLoader, lanes: list[Lane], graphs: bool):
        self.how, self.loader, self.lanes = (Graphs if graphs else Eager)(teacher, loader), loader, lanes
        self.source = self.endless()

    def endless(self) -> Iterator[tuple[int, int, Any]]:
        """Yield (epoch, step, what the step is given), with meters set to zero at each epoch's start."""
        whole = self.loader.num_samples // self.loader.batch_size
        for epoch in range(10**6):
            for lane in self.lanes:
                lane.count_from_zero(self.loader.steps_per_epoch)
            for step, given in enumerate(itertools.islice(self.how.epoch(epoch, 0), whole)):
                yield epoch, step, given

    def train(self) -> int:
        """Train the lanes on one batch and one teacher forward; return the images, summed over students. Raises
        RunError if a lane fails, or if the step cannot be recorded."""
        epoch, step, given = next(self.source)
        self.how.step(self.lanes, given, epoch, step, self.loader.steps_per_epoch)
        for lane in self.lanes:
            if lane.failed is not None:
                raise lane.failed
        if remark := self.how.remark():
            raise RunError(f"{remark}.")
        return len(self.lanes) * self.loader.batch_size


def evaluation_step(bench: Bench, row: str) -> Step:
    """Return a pass over the test set."""
    numerics = bench.numerics_of(row)
    network = untrained_student(bench, numerics)
    loader = make_loaders(bench.data, bench.config.batch_size, Streams("student", 0), "same", numerics).test

    def step() -> int:
        with bench.arithmetic(numerics):
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
