"""Training of runs from their latest checkpoint to the last epoch, yielding progress events."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kdrun.config.options import OptimizerOptions
from kdrun.display import Step
from kdrun.errors import Interrupted, RunError, trace_behind
from kdrun.runs.directory import short_path
from kdrun.training import ranks
from kdrun.training.checkpoint import save_weights
from kdrun.training.graphs import Graphs
from kdrun.training.loop import Eager, Lane, Preparation, TrainLoader, evaluate, train_epoch
from kdrun.training.optimizer import learning_rate
from kdrun.training.signals import Stop
from kdrun.training.teacher import Teacher
from kdrun.training.training_run import Loaders, TrainingRun

SAVE_SECONDS = 15  # minimum time between checkpoints at the ends of short epochs
ASKING = 10  # steps between synchronisations of several processes


@dataclass(frozen=True)
class Epoch:
    """End of one run's epoch, after saving. epoch counts from 1; metrics by split."""

    training: TrainingRun
    epoch: int
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Failed:
    """End of a run with an error; its directory records the reason."""

    training: TrainingRun
    reason: str


@dataclass(frozen=True)
class Remark:
    """Remark for the user, shown once."""

    text: str


Event = Step | Epoch | Failed | Remark


def prepare(
    training: TrainingRun, options: OptimizerOptions, teacher: Teacher | None, loader: TrainLoader, stop: Stop
) -> Iterator[Step]:
    """Run the method's preparation before the first epoch, by `options`, and save the run at its start.

    Resumes from the end of one of its own epochs. Raises RunError if it fails, Interrupted after saving for a signal.
    """
    lane = training.lane
    own = Lane(lane.student, Preparation(lane.method), options, options.epochs, lane.streams, lane.device)
    stage = TrainingRun(
        training.plan, training.run, training.digest, own, teacher=training.teacher, stage="preparation"
    )
    stage.resume(loader.steps_per_epoch)
    saved = time.monotonic()
    for epoch in range(stage.epoch, options.epochs):
        clock = Clock(loader)
        for step in train_epoch([own], teacher, loader, epoch):
            clock.tick(step)
            yield Step(epoch + 1, step + 1, loader.steps_per_epoch, clock.images_per_second)
        if own.failed is not None:
            raise own.failed
        stage.epoch = epoch + 1
        # A signal that arrives while saving is handled after the next epoch.
        if ranks.now.heed(stop, time.monotonic() - saved > SAVE_SECONDS):
            stage.save()
            saved = time.monotonic()
        if stop.heard:
            raise stopped(stop.heard, "while preparing")
    training.save()
    if ranks.now.main:
        stage.state_path.unlink(missing_ok=True)


def fit(
    trainings: list[TrainingRun],
    teacher: Teacher | None,
    loaders: Loaders,
    *,
    epochs: int,
    eval_every: int,
    save_every: float,
    stop: Stop,
) -> Iterator[Event]:
    """Train all runs to the last epoch; save_every is in seconds. Runs that are further ahead join at their own step,
    so that lanes left at different steps by a kill train together again.

    Raises Interrupted after saving if a signal asked to stop.
    """
    steps, how = loaders.train.steps_per_epoch, stepper(trainings, teacher, loaders.train)
    saved, waiting = time.monotonic(), list(trainings)
    for epoch in range(min((training.epoch for training in trainings), default=epochs), epochs):
        clock = Clock(loaders.train)
        trainings = [training for training in waiting if training.epoch <= epoch]
        starts = [training.start_epoch() for training in trainings]
        for step in train_epoch([training.lane for training in trainings], teacher, loaders.train, epoch, starts, how):
            yield from remarks(how)
            clock.tick(step)
            yield Step(epoch + 1, step + 1, steps, clock.images_per_second)
            due = look_up(step) and ranks.now.heed(stop, time.monotonic() - saved > save_every)
            if due and step + 1 < steps and is_whole(trainings, step + 1):
                save_between(living(trainings), epoch, step + 1, clock.lap())
                saved = time.monotonic()
                clock.resume()
                if stop.heard:
                    raise stopped(stop.heard, f"in epoch {epoch + 1}")
        lap = clock.lap()
        # Short epochs need not all be saved: a resume repeats them bit for bit.
        save = ranks.now.heed(stop, time.monotonic() - saved > SAVE_SECONDS) or epoch + 1 == epochs
        for training in trainings:
            tested = evaluated(training, loaders) if epoch + 1 == epochs or (epoch + 1) % eval_every == 0 else {}
            if training.lane.failed is not None:
                waiting.remove(training)
                yield mark_failed(training)
                continue
            training.train_seconds += lap
            yield Epoch(training, epoch + 1, close_epoch(training, tested, epoch, epochs, clock, save))
        saved = time.monotonic() if save else saved
        if not waiting:
            return
        # A signal during an evaluation whose epoch is not saved is handled in the next epoch.
        ranks.now.heed(stop)
        if stop.heard and save and epoch + 1 < epochs:
            raise stopped(stop.heard, f"after epoch {epoch + 1}")


def look_up(step: int) -> bool:
    """Return True after a step at which to check whether to save or to stop: several processes must agree on this,
    for which each waits for its device."""
    return ranks.now.size == 1 or (step + 1) % ASKING == 0


