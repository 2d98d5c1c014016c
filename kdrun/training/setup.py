"""Setup before the first step: resuming, caching of the teacher's outputs, and the decision on compiling networks."""

from __future__ import annotations

from kdrun.config.options import RunConfig
from kdrun.config.schema import to_yaml
from kdrun.data.resident import ResidentTrain
from kdrun.display import Display, legible, plural
from kdrun.errors import ConfigError
from kdrun.methods.base import stages_read
from kdrun.training import ranks
from kdrun.training.build import Data
from kdrun.training.compile_probe import choose_compile, switch
from kdrun.training.joint import running_statistics
from kdrun.training.loop import Lane
from kdrun.training.provenance import provenance
from kdrun.training.signals import Stop
from kdrun.training.teacher import Teacher
from kdrun.training.teacher_cache import fill
from kdrun.training.trainer import prepare
from kdrun.training.training_run import Loaders, TrainingRun


def begin(
    training: TrainingRun,
    teacher: Teacher | None,
    loaders: Loaders,
    what: str,
    *,
    data: Data,
    display: Display,
    stop: Stop,
) -> None:
    """Resume from the last checkpoint, or write everything known before training and prepare the method."""
    plan = training.plan
    images = {
        "fingerprint": plan.source.fingerprint(),
        "train": loaders.train.num_samples,
        "test": loaders.test.num_samples,
        "mean": data.stats[0],
        "std": data.stats[1],
        "class_names": data.splits.class_names,
        "unreadable": [{"image": legible(name), "reason": why} for name, why in data.splits.unreadable],
    }
    resumed = training.resume(loaders.train.steps_per_epoch)
    if resumed:
        step = f", step {training.step}" if training.step else ""
        for line in (f"resuming {what} after epoch {training.epoch}{step}", *training.notes):
            display.note(line)
    numerics, alone = training.lane.student.numerics, what == "teacher"
    code, method = (plan.teacher_code, None) if alone else (plan.code, plan.method)
    about = provenance(numerics, images, training.teacher, method, code, training.other_images, plan.config)
    training.run.begin(to_yaml(plan.config, numerics.as_dict()), about, code.kept)
    preparation = training.lane.method.preparation()
    if preparation is not None and not resumed:
        title = f"preparing {plan.method.name}"
        display.note(f"{title}: {plural(preparation.epochs, 'epoch')} before the first")
        with display.training(title, preparation.epochs, 0) as show, stop.later():
            for step in prepare(training, preparation, teacher, loaders.train, stop):
                show(step)


def keep_outputs(
    teacher: Teacher, trainings: list[TrainingRun], loaders: Loaders, config: RunConfig, display: Display
) -> None:
    """Restrict the teacher to the maps that the methods read, and compute its outputs for each training image only
    once if it sees the same images in every epoch."""
    methods = [training.lane.method for training in trainings]
    teacher.network.tap.stages = stages_read(methods)
    train = loaders.train
    wanted = config.teacher_cache and config.epochs > 1 and any(method.shows_batch for method in methods)
    if not (wanted and isinstance(train, ResidentTrain) and train.teacher_sees_the_same):
        return

    teacher.cache, problem = fill(teacher.network, train, display.track)
    if ranks.now.most(bool(problem)) and not problem:
        teacher.cache, problem = None, "another process cannot keep the teacher's outputs"
    if problem:
        display.note(f"{problem}: the teacher computes them in every epoch")


def decide_compile(trainings: list[TrainingRun], teacher: Teacher | None, loaders: Loaders, display: Display) -> None:
    """Decide `compile=auto` by a timed probe of the first run, for the networks of all."""
    first = trainings[0]
    compiled, note = choose_compile(first, teacher, loaders, first.lane.epochs)
    networks = [training.lane.student for training in trainings]
    switch(networks + ([] if teacher is None else [teacher.network]), compiled)
    if note:
        display.note(note)


def shares_in_words(lane: Lane, config: RunConfig) -> str:
    """Return how several processes share the training of `lane`; an empty string for one. Raises ConfigError if they
    cannot train it as configured."""
    if lane.alone:
        return ""
    on_gpu = lane.device.type == "cuda"
    if config.sync_bn and not on_gpu:
        raise ConfigError("sync_bn=true: PyTorch synchronises batch norm only on GPUs; leave it out on a CPU.")
    size, batch_size = ranks.now.size, config.batch_size
    norm = ""
    if running_statistics(lane.student.tap) or running_statistics(lane.method):
        norm = "; batch norm uses the images of its own process" + (" (sync_bn=true: of all)" if on_gpu else "")
    if size > batch_size:
        return f"{size} processes: a batch of {batch_size} is too small to share, so each processes all of it{norm}"
    return f"{size} processes: each processes {lane.student.batch_size} of the {batch_size} images of a batch{norm}"
