"""Cost of training steps on this machine: each network and each method is measured once, in a few real steps on
blank images of the run's size. No file is read or written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from kdrun.config.options import ModelOptions, OptimizerOptions, RunConfig
from kdrun.data.counts import Counts
from kdrun.data.splits import ArraySet, Dataset
from kdrun.methods.base import Method
from kdrun.methods.factory import make_method
from kdrun.methods.none import Independent
from kdrun.streams import Streams
from kdrun.structures import Batch, DataSpec
from kdrun.training.build import Data, make_lane, make_loaders, make_network
from kdrun.training.cost import count_flops
from kdrun.training.loop import Lane, train_batch
from kdrun.training.meters import TrainMeter
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher
from kdrun.training.teacher_cache import bytes_of

WARM, TIMED = 1, 6  # steps
SECONDS = 0.4  # of timed steps, after which no further one is started
OPERATIONS = 8e9  # per timed step on a CPU: large networks get fewer images, and the time is extrapolated
MORE = 8e10  # per timed step with more images, for the extrapolation
FEWEST, PAIR = 4, 2  # images per step: for a method, which may relate them to each other, and for a network alone
SHOWN = 512  # largest number of different images


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a network in seconds per image: `forward` without a gradient, `step` of training on the labels alone.
    kept: bytes per image kept for the backward pass; flops: as in `count_flops`; lane: bytes of memory between
    steps; state and weights: bytes of last.pt and of a weights file."""

    params: int
    flops: int
    forward: float
    step: float
    kept: int
    lane: int
    state: int
    weights: int


@dataclass(frozen=True)
class MethodCost:
    """Cost of one method on one pair. step: seconds per image, including both networks and the method's own work;
    kept, lane, state and weights: as in NetworkCost; extra: parameters used in training only; preparation: epochs
    before the first; made: seconds to create both networks and the method."""

    step: float
    kept: int
    lane: int
    state: int
    weights: int
    extra: int
    preparation: int
    made: float


class CostMeter(TrainMeter):
    """Meter that lets every number pass: untrained networks on blank images may overflow where real ones do not."""

    def check(self, until: int) -> None:
        self.checked = until


