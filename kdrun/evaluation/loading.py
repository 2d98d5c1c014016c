"""Loading of images and trained networks from their configuration, for evaluation."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdrun.config.options import ModelOptions, RunConfig
from kdrun.data.datasets import DataSource
from kdrun.data.overview import unreadable_in_words
from kdrun.display import Track, untracked
from kdrun.errors import ConfigError, print_note
from kdrun.runs.checkpoints import other_classes, recorded_data, recorded_fingerprint
from kdrun.runs.directory import short_path
from kdrun.runs.plan import Plan, images_only, make_plan
from kdrun.streams import Streams
from kdrun.training.build import Data, load_data, make_network, make_tap, own_stats

if TYPE_CHECKING:
    from kdrun.training.network import Network
    from kdrun.training.precision import Numerics


def open_data(
    config: RunConfig, track: Track = untracked, run: Path | None = None, every: bool = False
) -> tuple[Plan, Data]:
    """Return the plan and the images of a run's data set, without looking for a teacher or weights file.

    run: the run whose network is to see them, as in `as_trained`; every: True to ignore all limits on their number.
    """
    if every:
        whole = replace(config.dataset, train_limit=None, test_limit=None, evaluate_on="test")
        config = replace(config, dataset=whole)
    plan = make_plan(images_only(config), [])
    return plan, as_trained(load_data(plan, track), run)


def check_split(source: DataSource, run: Path | None) -> None:
    """Raise ConfigError if kdrun would split the images anew, and so count some of a run's training images as test
    images."""
    if run is not None and source.splits_itself and not has_seen(run, source):
        raise ConfigError(
            f"dataset.root={source.options.root}: not the images that {short_path(run)} was trained on, or they have "
            "changed since, and kdrun would split them anew: training images could become test images. If all are "
            "new: kdrun eval … split=all. Otherwise move the new ones into a folder of their own."
        )


def tell_foreign(label: str, run: Path | None, source: DataSource) -> bool:
    """Return True if a run was trained on other images, and print a note about it."""
    if run is None or has_seen(run, source):
        return False
    root = source.options.root or source.options.name
    print_note(f"{label} was trained on other images than those of {root}.", once=True)
    return True


def has_seen(run: Path, source: DataSource) -> bool:
    """Return True if these are the images of a run's training, or nothing is recorded about them."""
    recorded = recorded_fingerprint(run)
    return recorded is None or recorded == source.fingerprint()


def as_trained(data: Data, run: Path | None) -> Data:
    """Return images as a run's network is to see them: normalised by the figures of its own training images.

    Raises ConfigError if their classes are not the run's: their numbers would mean something else.
    """
    learned = None if run is None else recorded_data(run)
    if run is None or learned is None:
        return data
    names, stats = learned
    if data.splits.class_names != names:
        raise ConfigError(
            f"{short_path(run)} was trained on other classes: {other_classes(names, data.splits.class_names)}."
        )
    return replace(data, stats=stats)


def tell_unreadable(data: Data) -> None:
    """Print a note on stderr about images that are left out."""
    if data.splits.unreadable:
        print_note(unreadable_in_words(data.splits.unreadable), once=True)


def load_network(
    options: ModelOptions, weights: Path | None, data: Data, streams: Streams, numerics: Numerics, batch_size: int
) -> Network:
    """Load `options` with trained `weights` instead of pretrained ones, but with the mean and std of the latter."""
    bare = replace(options, pretrained="false", checkpoint=None if weights is None else str(weights))
    if options.pretrained != "false" and options.mean is None:
        untrained = make_tap(replace(bare, checkpoint=None), data.splits.num_classes, data.splits.image_size, None)
        stats = own_stats(options, untrained.model)
        if stats is not None:
            bare = replace(bare, mean=stats[0], std=stats[1])
    return make_network(bare, data, streams, numerics, batch_size)


def numerics_for(config: RunConfig, precision: str | None = None) -> Numerics:
    """Resolve the numerics for measuring a trained network: as configured, or in `precision`; never compiled, and
    with no more threads than this machine has cores, independent of where it was trained."""
    from kdrun.training.precision import resolve

    asked = precision or config.precision
    threads = min(config.threads, os.cpu_count() or 1) if config.threads else None
    return resolve(config.device, asked, "false", threads, config.deterministic).numerics
