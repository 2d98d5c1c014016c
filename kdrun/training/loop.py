"""The training and evaluation loop. Several students (lanes) can train on one stream of batches and one teacher
forward; each has its own network, method, optimizer, randomness and failure."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.options import OptimizerOptions
from kdrun.config.own_code import located
from kdrun.data.resident import ResidentEval, ResidentTrain
from kdrun.data.stream import StreamEval, StreamTrain
from kdrun.draws import Draws, Numbers, has_drawn, seed_dropout
from kdrun.errors import RunError, one_line
from kdrun.methods.base import Forward, Method, check_terms
from kdrun.streams import Streams
from kdrun.structures import Batch, Outputs, Progress, filled
from kdrun.training import ranks
from kdrun.training.average import Average
from kdrun.training.joint import Joint
from kdrun.training.meters import EvalMeter, TrainMeter
from kdrun.training.network import Network
from kdrun.training.optimizer import learning_rate, make_optimizer, set_learning_rate
from kdrun.training.precision import Numerics, unrepeatable
from kdrun.training.teacher import Peer, Teacher

TrainLoader = ResidentTrain | StreamTrain
EvalLoader = ResidentEval | StreamEval


class Preparation(Method):
    """Training before the first epoch (a method's preparation), in the form of a method."""

    def __init__(self, method: Method):
        super().__init__()
        self.method, self.batch_terms = method, method.batch_terms  # type: ignore[misc]

    def forward(self, batch: Batch, student: Forward, teacher: Forward | None, progress: Progress) -> dict[str, Tensor]:
        terms = self.method.prepare_losses(batch, student, teacher, progress)
        check_terms(terms, self.method, function="prepare_losses")
        return terms


@dataclass
class Lane:
    """Lane: one student in training, with its method, optimizer and random streams. Several lanes of one process
    share the batches and the teacher's outputs."""

    student: Network
    method: Method
    options: OptimizerOptions
    epochs: int
    streams: Streams
    device: torch.device
    failed: RunError | None = None
    logits: Tensor | None = None
    usual: Tensor | None = None
    ema: Average | None = None
    peer: Peer | None = None  # replaces the shared teacher
    random: bool = False  # True if it uses PyTorch's generator on a GPU (dropout)
    alone: bool = field(default_factory=lambda: ranks.now.size == 1)  # True if one process trains it
    joint: Joint | None = None  # used otherwise
    deployed: nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    numbers: Numbers = field(init=False)
    progress: Progress = field(init=False)
    meter: TrainMeter = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.options, [self.model, self.method], self.device)
        self.deployed = self.method.deployed(self.student.tap)
        if self.options.ema_decay is not None:
            self.ema = Average(self.deployed, self.options.ema_decay, self.device)
        self.numbers = Numbers(self.device)

    @property
    def model(self) -> nn.Module:
        return self.student.tap.model

    @property
    def evaluated(self) -> nn.Module:
        """Return the network whose accuracy is reported and whose weights are saved: the moving average, if there is
        one."""
        return self.deployed if self.ema is None else self.ema.module

    def memory(self) -> int:
        """Return the bytes kept between steps: weights and buffers, gradients, two moments, and the average."""
        size = sum(x.numel() * x.element_size() for x in (*self.model.parameters(), *self.method.parameters()))
        kept = sum(x.numel() * x.element_size() for x in (*self.model.buffers(), *self.method.buffers()))
        return 4 * size + kept + (0 if self.ema is None else size)

    def count_from_zero(self, steps: int) -> None:
        """Start an epoch of `steps` steps, reusing the meter's memory."""
        if getattr(self, "meter", None) is None or self.meter.steps != steps:
            self.meter = TrainMeter(self.device, steps)
        self.meter.restart()

    def forward(self, image: Tensor) -> Outputs:
        out = self.student(image)
        if self.logits is None or image is self.usual:  # with several views, accuracy is measured on the usual one
            self.logits = out.logits.detach()
        return out

    def step(self, batch: Batch, teacher: Forward | None, epoch: int, step: int, steps: int) -> None:
        """Run forward, backward and update on one batch. Raises RunError for a loss that is not finite, or if memory
        is insufficient."""
        self.begin(epoch, step, steps, 0 if batch.share is None else batch.share.rank)
        images = len(batch.label) if batch.share is None else batch.share.total
        try:
            self.compute(batch, teacher, self.progress)
            self.random = self.random or (self.device.type == "cuda" and has_drawn(self.device))
            self.meter.end(images)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            explained = self.explain(error, images)
            if explained is not error:  # it is kept, and its frames would keep the step's activations
                traceback.clear_frames(error.__traceback__)
                self.optimizer.zero_grad(set_to_none=True)
            raise explained from error

    def begin(self, epoch: int, step: int, steps: int, rank: int = 0) -> None:
        """Set everything that changes from step to step. rank: of a process with other images than number 0."""
        seed_dropout(self.streams.dropout, epoch, step, self.device, rank)
        draws = Draws(self.streams.method, epoch, step, self.numbers)
        self.progress = Progress(epoch, self.epochs, step, steps, draws, self.numbers)
        self.numbers.begin(self.progress)
        self.meter.begin(step)

    def compute(self, batch: Batch, teacher: Forward | None, progress: Progress) -> None:
        """Compute the part of a step that happens on the device: nothing in here waits for a GPU, and persistent
        tensors stay at the same address."""
        self.logits, self.usual = None, batch.image
        every, done = self.options.accumulate_steps, self.progress.step + 1
        updates = done % every == 0 or done == self.progress.steps_per_epoch
        if self.alone:
            terms = self.method(batch, self.forward, teacher, progress)
            check_terms(terms, self.method)
            loss = torch.stack(list(terms.values())).sum() / every
            loss.backward()
        else:
            # Only now: the preparation before the first epoch has a separate lane with the same weights.
            self.joint = self.joint or Joint(self.student.tap, self.method)
            terms = self.joint.backward(batch, self.forward, teacher, progress, every, updates)
        # A mixed image has no single correct class.
        shown = self.logits if self.method.trains_classifier and batch.mixed is None else None
        self.meter.add(terms, shown, batch.label, batch.share)
        if updates:
            self.update()

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Record an error as this lane's failure, so that the other lanes continue; only the first one is kept. With
        several processes, an error that only one of them may have met ends them all."""
        try:
            yield
        except RunError as error:
            if not self.alone and error.__cause__ is not None:
                raise
            self.failed = self.failed or error
        except Exception as error:
            if not self.alone:
                raise
            failed = RunError(located(error))
            failed.__cause__ = error
            self.failed = self.failed or failed

    def rate(self, at: Progress) -> float:
        return learning_rate(self.options, self.epochs, at.epoch, at.step, at.steps_per_epoch)

    def update(self) -> None:
        if self.options.clip_norm is not None:
            nn.utils.clip_grad_norm_([*self.model.parameters(), *self.method.parameters()], self.options.clip_norm)
        set_learning_rate(self.optimizer, self.numbers.get(self.rate))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.deployed)

    def explain(self, error: BaseException, batch_size: int) -> BaseException:
        """Return an out-of-memory error, or one of non-determinism, as one line that says what to change; any other
        error unchanged."""
        if line := unrepeatable(error):
            return RunError(line)
        if not self.alone and ranks.is_of_connection(error):
            return ranks.now.gone(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            return RunError(
                f"out of memory at batch_size={batch_size} ({one_line(error)[:120]}). Halve batch_size and set "
                "optimizer.accumulate_steps=2 for the same update, or choose a smaller model."
            )
        return error


class Eager:
    """Training steps run kernel by kernel. The items of `epoch` are passed to `step`."""

    def __init__(self, teacher: Teacher | None, loader: TrainLoader):
        self.teacher, self.loader = teacher, loader

    def epoch(self, epoch: int, first: int) -> Iterator[Any]:
        """Yield the batches `first`, `first` + 1, … of `epoch`."""
        return self.loader.epoch(epoch, first)

    def remark(self) -> str:
        """Return a note for the user, printed once."""
        return ""

    def step(self, lanes: Sequence[Lane], given: Any, epoch: int, step: int, steps: int) -> None:
        """Train every lane that has not failed on one batch."""
        train_batch(lanes, self.teacher, given, epoch, step, steps)


def train_batch(
    lanes: Sequence[Lane], teacher: Teacher | None, batch: Batch, epoch: int, step: int, steps: int
) -> None:
    """Train every lane that has not failed on one batch and one pass of the teacher."""
    shared = None if teacher is None else teacher.for_batch(batch)
    for lane in lanes:
        if lane.failed is None:
            with lane.isolated():
                lane.step(batch, lane.peer or shared, epoch, step, steps)


def train_epoch(
    lanes: list[Lane],
    teacher: Teacher | None,
    loader: TrainLoader,
    epoch: int,
    starts: Sequence[int] | None = None,
    how: Eager | None = None,
) -> Iterator[int]:
    """Train every lane on the batches of `epoch`, each from its own step in `starts` (by default from the first), and
    yield the number of each finished step.

    A lane that fails keeps its error and stops; the others continue.
    """
    steps = loader.steps_per_epoch
    starts = starts or [0] * len(lanes)
    for lane, start in zip(lanes, starts, strict=True):
        lane.student.tap.train()
        lane.method.train()
        if start == 0:
            lane.count_from_zero(steps)
    first, how = min(starts, default=0), how or Eager(teacher, loader)
    for step, given in enumerate(how.epoch(epoch, first), first):
        begun = [lane for lane, start in zip(lanes, starts, strict=True) if step >= start]
        how.step(begun, given, epoch, step, steps)
        if all(lane.failed for lane in lanes):
            return
        yield step
    for lane in lanes:
        with lane.isolated():
            lane.meter.check(steps)


def evaluate(model: nn.Module, prepare: Any, loader: EvalLoader, numerics: Numerics) -> dict[str, float]:
    """Return top1, top5 (percent) and nll (nats) of `model` over `loader`. prepare: the tap's own image preparation."""
    training = model.training
    meter = EvalMeter(numerics.torch_device)
    model.eval()
    try:
        with torch.inference_mode():
            for image, label in loader.batches():
                with numerics.autocast():
                    logits = model(prepare(filled(image, loader.batch_size)))
                meter.update(logits[: len(label)].float(), label)
    finally:
        model.train(training)
    if ranks.now.size > 1:
        meter.join()
    return meter.result()


def eval_batch_size(requested: int | None, numerics: Numerics) -> int:
    """Resolve `eval_batch_size=null`: on a CPU few enough images for its caches, on a GPU many."""
    if requested is not None:
        return requested
    if numerics.torch_device.type == "cuda":
        return 1000
    return 128 if numerics.precision == "bf16" else 64


def batches(loader: TrainLoader, count: int) -> Iterable[Batch]:
    """Return the first `count` batches of epoch 0, for probes and benchmarks."""
    for step, batch in enumerate(loader.epoch(0)):
        if step == count:
            return
        yield batch
