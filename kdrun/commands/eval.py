"""kdrun eval: measure a run's network, a stored teacher's, or a file of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdrun import console
from kdrun.analysis.bias import Change, change_of
from kdrun.assemble import images_only, load_data, make_loaders, make_plan, output_root
from kdrun.commands.eval_words import RANKS, Measured, show_details, show_files, show_scores, show_table
from kdrun.commands.testset import derived_test
from kdrun.compose import load, split_arguments
from kdrun.config import check_value
from kdrun.data.sets import ArraySet
from kdrun.errors import ConfigError
from kdrun.runs import find_runs, now
from kdrun.testsets.base import NamedSet
from kdrun.testsets.registry import file_stem, parse_list, title
from kdrun.trained import Target, networks_of, target_of_file, target_of_run

if TYPE_CHECKING:
    from kdrun.analysis.evaluation import Subject
    from kdrun.assemble import Data
    from kdrun.data.sets import AnySet
    from kdrun.derive import Derived

HELP = """
usage: kdrun eval RUN … [model=student|teacher] [weights=last|best] [split=test|val|train] [rank=kl|agreement]
                        [testset=all|NAME[:key=value,…],…] [device=… precision=… eval_batch_size=… dataset.root=…]
       kdrun eval FILE student=NAME dataset=NAME [teacher=NAME teacher.checkpoint=FILE] [save=FOLDER] [key=value …]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/. FILE is a checkpoint: safetensors,
or a torch file of RepDistiller's, mdistiller's, timm's or a plain layout.