class Costing:
    """Cost measurements for the runs of one data set and one set of numerics."""

    def __init__(self, config: RunConfig, counts: Counts, classes: int, numerics: Numerics):
        self.numerics, self.counts, self.config = numerics, counts, config
        side = config.dataset.image_size
        shown = min(max(counts.train, 1), SHOWN)
        blank = ArraySet(np.zeros((shown, side, side, 3), dtype=np.uint8), np.arange(shown, dtype=np.int64) % classes)
        splits = Dataset(blank, blank, None, [str(label) for label in range(classes)], side)
        self.data = Data(splits, ([0.5] * 3, [0.25] * 3), config)
        self.shown, labels = shown, torch.arange(max(counts.train, 1)) % classes
        self.spec = DataSpec(len(labels), labels, classes, side)
        self.streams = Streams("student", 0)
        self.clocked = self.worked = 0.0

    def network(self, options: ModelOptions, batch_size: int, optimizer: OptimizerOptions, trains: bool) -> NetworkCost:
        """Measure a network. trains: True if it is ever trained; else `step` is three times its forward pass."""
        made = self.make(options)
        flops = count_flops(made.tap.model, made.tap.input_size or made.tap.image_size)
        lane = self.lane(made, None, Independent(), optimizer)
        step = self.each(lambda count: self.steps(lane, None, count), flops, batch_size, PAIR) if trains else 0.0
        kept = self.kept(lane, None)
        forward = self.each(lambda count: self.forward(made, count), flops, batch_size, PAIR)
        return NetworkCost(
            sum(parameter.numel() for parameter in lane.deployed.parameters()),
            flops,
            forward,
            step if trains else 3 * forward,
            kept,
            lane.memory(),
            state_bytes(lane),
            weight_bytes(lane),
        )

    def method(self, config: RunConfig, flops: int, needs_teacher: bool) -> MethodCost:
        """Measure a method on its pair. flops: of a forward pass of the larger network."""
        begun = time.perf_counter()
        student = self.make(config.student)
        taught = self.make(config.teacher) if needs_teacher else None
        method = make_method(config.method)
        lane = self.lane(student, taught, method, config.optimizer)
        spent = time.perf_counter() - begun
        frozen = None if taught is None or method.trains_teacher else Teacher(taught)
        preparation = method.preparation()
        return MethodCost(
            self.each(lambda count: self.steps(lane, frozen, count), flops, config.batch_size, FEWEST),
            self.kept(lane, frozen),
            lane.memory(),
            state_bytes(lane),
            weight_bytes(lane),
            0 if method.deploys else method.extra_parameters(),
            0 if preparation is None else preparation.epochs,
            spent,
        )

    def make(self, options: ModelOptions) -> Network:
        """Create a network that takes batches of any size as they are."""
        bare = replace(options, checkpoint=None, pretrained="false")
        return make_network(bare, self.data, self.streams, self.numerics, 1)

    def lane(self, student: Network, taught: Network | None, method: Method, optimizer: OptimizerOptions) -> Lane:
        return make_lane(
            student=student,
            teacher=taught,
            method=method,
            optimizer=replace(optimizer, accumulate_steps=1),
            epochs=1,
            streams=self.streams,
            spec=self.spec,
        )

    def images(self, flops: int, batch_size: int, fewest: int, operations: float = OPERATIONS) -> int:
        """Return the number of images in a timed step: the batch, or as many as take a CPU `operations`."""
        most = min(batch_size, self.shown)
        if self.numerics.torch_device.type != "cpu":
            return most
        return min(most, max(int(operations / max(3 * flops, 1)), fewest))

    def batches(self, images: int, views: tuple[str, ...] = ()) -> Iterator[Batch]:
        """Yield full batches endlessly."""
        loaders = make_loaders(self.data, images, self.streams, self.config.teacher_view, self.numerics, views=views)
        for epoch in itertools.count():
            yield from (batch for batch in loaders.train.epoch(epoch) if len(batch.label) == images)

    def each(self, seconds: Callable[[int], float], flops: int, batch_size: int, fewest: int) -> float:
        """Return the seconds per image of a batch of `batch_size`. seconds: of a step of so many images.

        A step costs a fixed time for the weights (optimizer, casts) and a time per image. Two numbers of images tell
        them apart; from one, a network of many weights seems slower than it is.
        """
        images = self.images(flops, batch_size, fewest)
        more = self.images(flops, batch_size, 2 * images, MORE)
        few = seconds(images)
        if more == images:
            return few / images
        many = seconds(more)
        slope = (many - few) / (more - images)
        fixed = few - slope * images
        return slope + fixed / batch_size if min(slope, fixed) > 0 else many / more

    def steps(self, lane: Lane, teacher: Teacher | None, images: int) -> float:
        """Return the seconds of a training step of `images` images, including making the batch."""
        count = WARM + TIMED
        lane.student.tap.train()
        lane.method.train()
        lane.meter = CostMeter(lane.device, count)
        source = self.batches(images, lane.method.views)

        def step(number: int) -> None:
            train_batch([lane], teacher, next(source), 0, number, count)
            if lane.failed is not None:
                raise lane.failed

        return self.timed(step, count)

    def forward(self, network: Network, images: int) -> float:
        """Return the seconds of a forward pass of `images` images without a gradient."""
        teacher, image = Teacher(network), next(self.batches(images)).image
        return self.timed(lambda _: teacher(image), WARM + TIMED)

    def timed(self, work: Callable[[int], object], count: int) -> float:
        """Return the lower quartile of the seconds of several calls after the first. A single thread is timed by
        processor time, so that other programs have little effect; `slowdown` records their delay."""
        alone = self.numerics.threads == 1 and self.numerics.torch_device.type == "cpu"
        spent: list[float] = []
        passed: list[float] = []
        for number in range(count):
            begun, began = time.thread_time(), time.perf_counter()
            work(number)
            if self.numerics.torch_device.type == "cuda":
                torch.cuda.synchronize(self.numerics.torch_device)
            if number >= WARM:
                passed.append(time.perf_counter() - began)
                spent.append(time.thread_time() - begun if alone else passed[-1])
            if len(spent) > 1 and sum(passed) > SECONDS:
                break
        self.clocked += sum(passed)
        self.worked += sum(spent)
        return sorted(spent)[len(spent) // 4]

    @property
    def slowdown(self) -> float:
        """Return clock time over processor time of the timed steps: the delay by other programs."""
        return self.clocked / max(self.worked, 1e-9)

    def kept(self, lane: Lane, teacher: Teacher | None) -> int:
        """Return the bytes per image kept for the backward pass, excluding weights and the method's own buffers."""
        seen: dict[int, int] = {}
        held = {tensor.untyped_storage().data_ptr() for tensor in (*lane.model.parameters(), *lane.method.parameters())}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in held:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        images = min(FEWEST, self.shown)
        batch = next(self.batches(images, lane.method.views))
        lane.meter = CostMeter(lane.device, 1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            train_batch([lane], teacher, batch, 0, 0, 1)
        return sum(seen.values()) // images


def state_bytes(lane: Lane) -> int:
    """Return the approximate size of last.pt: weights, their average, the method's modules and the optimizer's
    state."""
    moments = 1 if lane.options.name == "sgd" else 2
    trained = bytes_of([*lane.model.parameters(), *lane.method.parameters()])
    held = bytes_of([*lane.model.state_dict().values(), *lane.method.state_dict().values()])
    return held + moments * trained + (weight_bytes(lane) if lane.ema is not None else 0)


def weight_bytes(lane: Lane) -> int:
    return bytes_of(list(lane.evaluated.state_dict().values()))
