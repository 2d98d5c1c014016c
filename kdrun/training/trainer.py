"""The course of a run from its first or last saved step to its end, as a stream of events for the caller to show."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kdrun.config.options import OptimizerOptions
from kdrun.display import Step
from kdrun.errors import Interrupted, KdrunError
from kdrun.runs.files import save_weights
from kdrun.training.loop import Lane, Preparation, TrainLoader, evaluate, train_epoch
from kdrun.training.network import Teacher
from kdrun.training.signals import Stop
from kdrun.training.training_run import Job, Loaders

SAVE_SECONDS = 15  # least time between checkpoints at the ends of short epochs


@dataclass(frozen=True)
class Epoch:
    """An epoch of one job is done and saved. epoch counts from 1; metrics by split."""

    job: Job
    epoch: int
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Failed:
    """One job ended with an error; its directory says why."""

    job: Job
    reason: str


Event = Step | Epoch | Failed


def prepare(
    job: Job, options: OptimizerOptions, teacher: Teacher | None, loader: TrainLoader, stop: Stop
) -> Iterator[Step]:
    """Train by `options` what the method trains before the first epoch, and save the job at its start.

    Resumes at the end of an epoch of its own. Raises RunError where it fails, Interrupted after saving for a signal.
    """
    lane = job.lane
    own = Lane(lane.student, Preparation(lane.method), options, options.epochs, lane.streams, lane.device)
    stage = Job(job.run, own, job.digest, stage="preparation")
    stage.resume(loader.steps_per_epoch)
    saved = time.monotonic()
    for epoch in range(stage.epoch, options.epochs):
        clock = Clock(loader.batch_size)
        for step in train_epoch([own], teacher, loader, epoch):
            clock.tick()
            yield Step(epoch + 1, step + 1, loader.steps_per_epoch, clock.images_per_second)
        if own.failed is not None:
            raise own.failed
        stage.epoch = epoch + 1
        if stop.signal or time.monotonic() - saved > SAVE_SECONDS:
            stage.save()
            saved = time.monotonic()
        if stop.signal:
            raise Interrupted(f"stopped by {stop.signal} while preparing; saved. The same command resumes.")
    job.save()
    stage.state_path.unlink(missing_ok=True)


def fit(
    jobs: list[Job],
    teacher: Teacher | None,
    loaders: Loaders,
    *,
    epochs: int,
    eval_every: int,
    save_every: float,
    stop: Stop,
) -> Iterator[Event]:
    """Train all jobs to the last epoch; save_every is in seconds. Those that stand further ahead join in where they
    stand, so that lanes which a kill has left at different steps train together again.

    Raises Interrupted after saving where a signal asked to stop.
    """
    steps = loaders.train.steps_per_epoch
    saved, waiting = time.monotonic(), list(jobs)
    for epoch in range(min((job.epoch for job in jobs), default=epochs), epochs):
        clock = Clock(loaders.train.batch_size)
        jobs = [job for job in waiting if job.epoch <= epoch]
        for job in jobs:
            job.begun = job.step
        starts = [job.step for job in jobs]
        for step in train_epoch([job.lane for job in jobs], teacher, loaders.train, epoch, starts):
            clock.tick()
            yield Step(epoch + 1, step + 1, steps, clock.images_per_second)
            due = bool(stop.signal) or time.monotonic() - saved > save_every
            if due and step + 1 < steps and is_whole(jobs, step + 1):
                save_between(living(jobs), epoch, step + 1, clock.lap())
                saved = time.monotonic()
                clock.resume()
                if stop.signal:
                    raise Interrupted(
                        f"stopped by {stop.signal} in epoch {epoch + 1}; saved. The same command resumes."
                    )
        lap = clock.lap()
        # Short epochs need not each pay for a checkpoint: a resume repeats them bit for bit.
        save = epoch + 1 == epochs or bool(stop.signal) or time.monotonic() - saved > SAVE_SECONDS
        for job in jobs:
            if job.lane.failed is not None:
                waiting.remove(job)
                yield give_up(job)
                continue
            job.train_seconds += lap
            yield Epoch(job, epoch + 1, close_epoch(job, loaders, epoch, epochs, eval_every, clock, save))
        saved = time.monotonic() if save else saved
        if not waiting:
            return
        if stop.signal and epoch + 1 < epochs:
            raise Interrupted(f"stopped by {stop.signal} after epoch {epoch + 1}; saved. The same command resumes.")


class Clock:
    """Training time of one epoch, without evaluation and saving."""

    def __init__(self, batch_size: int):
        self.batch_size, self.images, self.spent = batch_size, 0, 0.0
        self.resume()

    def tick(self) -> None:
        self.images += self.batch_size

    def resume(self) -> None:
        self.begun = time.perf_counter()

    def lap(self) -> float:
        """Seconds since `resume`, added to the epoch's total."""
        lap = time.perf_counter() - self.begun
        self.spent += lap
        self.begun = time.perf_counter()
        return lap

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.spent + time.perf_counter() - self.begun, 1e-9)