Prints top-1, top-5, negative log-likelihood (nats), expected calibration error (15 bins), precision, recall and F1 of
each class, parameters, FLOPs and images/s; where there is a teacher, KL(teacher ‖ student) (nats), agreement and the
linear CKA of the stages. Writes evals/<split>.json into the run (a finished run's own files stay as they are), with
<split>_confusion.csv, and as pictures <split>_reliability.png, _confusion.png and _cka.png; what a FILE gives,
into save=FOLDER. Several runs make one table; rank=kl puts the student that is nearest to its teacher first,
rank=agreement the one that agrees with it most often.

testset= measures derived copies of the test images instead (kdrun list testsets), into evals/<testset>.json, and says
what they change: the accuracy that is kept, the predictions that flip, KL(clean ‖ derived); of a cue conflict, shape
bias and its coverage.
"""

OWN = {"weights": ("last", "best"), "split": ("test", "val", "train"), "model": ("student", "teacher")}


def command(words: list[str]) -> int:
    _, overrides, config_dir = split_arguments(words)
    names = [word for word in overrides if "=" not in word]
    settings = {key: value for key, _, value in (word.partition("=") for word in overrides if "=" in word)}
    own = {name: settings.pop(name, values[0]) for name, values in OWN.items()}
    for name, values in OWN.items():
        check_value(name, own[name], {"choices": values})
    rank, save = settings.pop("rank", None), settings.pop("save", None)
    testsets = chosen_sets(settings.pop("testset", None), own["split"])
    if not names:
        raise ConfigError("eval what? Give a run directory, a glob, a digest or a checkpoint file (kdrun list runs).")
    if rank is not None:
        check_rank(rank, own)
        if len(testsets) > 1:
            raise ConfigError(f"rank={rank} ranks on one test set, and testset= names {len(testsets)}.")
    targets = find_targets(names, own, settings, config_dir)
    if rank is not None and all(target.teacher is None for target in targets):
        raise ConfigError(f"rank={rank}: none of these has a teacher to be compared with.")
    if save is not None:
        place_findings(save, targets)
    every = []
    for target in targets:
        for testset in testsets:
            every.append(measure(target, own["split"], testset))
            show_scores(every[-1])
            if len(targets) == len(testsets) == 1:
                show_details(every[-1])
    if len(every) > 1 or rank is not None:
        show_table(every, rank)
    show_files(every)
    return 0


def find_targets(
    names: list[str], own: dict[str, str], settings: dict[str, str], config_dir: str | None
) -> list[Target]:
    """Every network that the words mean, each checked before the first is measured."""
    rest = [f"{key}={value}" for key, value in settings.items()]
    root = output_root(load([word for word in rest if word.startswith("output_root=")]))
    targets = []
    for name in names:
        if Path(name).is_file():
            config = load([*rest, f"student.checkpoint={name}", "method=none"], config_dir)
            targets.append(target_of_file(name, config, own))
        else:
            targets += [target_of_run(run, own, settings) for run in find_runs(name, root)]
    return targets


def check_rank(rank: str, own: dict[str, str]) -> None:
    check_value("rank", rank, {"choices": tuple(RANKS)})
    if own["model"] == "teacher":
        raise ConfigError(f"rank={rank} ranks students by their teacher: leave model=teacher out.")


def place_findings(save: str, targets: list[Target]) -> None:
    if len(targets) > 1:
        raise ConfigError(f"save={save}: {len(targets)} networks would share its files; evaluate one at a time.")
    targets[0].folder = Path(save).expanduser()


def chosen_sets(text: str | None, split: str) -> list[NamedSet | None]:
    """The derived sets of testset=; None stands for the images as they are. Raises ConfigError."""
    if text is None:
        return [None]
    if split != "test":
        raise ConfigError(f"split={split}: derived sets are made of the test images; leave split= out.")
    return list(parse_list(text))


def measure(target: Target, split: str, testset: NamedSet | None = None) -> Measured:
    """Load and examine the network, and write what was found where it has a place."""
    from kdrun.analysis.evaluation import Subject, examine
    from kdrun.engine import eval_batch_size
    from kdrun.numerics import resolve
    from kdrun.report.evaluation import write_findings

    config = target.config
    numerics, _, _ = resolve(config.device, config.precision, "false", config.threads, config.deterministic)
    numerics.apply()
    plan = make_plan(images_only(config), [])
    data = load_data(plan, console.track)
    derived = None if testset is None else derived_test(testset, plan, data.splits)
    clean = data.splits.test
    data.splits = replace(data.splits, test=shuffled(chosen_split(data, split) if derived is None else derived.data))
    loaders = make_loaders(data, config.batch_size, config.seed, "same", numerics)
    network, deployed, teacher = networks_of(target, data, loaders, numerics)
    steps = -(-loaders.test.num_samples // eval_batch_size(config.eval_batch_size, numerics))

    def track(every: Iterator[int]) -> Iterator[int]:
        return console.track(every, steps, target.label) if console.out.is_terminal else every

    classes = data.splits.class_names
    found = examine(
        subject := Subject(network, deployed), Subject(teacher) if teacher else None, loaders.test, len(classes), track
    )
    change = None
    if derived is not None and isinstance(clean, ArraySet):
        change = changed(subject, clean, derived, data, config.eval_batch_size)
    images_named = f"{config.dataset.name}/{split}" + ("" if testset is None else f" {title(testset)}")
    taught = target.teacher.options.name if teacher and target.teacher else None
    files: list[Path] = []
    if target.folder is not None:
        about = {"split": split, "testset": None if derived is None else derived.manifest,
                 "change": None if change is None else asdict(change), "network": target.options.name,
                 "teacher": taught, "numerics": numerics.as_dict(),
                 "measured_at": now()}  # fmt: skip
        name = target.name if testset is None else file_stem(testset) + target.name.removeprefix(split)
        files = write_findings(target.folder, name, f"{target.options.name} on {images_named}", found, classes, about)
    place = f"{images_named} ({found.samples:,} images, {numerics.precision})"
    return Measured(target, found, classes, place, files, change, "" if testset is None else title(testset))


def chosen_split(data: Data, split: str) -> AnySet:
    splits = data.splits
    chosen = {"test": splits.test, "train": splits.train, "val": splits.val}[split]
    if chosen is None:
        raise ConfigError("split=val: this run had no validation split (dataset.val_fraction=0).")
    return chosen


def shuffled(chosen: AnySet) -> AnySet:
    """In an order that is random and always the same: on disk images often lie class by class."""
    return chosen.take(np.random.default_rng(0).permutation(len(chosen)))


def changed(subject: Subject, clean: ArraySet, derived: Derived, data: Data, batch_size: int | None) -> Change:
    """What the derived images change in the network's answers."""
    from kdrun.commands.bias_answers import answer

    before = answer(subject, clean, data, batch_size)
    after = replace(answer(subject, derived.data, data, batch_size), textures=derived.texture_labels)
    return change_of(before, after)
