"""Creation of a finished run's result.json, and warnings about settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from kdrun.config.options import RunConfig
from kdrun.data.splits import Dataset
from kdrun.runs.directory import now
from kdrun.runs.result import RunResult
from kdrun.training import ranks
from kdrun.training.cost import count_flops, peak_memory
from kdrun.training.loggers import Logger, make_loggers
from kdrun.training.loop import Lane
from kdrun.training.training_run import TrainingRun


@contextmanager
def open_loggers(trainings: list[TrainingRun]) -> Iterator[dict[Path, list[Logger]]]:
    """Open each run's loggers, by directory, and close them at the end."""
    with ExitStack() as closing:
        loggers = {}
        for training in trainings:
            config, path = training.plan.config, training.run.path
            loggers[path] = make_loggers(
                config.logger if ranks.now.main else [], path, asdict(config), training.digest, training.epoch
            )
            for logger in loggers[path]:
                closing.callback(logger.close)
        yield loggers


def result_of(training: TrainingRun) -> RunResult:
    """Return the result of a run at its last epoch, for a student or a teacher."""
    plan, teacher = training.plan, training.teacher
    config, lane, score = plan.config, training.lane, training.score
    numerics, is_teacher = lane.student.numerics, training.run.role == "teacher"
    tap = lane.student.tap
    return RunResult(
        schema=1,
        dataset=config.dataset.name,
        teacher=None if is_teacher else plan.teacher_name,
        student=config.teacher.name if is_teacher else config.student.name,
        method="none" if is_teacher else plan.method.name,
        benchmark=config.benchmark,
        seed=lane.streams.seed,
        digest=training.digest,
        epochs=lane.epochs,
        precision=numerics.precision,
        compile=numerics.compile,
        threads=numerics.threads,
        device=numerics.device,
        teacher_top1=teacher["top1"] if teacher else None,
        top1_last=score.last["top1"],
        top1_best=score.top1_best,
        top1_best_epoch=score.top1_best_epoch,
        top1_val_selected=score.top1_val_selected,
        top5_last=score.last["top5"],
        params=parameters_of(lane),
        extra_params=training.extra,
        flops=count_flops(lane.deployed, tap.input_size or tap.image_size),
        images_per_second=training.images / max(training.train_seconds, 1e-9),
        train_seconds=training.train_seconds,
        peak_memory=peak_memory(numerics.torch_device),
        finished_at=now(),
        overrides=plan.overrides,
    )


def parameters_of(lane: Lane) -> int:
    """Return the number of deployed parameters: the student's, and those of the method used at inference."""
    return sum(parameter.numel() for parameter in lane.deployed.parameters())


def warnings(config: RunConfig, splits: Dataset) -> list[str]:
    """Return warnings about settings that are legal but probably unintended."""
    steps = -(-len(splits.train) // config.batch_size)
    found = []
    options = config.optimizer
    beyond = [milestone for milestone in options.milestones if milestone >= config.epochs]
    if options.schedule == "multistep" and beyond == options.milestones:
        found.append(
            f"note: the learning rate never drops: optimizer.milestones={options.milestones} are beyond "
            f"epochs={config.epochs}. For short runs set optimizer.schedule=cosine or one_cycle."
        )
    if options.warmup_epochs >= config.epochs:
        found.append(
            f"note: optimizer.warmup_epochs={options.warmup_epochs:g} does not end within epochs={config.epochs}, so "
            f"the learning rate never reaches optimizer.lr={options.lr:g}."
        )
    if options.accumulate_steps > steps:
        found.append(
            f"note: optimizer.accumulate_steps={options.accumulate_steps} is more than the {steps} steps of an epoch: "
            "each epoch makes one update, with a smaller gradient."
        )
    return found