def stepper(trainings: list[TrainingRun], teacher: Teacher | None, loader: TrainLoader) -> Eager:
    """Return how steps are run, according to the runs' numerics."""
    graphs = any(training.lane.student.numerics.graphs for training in trainings)
    return (Graphs if graphs else Eager)(teacher, loader)


def remarks(how: Eager) -> Iterator[Remark]:
    """Yield what the user should know about the steps, once."""
    if told := how.remark():
        yield Remark(told)


def stopped(signal: str, where: str) -> Interrupted:
    """Return the exception for runs that were stopped by a signal and saved."""
    return Interrupted(f"stopped by {signal} {where}; saved. The same command resumes.")


class Clock:
    """Clock of one epoch's training time, without evaluation and saving."""

    def __init__(self, loader: TrainLoader):
        self.loader, self.images, self.spent = loader, 0, 0.0
        self.resume()

    def tick(self, step: int) -> None:
        """Count the images of a step; the last batch may be smaller."""
        self.images += min(self.loader.batch_size, self.loader.num_samples - step * self.loader.batch_size)

    def resume(self) -> None:
        self.begun = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since `resume`, and add them to the epoch's total."""
        lap = time.perf_counter() - self.begun
        self.spent += lap
        self.begun = time.perf_counter()
        return lap

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.spent + time.perf_counter() - self.begun, 1e-9)


def is_whole(trainings: list[TrainingRun], steps: int) -> bool:
    """Return True if a checkpoint after `steps` steps is complete: within an accumulated update there are gradients
    that it does not contain."""
    return all(steps % training.lane.options.accumulate_steps == 0 for training in trainings)


def save_between(trainings: list[TrainingRun], epoch: int, step: int, seconds: float) -> None:
    """Save a checkpoint inside an epoch, `seconds` of training after the last one."""
    for training in trainings:
        if step > training.begun:  # a run that joins later still has its own checkpoint
            training.epoch, training.step = epoch, step
            training.train_seconds += seconds
            training.save()


def living(trainings: list[TrainingRun]) -> list[TrainingRun]:
    return [training for training in trainings if training.lane.failed is None]


def mark_failed(training: TrainingRun) -> Failed:
    """Record why a run ended, with the traceback for an unexpected error; the last good checkpoint is kept."""
    error = training.lane.failed
    assert error is not None
    details = trace_behind(error)
    training.run.fail(f"{error}\n{details}".rstrip("\n"))
    traced = f"; traceback in {short_path(training.run.failed_path)}" if details else ""
    return Failed(training, f"{error}{traced}")


def evaluated(training: TrainingRun, loaders: Loaders) -> dict[str, dict[str, float]]:
    """Measure accuracy and loss on the test and validation images. A loss that is not finite fails the lane; failed
    lanes are skipped."""
    lane = training.lane
    if lane.failed is not None:
        return {}
    prepare, numerics = lane.student.tap.prepare, lane.student.numerics
    parts = {"test": loaders.test} if loaders.val is None else {"test": loaders.test, "val": loaders.val}
    found = {split: evaluate(lane.evaluated, prepare, loader, numerics) for split, loader in parts.items()}
    for split, metrics in found.items():
        if lane.failed is None and not math.isfinite(metrics["nll"]):
            lane.failed = RunError(
                f"the loss on the {split} images is {metrics['nll']} after the last update: the network is unusable. "
                "Lower optimizer.lr, set optimizer.clip_norm, or try precision=fp32."
            )
    return found


def close_epoch(
    training: TrainingRun, tested: dict[str, dict[str, float]], epoch: int, epochs: int, clock: Clock, save: bool
) -> dict[str, dict[str, float]]:
    """Write metrics, then weights, then the resume state that refers to them."""
    lane = training.lane
    train = lane.meter.result()
    train["images_per_second"] = clock.images / max(clock.spent, 1e-9)
    steps = clock.loader.steps_per_epoch
    train["lr"] = learning_rate(lane.options, lane.epochs, epoch, steps - 1, steps)  # at the epoch's last update
    training.images += clock.images
    metrics = {"train": train, **tested}
    last = epoch + 1 == epochs
    if tested and training.score.update(epoch + 1, metrics["test"], metrics.get("val")):
        save_weights(training.run.best_weights_path, lane.evaluated.state_dict())
    training.run.append_metrics(
        (epoch + 1, split, name, value) for split, values in metrics.items() for name, value in values.items()
    )
    training.epoch, training.step = epoch + 1, 0
    if last:
        save_weights(training.run.weights_path, lane.evaluated.state_dict())
    if save:
        training.save()
    return metrics


def store_pretrained(training: TrainingRun, loaders: Loaders) -> None:
    """Finish a run of zero epochs, and ignore any other: a pretrained network is evaluated and stored unchanged.
    Raises RunError if its loss is not finite."""
    lane = training.lane
    if lane.epochs > 0:
        return
    tested = evaluated(training, loaders)
    if lane.failed is not None:
        raise lane.failed
    training.score.update(0, tested["test"], None)
    save_weights(training.run.weights_path, lane.evaluated.state_dict())
