"""kdrun gradcam: where a teacher and its students look, as one picture and as a number."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import Parsed, parse
from kdrun.errors import ConfigError
from kdrun.evaluation.cam_images import Images, files_named, own_images, read_files
from kdrun.evaluation.cam_runs import (
    KINDS,
    CamSubject,
    Options,
    Overlapping,
    file_name,
    load_networks,
    look,
    same_data,
    wanted_classes,
    write_overlaps,
)
from kdrun.evaluation.deployed import find_target
from kdrun.evaluation.measure import chosen_split
from kdrun.evaluation.targets import Target, target_of_run
from kdrun.reporting.cam_panel import write_panel
from kdrun.reporting.labels import short_labels
from kdrun.runs.directory import find_runs, outputs_folder, short_path
from kdrun.runs.identity import digest_of, slug

HELP = f"""
usage: kdrun gradcam RUN … [images=N|FOLDER|FILE,…] [target=predicted|true|CLASS] [method=gradcam] [layer=PATH]
                     [overlap=N] [save=FILE.png] [model=student|teacher] [weights=last|best] [split=test|val|train]
                     [device=… output_root=… dataset.root=…]
       kdrun gradcam FILE student=NAME dataset=NAME [teacher=NAME teacher.checkpoint=FILE] [key=value …]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/; FILE is a checkpoint, as kdrun
eval takes it. One picture: a row for each image,
in columns the image, the teacher and each student, with the heat map of where the network looks, and its class and
probability in green with ✓ where it is right and in red with ✗ where it is wrong. Computed in fp32.

images   how many of the run's own test images (10; one of every class first, always the same), or files and folders,
         prepared as evaluation does; a file in a folder named like a class counts as an image of it
target   the class that the map explains: the one that each network predicts, the true one, or a class by name
method   {", ".join(KINDS)}
         (all but the first need the grad-cam package: pip install 'kdrun[gradcam]')
layer    a module by its path, instead of the automatic choice: the deepest stage map of a CNN (kdrun taps), and of a
         transformer the tokens that the last block's attention reads
overlap  over how many images (200) a student's maps are compared with its teacher's: IoU of the highest fifth of the
         pixels, Pearson and Spearman correlation, means over the images, and beside them the same with the teacher's
         maps of other images, which is what looking at the middle gives by itself

Writes the overlap into the run, evals/gradcam.json and gradcam.csv (a row for each image); the picture of one run lies
beside them, that of several in pictures/ of the output folder. Files that cannot be read are named and left out, and
the exit code is then 1.
"""
MOST = 100  # rows of one picture


def command(words: list[str]) -> int:
    parsed = parse("gradcam", words, Options, passes=True)
    options = parsed.options
    check(options)
    if not parsed.names:
        raise ConfigError("gradcam of what? Give a run directory, a glob, a digest or a file of weights.")
    files = None if options.images.isdecimal() else files_named(options.images)
    root = outputs_folder(parsed.rest.get("output_root"))
    targets = [target for name in parsed.names for target in find_targets(name, parsed, root)]
    same_data(targets)
    watched, numerics = load_networks(targets, options, console.track)
    first, unreadable = watched[0].data, []
    if files is None:
        shown = int(options.images)
        chosen = chosen_split(first, options.split)
        images = own_images(chosen, max(shown, options.overlap), first.config.dataset)
        shown = min(shown, len(images))
    else:
        images, unreadable = read_files(files, first)
        shown = len(images)
    wanted = wanted_classes(options.target, images, first.splits.class_names)
    look(watched, images, wanted, str(numerics.torch_device), console.track)
    of = options.split if files is None else "files"
    findings = write_overlaps(watched, images, options, of)
    picture = place_of_picture(options, targets, root, of)
    write_panel(picture, watched, images, shown, options)
    show(watched, findings, images, shown, picture, options)
    console.unreadable(unreadable, len(images))
    return 1 if unreadable else 0


def find_targets(name: str, parsed: Parsed[Options], root: Path) -> list[Target]:
    """The networks that one word means: of runs, or of a file of weights, whose findings go into pictures/."""
    options = parsed.options
    if not Path(name).is_file():
        return [target_of_run(run, options, parsed.rest, options.split) for run in find_runs(name, root)]
    found = find_target(name, options, parsed.rest, parsed.config_dir)
    return [replace(found, folder=root / "pictures" / slug(Path(name).name))]


def check(options: Options) -> None:
    """Raise ConfigError for what no rule of a single setting tells."""
    if options.method != "gradcam" and find_spec("pytorch_grad_cam") is None:
        raise ConfigError(f"method={options.method} needs the grad-cam package: pip install 'kdrun[gradcam]'.")
    if options.images.isdecimal() and not 1 <= int(options.images) <= MOST:
        raise ConfigError(f"images={options.images}: one picture shows 1 to {MOST} of them.")


def place_of_picture(options: Options, targets: list[Target], root: Path, of: str) -> Path:
    """save=, else beside the only run's findings, else in pictures/ under a name that the same runs find again."""
    if options.save is not None:
        return options.save
    name = file_name(targets[0], options, of)
    if len(targets) == 1 and targets[0].folder is not None:
        return targets[0].folder / f"{name}.png"
    return root / "pictures" / f"{name}-{digest_of(sorted(target.label for target in targets))[:8]}.png"


def show(
    every: list[CamSubject], found: list[Overlapping], images: Images, shown: int, picture: Path, options: Options
) -> None:
    """Layers, the overlap of each run, and where everything is."""
    layers = {f"{watched.head[0]} {watched.view.layer} ({'×'.join(map(str, watched.view.grid))})" for watched in every}
    console.note(f"layer and positions: {', '.join(sorted(layers))}")
    if found:
        show_overlaps(found, len(images))
    for watched in every:
        if watched.target is not None and watched.of is None and watched.target.missing:
            console.note(f"{watched.target.label} {watched.target.missing}; its teacher is left out.")
    what = f"{shown} image{'s' * (shown > 1)} × {len(every)} network{'s' * (len(every) > 1)}"
    console.say(f"{what}: [bold]{escape(short_path(picture))}[/]")


def show_overlaps(found: list[Overlapping], count: int) -> None:
    folder, names = short_labels([item.student.label for item in found])
    if len(found) == 1:
        names = [f"{found[0].student.options.name} {names[0]}"]
    rows = []
    for name, item in zip(names, found, strict=True):
        mean, apart = item.result.mean, item.result.apart
        rows.append([name, *(f"{number(mean[key])} ({number(apart[key])})" for key in mean)])
    console.table("", ["student beside its teacher", "IoU", "Pearson", "Spearman"], rows)
    empty = max(item.result.undefined for item in found)
    left_out = f"; up to {empty} images left out, whose map is empty" if empty else ""
    console.note(f"means over {count:,} images, in brackets with the teacher's maps of other images{left_out}")
    place = f"{folder}/…/evals" if len(found) > 1 else short_path(found[0].path.parent)
    console.note(f"{place}/  ({found[0].path.name}, {found[0].path.stem}.csv)")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
