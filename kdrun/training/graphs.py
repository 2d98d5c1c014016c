"""Training steps as one CUDA graph: recorded once, then replayed, so that a step of hundreds of small kernels costs the
host one call.

Persistent tensors must not move in memory, and values that change from step to step must not be plain numbers: see
`kdrun.draws.Numbers`, `Lane.compute` and `TrainMeter.add`. The first steps run kernel by kernel, and so do the small
last batch of an epoch and all steps if recording fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kdrun.data.resident import Drawn, ResidentTrain
from kdrun.draws import Draws
from kdrun.errors import one_line
from kdrun.methods.base import Forward
from kdrun.structures import Batch, Mixed, Outputs, Progress
from kdrun.training.loop import Eager, Lane, TrainLoader
from kdrun.training.teacher import Teacher

WARM = 3  # steps of a lane before recording: they create the optimizer's state, and choose cuDNN's algorithms


def refuse(part: object, name: str, known: tuple[str, ...], owner: str) -> Any:
    if name in known:
        raise RuntimeError(f"the method reads {owner}.{name} as a plain number; take it from progress.number")
    return object.__getattribute__(part, name)


class RecordedDraws(Draws):
    """Draws of the step that is replayed."""

    def __getattribute__(self, name: str) -> Any:
        return refuse(self, name, ("seed", "epoch", "step"), "progress.draws")


class RecordedProgress(Progress):
    """Progress of the step that is replayed: its value during recording must not become a constant."""

    def __getattribute__(self, name: str) -> Any:
        return False if name == "first" else refuse(self, name, ("epoch", "step"), "progress")


def recorded(at: Progress) -> Progress:
    draws = RecordedDraws(at.draws.seed, at.draws.epoch, at.draws.step, at.numbers)
    return RecordedProgress(at.epoch, at.epochs, at.step, at.steps_per_epoch, draws, at.numbers)


def overwrite(kept: Any, new: Any) -> None:
    """Copy every tensor of `new` into the memory of `kept`, in dataclasses or tuples of one kind."""
    pairs = zip(kept, new, strict=True) if isinstance(kept, tuple) else pairs_of(kept, new)
    for old, value in pairs:
        if isinstance(old, Tensor):
            old.copy_(value)
        elif old is not None:
            overwrite(old, value)


def cloned(batch: Batch) -> Batch:
    """Return a copy of a batch in separate memory; the teacher's images remain the student's if they are the same."""
    image, shared = batch.image.clone(), batch.teacher_image is batch.image
    other = image if shared else batch.teacher_image.clone()
    strong = None if batch.strong is None else batch.strong.clone()
    mixed = None if batch.mixed is None else Mixed(*(tensor.clone() for tensor in batch.mixed))
    return Batch(image, batch.label.clone(), batch.index.clone(), other, strong, mixed)


def pairs_of(kept: Any, new: Any) -> list[tuple[Any, Any]]:
    return [(getattr(kept, field.name), getattr(new, field.name)) for field in fields(kept)]


def first_error(error: BaseException) -> BaseException:
    """Return the error that made a recording fail: what is done after it, such as its end, raises "operation failed due
    to a previous error during capture", which hides the one before."""
    while error.__context__ is not None and "error during capture" in str(error):
        error = error.__context__
    return error


class Indices:
    """Feed of batches that are gathered and augmented within the graph, from the positions of their samples."""

    def __init__(self, loader: ResidentTrain):
        self.loader = loader
        self.index = torch.zeros(loader.batch_size, dtype=torch.long, device=loader.device)
        self.drawn: Drawn | None = None

    def epoch(self, epoch: int, first: int) -> Iterator[Tensor]:
        drawn = self.loader.draw(epoch)
        if self.drawn is None:
            self.drawn = drawn
        else:
            overwrite(self.drawn, drawn)
        yield from self.drawn.order.split(self.loader.batch_size)[first:]

    def batch(self, given: Tensor) -> Batch:
        assert self.drawn is not None
        return self.loader.batch(given, self.drawn)

    def load(self, given: Tensor) -> None:
        self.index.copy_(given)

    def recorded(self) -> Batch:
        return self.batch(self.index)


class Batches:
    """Feed of batches that are made outside the graph: images from files, and strong views or RandAugment, for which
    the number of images per operation differs from batch to batch."""

    def __init__(self, loader: TrainLoader):
        self.loader = loader
        self.kept: Batch | None = None

    def epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        return self.loader.epoch(epoch, first)

    def batch(self, given: Batch) -> Batch:
        return given

    def load(self, given: Batch) -> None:
        if self.kept is None:
            self.kept = cloned(given)
        else:
            overwrite(self.kept, given)

    def recorded(self) -> Batch:
        assert self.kept is not None
        return self.kept


def feed_of(loader: TrainLoader) -> Indices | Batches:
    """Return how batches enter a graph; the items of its `epoch` are passed to its `batch` and `load`."""
    return Indices(loader) if isinstance(loader, ResidentTrain) and loader.recordable else Batches(loader)


