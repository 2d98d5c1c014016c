"""What is settled before the first step: what is kept of the teacher's outputs, and whether networks are compiled."""

from __future__ import annotations

from kdrun.config.options import RunConfig
from kdrun.data.resident import ResidentTrain
from kdrun.display import Display
from kdrun.methods.base import stages_read
from kdrun.training.compile_probe import choose_compile, switch
from kdrun.training.teacher import Teacher
from kdrun.training.teacher_cache import fill
from kdrun.training.training_run import Loaders, TrainingRun


def keep_outputs(
    teacher: Teacher, trainings: list[TrainingRun], loaders: Loaders, config: RunConfig, display: Display
) -> None:
    """Let the teacher return only the maps that the methods read, and compute what it says of each training image once
    for all epochs where it sees the same ones in each."""
    methods = [training.lane.method for training in trainings]
    teacher.network.tap.stages = stages_read(methods)
    train = loaders.train
    wanted = config.teacher_cache and config.epochs > 1 and any(method.shows_batch for method in methods)
    if not (wanted and isinstance(train, ResidentTrain) and train.teacher_sees_the_same):
        return

    teacher.cache, problem = fill(teacher.network, train, display.track)
    if problem:
        display.note(f"{problem}: the teacher computes them in every epoch")


def decide_compile(trainings: list[TrainingRun], teacher: Teacher | None, loaders: Loaders, display: Display) -> None:
    """Settle `compile=auto` by a timed probe of the first, for the networks of all."""
    first = trainings[0]
    compiled, note = choose_compile(first, teacher, loaders, first.lane.epochs)
    networks = [training.lane.student for training in trainings]
    switch(networks + ([] if teacher is None else [teacher.network]), compiled)
    if note:
        display.note(note)