def is_whole(jobs: list[Job], steps: int) -> bool:
    """Whether a checkpoint after so many steps holds everything: between the halves of an accumulated update there are
    gradients that it does not hold."""
    return all(steps % job.lane.options.accumulate_steps == 0 for job in jobs)


def save_between(jobs: list[Job], epoch: int, step: int, seconds: float) -> None:
    """Checkpoint inside an epoch, `seconds` of training after the last one."""
    for job in jobs:
        if step > job.begun:  # one that joins in later has its own checkpoint
            job.epoch, job.step = epoch, step
            job.train_seconds += seconds
            job.save()


def living(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.lane.failed is None]


def give_up(job: Job) -> Failed:
    """Record why a job ended, an unexpected error with its traceback; the last good checkpoint stays."""
    error = job.lane.failed
    assert error is not None
    cause = error.__cause__
    unexpected = cause is not None and not isinstance(cause, KdrunError | MemoryError | torch.OutOfMemoryError)
    details = "".join(traceback.format_exception(cause)) if unexpected else ""
    job.run.fail(f"{error}\n{details}".rstrip("\n"))
    return Failed(job, str(error))


def close_epoch(
    job: Job, loaders: Loaders, epoch: int, epochs: int, eval_every: int, clock: Clock, save: bool
) -> dict[str, dict[str, float]]:
    """Evaluate, write metrics, then weights, then the resume state that refers to them."""
    lane = job.lane
    train = lane.meter.result()
    train["images_per_second"] = clock.images / max(clock.spent, 1e-9)
    job.images += clock.images
    metrics = {"train": train}
    last = epoch + 1 == epochs
    if last or (epoch + 1) % eval_every == 0:
        prepare, numerics = lane.student.tap.prepare, lane.student.numerics
        metrics["test"] = evaluate(lane.evaluated, prepare, loaders.test, numerics)
        if loaders.val is not None:
            metrics["val"] = evaluate(lane.evaluated, prepare, loaders.val, numerics)
        if job.score.update(epoch + 1, metrics["test"], metrics.get("val")):
            save_weights(job.run.best_weights_path, lane.evaluated.state_dict())
    job.run.append_metrics(
        (epoch + 1, split, name, value) for split, values in metrics.items() for name, value in values.items()
    )
    job.epoch, job.step = epoch + 1, 0
    if last:
        save_weights(job.run.weights_path, lane.evaluated.state_dict())
    if save:
        job.save()
    return metrics


def keep_as_is(job: Job, loaders: Loaders) -> None:
    """A job of no epochs: a pretrained network is evaluated and stored as it came."""
    lane = job.lane
    job.score.update(0, evaluate(lane.evaluated, lane.student.tap.prepare, loaders.test, lane.student.numerics), None)
    save_weights(job.run.weights_path, lane.evaluated.state_dict())
