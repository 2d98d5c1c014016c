"""kdrun testset: create a derived test set, and show it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import parse as parse_words
from kdrun.config.compose import load
from kdrun.config.options import LARGEST_SEED, setting
from kdrun.data.splits import ArraySet, Dataset
from kdrun.errors import ConfigError
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.cache import Derived, derived_tests, export, grouped
from kdrun.evaluation.testsets.corruptions import PublishedCorruption
from kdrun.evaluation.testsets.registry import SETS, make, parse, title
from kdrun.evaluation.testsets.sheet import write_sheet
from kdrun.runs.directory import short_path
from kdrun.runs.plan import Plan, make_plan, output_root
from kdrun.training.build import load_data

HELP = """
usage: kdrun testset NAME[:key=value,…] … | all [dataset=… dataset.root=… dataset.image_size=…] [key=value …] [seed=N]
                    [processes=N] [save=FOLDER|FILE.zip] [sheet=FILE.png]

Creates a derived copy of a data set's test images, stores it in caches/testsets/ of the output folder, and writes a
contact sheet (originals above derived images). key=value are the set's own parameters (kdrun list testsets).
all creates every set with its defaults, offline. style method=gatys and silhouette mask=fcn are the published recipes
with pretrained networks, on device=auto. save= writes the images as PNG class folders or as one archive.

kdrun testset scramble dataset=cifar10 dataset.root=FOLDER grid=4 offset=true
kdrun testset style method=gatys painting=FILE weights=vgg19-dcbb9e9d.pth dataset=cifar10 dataset.root=FOLDER
kdrun testset cifar_c files=CIFAR-10-C kind=fog severity=5 dataset=cifar10 dataset.root=FOLDER
"""


@dataclass
class Options:
    seed: int = setting(0, low=0, high=LARGEST_SEED, help="seed of all random draws")
    processes: int | None = setting(None, low=1, high=1024, help="number of processes; default: one per core")
    save: Path | None = setting(
        None, shows="FOLDER|FILE.zip", help="also write the images as PNG class folders, or as one archive"
    )
    sheet: Path | None = setting(None, shows="FILE.png", help="contact sheet; default: next to the set")


def command(words: list[str]) -> int:
    parameters = {field.name for kind in SETS.values() for field in dataclasses.fields(kind)}
    parsed = parse_words("testset", words, Options, passes=True, also=parameters)
    given = {key: value for key, value in parsed.rest.items() if key in parameters}
    rest = [f"{key}={value}" for key, value in parsed.rest.items() if key not in parameters]
    wished = chosen_sets(parsed.names, given, parsed.options)
    plan = make_plan(load([*rest, "method=none"], parsed.config_dir), [])
    splits = load_data(plan, console.track).splits
    for group in grouped(wished):
        build_and_show(group, plan, splits, parsed.options)
    return 0


def chosen_sets(names: list[str], given: dict[str, str], options: Options) -> list[NamedSet]:
    """Return the requested sets, checked. Raises ConfigError."""
    if not names:
        raise ConfigError(f"testset needs a name: {', '.join(SETS)} (kdrun list testsets describes them).")
    if names == ["all"]:
        names = [name for name in SETS if name != "cifar_c"]
    files = [key for key in ("save", "sheet") if getattr(options, key) is not None]
    if len(names) > 1 and (given or files):
        word = [*given, *files][0]
        raise ConfigError(f"{word}=… applies to one set, not to {len(names)}; write NAME:key=value, or give one set.")
    if given:
        if ":" in names[0]:
            raise ConfigError(f"{names[0]} {next(iter(given))}=…: give the parameters in one place.")
        return [make(names[0], given)]
    return [parse(name) for name in names]


def build_and_show(group: list[NamedSet], plan: Plan, splits: Dataset, options: Options) -> None:
    """Create or load sets that share a computation (usually just one), and print them."""
    begun = time.perf_counter()
    all_found = derived_tests(group, plan, splits, console.track, options.seed, options.processes)
    spent = time.perf_counter() - begun
    made = [wished.name for wished, found in zip(group, all_found, strict=True) if not found.cached]
    for wished, found in zip(group, all_found, strict=True):
        state = "loaded" if found.cached and made else f"loaded in {spent:.1f} s"
        if not found.cached:
            speed = len(found.data) / spent
            pace = f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s"
            others = " and ".join(name for name in made if name != wished.name)
            state = f"created in {spent:.1f} s ({pace}{f', with {others}' if others else ''})"
        show(wished, found, state, plan, splits, options)


def show(wished: NamedSet, found: Derived, state: str, plan: Plan, splits: Dataset, options: Options) -> None:
    """Print one set's line, write its contact sheet, and its files if requested."""
    assert isinstance(splits.test, ArraySet)
    sheet = found.folder / "sheet.png"
    if isinstance(wished, PublishedCorruption):  # its folder belongs to the user
        sheet = output_root(plan.config) / "caches" / "testsets" / f"{wished.name}-{wished.kind}-{wished.severity}.png"
    sheet = options.sheet or sheet
    write_sheet(sheet, wished, found, splits.test, splits.class_names)
    console.say(f"[bold]{wished.name}[/]  {len(found.data):,} images of {plan.config.dataset.name} {state}")
    console.note(f"  {title(wished)}: {wished.recipe}")
    console.note(f"  {short_path(found.folder)}, picture {short_path(sheet)}")
    if options.save is not None:
        export(found, splits.class_names, options.save, console.track)
        console.note(f"  wrote {short_path(options.save)}")