class Graphs(Eager):
    """Steps of all training lanes as one graph. reason: why there will be none; empty while there may be one."""

    def __init__(self, teacher: Teacher | None, loader: TrainLoader):
        super().__init__(teacher, loader)
        self.feed: Any = feed_of(loader)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.lanes: list[Lane] = []  # lanes in the graph
        self.warm: dict[int, int] = {}  # number of full steps that each lane, by id, has run kernel by kernel
        self.stream = torch.cuda.Stream(device=loader.device)
        self.reason, self.told = "", False

    def remark(self) -> str:
        if not self.reason or self.told:
            return ""
        self.told = True
        return f"graphs=true: {self.reason}: the steps run kernel by kernel"

    def epoch(self, epoch: int, first: int) -> Iterator[Any]:
        return self.feed.epoch(epoch, first)

    def step(self, lanes: Sequence[Lane], given: Any, epoch: int, step: int, steps: int) -> None:
        """Replay the graph, or record it first, or run without one. This uses a separate stream: a graph cannot be
        recorded on the default one, and memory allocated here belongs to it."""
        around = torch.cuda.current_stream(self.loader.device)
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            living = [lane for lane in lanes if lane.failed is None]
            whole = (len(given) if isinstance(given, Tensor) else len(given.label)) == self.loader.batch_size
            ready = whole and not self.reason and all(self.warm.get(id(lane), 0) >= WARM for lane in living)
            if not (ready and self.play(living, given, epoch, step, steps)):
                super().step(living, self.feed.batch(given), epoch, step, steps)
                for lane in living:
                    self.warm[id(lane)] = self.warm.get(id(lane), 0) + whole
        around.wait_stream(self.stream)

    def play(self, lanes: list[Lane], given: Any, epoch: int, step: int, steps: int) -> bool:
        """Run the step by the graph. Return True if there is one."""
        for lane in sorted(lanes, key=lambda lane: lane.random):  # the generator keeps the last lane's seed
            lane.begin(epoch, step, steps)
        self.feed.load(given)
        if [*map(id, lanes)] != [*map(id, self.lanes)]:
            self.record(lanes)
        if self.graph is None:
            return False
        self.graph.replay()
        for lane in lanes:
            with lane.isolated():
                lane.meter.end(self.loader.batch_size)
        return True

    def record(self, lanes: list[Lane]) -> None:
        """Record the graph of `lanes`, or set the reason why it cannot be recorded."""
        self.graph, self.lanes = None, []  # frees the memory of the previous graph
        if any(lane.options.accumulate_steps > 1 for lane in lanes):
            self.reason = "optimizer.accumulate_steps spreads an update over several batches"
            return
        if sum(lane.random for lane in lanes) > 1:
            self.reason = "a graph has one random seed, but several of these networks use dropout"
            return
        graph = torch.cuda.CUDAGraph()
        try:
            for lane in lanes:
                lane.numbers.recorded = True
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.compute(lanes)
            self.graph, self.lanes = graph, lanes
        except Exception as error:  # a method may do anything that cannot be recorded
            self.reason = one_line(first_error(error))
        finally:
            for lane in lanes:
                lane.numbers.recorded = False
                lane.optimizer.zero_grad(set_to_none=True)

    def compute(self, lanes: list[Lane]) -> None:
        """Compute one step of all lanes: the batch and the teacher's outputs for it, then each student on its own
        stream."""
        batch = self.feed.recorded()
        shared = None if self.teacher is None else self.teacher.for_batch(batch)
        if len(lanes) == 1:
            lanes[0].compute(batch, lanes[0].peer or shared, recorded(lanes[0].progress))
            return
        teacher = None if shared is None else OnStream(shared, self.stream)
        streams = [torch.cuda.Stream() for _ in lanes]
        forked: list[torch.cuda.Stream] = []
        try:
            for lane, stream in zip(lanes, streams, strict=True):
                stream.wait_stream(self.stream)
                forked.append(stream)
                with torch.cuda.stream(stream):
                    lane.compute(batch, lane.peer or teacher, recorded(lane.progress))
        finally:  # a capture with an unjoined stream cannot be ended
            for stream in forked:
                self.stream.wait_stream(stream)


class OnStream:
    """Forward on one stream, for all callers. Its outputs are kept, since their memory must not be given to another
    stream while one still reads it."""

    def __init__(self, forward: Forward, stream: torch.cuda.Stream):
        self.forward, self.stream = forward, stream
        self.kept: list[Outputs] = []

    def __call__(self, image: Tensor) -> Outputs:
        asking = torch.cuda.current_stream()
        self.stream.wait_stream(asking)
        with torch.cuda.stream(self.stream):
            self.kept.append(self.forward(image))
        asking.wait_stream(self.stream)
        return self.kept[-1]
