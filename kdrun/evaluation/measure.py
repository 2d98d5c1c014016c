"""Measure a trained network on a split or on derived test sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.data.datasets import DataSource
from kdrun.data.splits import AnySet, together
from kdrun.display import Track
from kdrun.errors import ConfigError
from kdrun.evaluation.bias import Change, change_of
from kdrun.evaluation.loading import check_split, numerics_for, open_data, tell_foreign, tell_unreadable
from kdrun.evaluation.predictions import answer
from kdrun.evaluation.targets import Target, open_networks
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.cache import derived_tests
from kdrun.evaluation.testsets.registry import file_stem, title
from kdrun.runs.directory import now
from kdrun.runs.plan import Plan
from kdrun.training.build import make_eval_loader

if TYPE_CHECKING:
    from kdrun.evaluation.examine import Findings, Subject
    from kdrun.training.build import Data
    from kdrun.training.loop import EvalLoader


@dataclass(frozen=True)
class ImageSet:
    """Images to measure on; for a derived set with its title, the stem of its files, its manifest and its textures."""

    images: AnySet
    title: str = ""
    stem: str = ""
    manifest: dict[str, Any] | None = None
    textures: np.ndarray | None = None


@dataclass
class Measured:
    """Measurements of a network on one set of images. place: data set, split, images and precision as text; about:
    the JSON's entries besides the results; change, testset: for derived images, the comparison with the clean ones,
    and their name; files: where the results are."""

    target: Target
    found: Findings
    classes: list[str]
    place: str
    name: str
    heading: str
    about: dict[str, Any]
    change: Change | None = None
    testset: str = ""
    files: list[Path] = field(default_factory=list)

    def score(self, name: str) -> float | None:
        return (self.found.scores | self.found.cost).get(name)


def image_sets(testsets: list[NamedSet], data: Data, plan: Plan, split: str, track: Track) -> list[ImageSet]:
    """Return the derived sets, created or loaded; if none are given, the split itself."""
    if not testsets:
        return [ImageSet(chosen_split(data, split))]
    made = derived_tests(testsets, plan, data.splits, track)
    return [
        ImageSet(found.data, title(testset), file_stem(testset), found.manifest, found.texture_labels)
        for testset, found in zip(testsets, made, strict=True)
    ]


def measure(target: Target, split: str, testsets: list[NamedSet], track: Track, bar: Track) -> Iterator[Measured]:
    """Load the network once and examine it on each set. track: progress of images; bar: progress of batches."""
    from kdrun.evaluation.examine import Subject

    config = target.config
    numerics = numerics_for(config)
    numerics.apply()
    plan, data = open_data(config, track, target.run, every=split == "all")
    if split != "all":
        check_split(plan.source, target.run)
    name_foreign(target, plan.source)
    tell_unreadable(data)
    every = image_sets(testsets, data, plan, split, track)
    network, deployed, teacher = open_networks(target, data, numerics)
    subject, taught = Subject(network, deployed), Subject(teacher) if teacher else None
    clean = answer(subject, make_eval_loader(data, data.splits.test, numerics)) if testsets else None
    for shown in every:
        change = None
        if clean is not None:
            change = change_of(clean, answer(subject, make_eval_loader(data, shown.images, numerics), shown.textures))
        found = examined(
            subject, taught, make_eval_loader(data, shuffled(shown.images), numerics), data, target.label, bar
        )
        about = {
            "split": split,
            "testset": shown.manifest,
            "change": None if change is None else asdict(change),
            "images": {"root": config.dataset.root, "fingerprint": plan.source.fingerprint()},
            "network": target.options.name,
            "teacher": target.teacher.options.name if teacher and target.teacher else None,
            "numerics": numerics.as_dict(),
            "measured_at": now(),
        }
        yield measured(target, split, shown, found, data.splits.class_names, about, change)


def name_foreign(target: Target, source: DataSource) -> None:
    """Give results on other images than those of a run's training a name of their own, and say so."""
    if tell_foreign(target.label, target.run, source):
        target.name += f"_{source.fingerprint()[:8]}"


def examined(
    subject: Subject, taught: Subject | None, loader: EvalLoader, data: Data, label: str, bar: Track
) -> Findings:
    """Examine a network on a loader's images."""
    from kdrun.evaluation.examine import examine
    from kdrun.training.loop import eval_batch_size

    steps = -(-loader.num_samples // eval_batch_size(data.config.eval_batch_size, subject.network.numerics))

    def track(every: Iterator[int]) -> Iterator[int]:
        return bar(every, steps, label)

    return examine(subject, taught, loader, data.splits.num_classes, track)


def measured(
    target: Target,
    split: str,
    shown: ImageSet,
    found: Findings,
    classes: list[str],
    about: dict[str, Any],
    change: Change | None,
) -> Measured:
    """Combine the results with their names."""
    images = f"{target.config.dataset.name}/{split} {shown.title}".rstrip()
    name = shown.stem + target.name.removeprefix(split) if shown.stem else target.name
    place = f"{images} ({found.samples:,} images, {about['numerics']['precision']})"
    heading = f"{target.options.name} on {images}"
    return Measured(target, found, classes, place, name, heading, about, change, shown.title)


def chosen_split(data: Data, split: str) -> AnySet:
    splits = data.splits
    if split == "all":
        return together([part for part in (splits.train, splits.val, splits.test) if part is not None])
    chosen = {"test": splits.test, "train": splits.train, "val": splits.val}[split]
    if chosen is None:
        raise ConfigError("split=val: this run had no validation split (dataset.val_fraction=0).")
    return chosen


def shuffled(chosen: AnySet) -> AnySet:
    """Return the images in a fixed random order: on disk they are often sorted by class."""
    return chosen.take(np.random.default_rng(0).permutation(len(chosen)))
