"""kdrun eval: measure a run's network, a stored teacher's, or a file of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun import console
from kdrun.commands.eval_words import RANKS, Measured, show_details, show_files, show_scores, show_table
from kdrun.commands.testset import derived_tests
from kdrun.config.arguments import names_and_settings, take_choices
from kdrun.config.compose import load
from kdrun.config.schema import check_value
from kdrun.data.splits import AnySet
from kdrun.errors import ConfigError
from kdrun.evaluation.bias import Change, change_of
from kdrun.evaluation.predictions import answer
from kdrun.evaluation.targets import Target, networks_of, target_of_file, target_of_run
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.registry import file_stem, parse_list, title
from kdrun.runs.directory import find_runs, now
from kdrun.streams import Streams
from kdrun.training.build import Plan, images_only, load_data, make_eval_loader, make_loaders, make_plan, output_root

if TYPE_CHECKING:
    from kdrun.evaluation.examine import Findings, Subject
    from kdrun.training.build import Data
    from kdrun.training.loop import EvalLoader

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

TAKES = ("testset", "rank", "save")


def command(words: list[str]) -> int:
    names, settings, config_dir = names_and_settings(words)
    own = take_choices(settings, OWN)
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
        for done in measure(target, own["split"], testsets):
            every.append(done)
            show_scores(done)
            if len(targets) == 1 and len(testsets) < 2:
                show_details(done)
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
            targets += [target_of_run(run, own, settings, TAKES) for run in find_runs(name, root)]
    return targets


def check_rank(rank: str, own: dict[str, str]) -> None:
    check_value("rank", rank, {"choices": tuple(RANKS)})
    if own["model"] == "teacher":
        raise ConfigError(f"rank={rank} ranks students by their teacher: leave model=teacher out.")


def place_findings(save: str, targets: list[Target]) -> None:
    if len(targets) > 1:
        raise ConfigError(f"save={save}: {len(targets)} networks would share its files; evaluate one at a time.")
    targets[0].folder = Path(save).expanduser()


def chosen_sets(text: str | None, split: str) -> list[NamedSet]:
    """The derived sets of testset=; none without it. Raises ConfigError."""
    if text is not None and split != "test":
        raise ConfigError(f"split={split}: derived sets are made of the test images; leave split= out.")
    return [] if text is None else parse_list(text)


@dataclass(frozen=True)
class Asked:
    """Images to measure on; of a derived set its title, the stem of its files, its manifest and its textures."""

    images: AnySet
    title: str = ""
    stem: str = ""
    manifest: dict[str, Any] | None = None
    textures: np.ndarray | None = None


def asked_of(testsets: list[NamedSet], data: Data, plan: Plan, split: str) -> list[Asked]:
    """The derived sets, made or found; without any, the split as it is."""
    if not testsets:
        return [Asked(chosen_split(data, split))]
    made = derived_tests(testsets, plan, data.splits)
    return [Asked(found.data, title(testset), file_stem(testset), found.manifest, found.texture_labels)
            for testset, found in zip(testsets, made, strict=True)]  # fmt: skip


def measure(target: Target, split: str, testsets: list[NamedSet]) -> Iterator[Measured]:
    """Load the network once, examine it on each set, and write what was found where it has a place."""
    from kdrun.evaluation.examine import Subject
    from kdrun.training.precision import resolve

    config = target.config
    numerics = resolve(config.device, config.precision, "false", config.threads, config.deterministic).numerics
    numerics.apply()
    plan = make_plan(images_only(config), [])
    data = load_data(plan, console.track)
    every = asked_of(testsets, data, plan, split)
    loaders = make_loaders(data, config.batch_size, Streams("student", config.seed), "same", numerics)
    network, deployed, teacher = networks_of(target, data, loaders, numerics)
    subject, taught = Subject(network, deployed), Subject(teacher) if teacher else None
    clean = answer(subject, loaders.test) if testsets else None
    for asked in every:
        change = None
        if clean is not None:
            change = change_of(clean, answer(subject, make_eval_loader(data, asked.images, numerics), asked.textures))
        found = examined(subject, taught, make_eval_loader(data, shuffled(asked.images), numerics), data, target.label)
        about = {"split": split, "testset": asked.manifest, "change": None if change is None else asdict(change),
                 "network": target.options.name,
                 "teacher": target.teacher.options.name if teacher and target.teacher else None,
                 "numerics": numerics.as_dict(), "measured_at": now()}  # fmt: skip
        yield measured(target, split, asked, found, data.splits.class_names, about, change)


def examined(subject: Subject, taught: Subject | None, loader: EvalLoader, data: Data, label: str) -> Findings:
    """With a progress bar on a terminal."""
    from kdrun.evaluation.examine import examine
    from kdrun.training.loop import eval_batch_size

    steps = -(-loader.num_samples // eval_batch_size(data.config.eval_batch_size, subject.network.numerics))

    def track(every: Iterator[int]) -> Iterator[int]:
        return console.track(every, steps, label) if console.out.is_terminal else every

    return examine(subject, taught, loader, data.splits.num_classes, track)


def measured(target: Target, split: str, asked: Asked, found: Findings, classes: list[str], about: dict[str, Any],
             change: Change | None) -> Measured:  # fmt: skip
    """What was found, written where it has a place."""
    from kdrun.reporting.evaluation import write_findings

    images = f"{target.config.dataset.name}/{split} {asked.title}".rstrip()
    files: list[Path] = []
    if target.folder is not None:
        name = asked.stem + target.name.removeprefix(split) if asked.stem else target.name
        files = write_findings(target.folder, name, f"{target.options.name} on {images}", found, classes, about)
    place = f"{images} ({found.samples:,} images, {about['numerics']['precision']})"
    return Measured(target, found, classes, place, files, change, asked.title)


def chosen_split(data: Data, split: str) -> AnySet:
    splits = data.splits
    chosen = {"test": splits.test, "train": splits.train, "val": splits.val}[split]
    if chosen is None:
        raise ConfigError("split=val: this run had no validation split (dataset.val_fraction=0).")
    return chosen


def shuffled(chosen: AnySet) -> AnySet:
    """In an order that is random and always the same: on disk images often lie class by class."""
    return chosen.take(np.random.default_rng(0).permutation(len(chosen)))
