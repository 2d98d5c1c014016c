"""kdrun gradcam: show where a teacher and its students look, as one picture and as overlap measures."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import Parsed, parse
from kdrun.display import plural
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
                     [overlap=N] [save=FILE.png] [model=student|teacher] [weights=last|best] [split=test|val|train|all]
                     [device=… output_root=… dataset.root=…]
       kdrun gradcam FILE student=NAME dataset=NAME [teacher=NAME teacher.checkpoint=FILE] [key=value …]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/; FILE is a checkpoint, as for kdrun
eval. Draws one picture with a row for each image and columns for the image, the teacher and each student. Each cell
shows a heat map of where the network looks, with its class and probability, in green with ✓ if correct and in red with
✗ if wrong. Computed in fp32.

images   number of the run's own test images (10; one of every class first, always the same ones), or files and folders,
         prepared as for evaluation; a file in a folder named like a class counts as an image of that class
target   the class that the map explains: each network's prediction, the true class, or a class by name
method   {", ".join(KINDS)}
         (all but the first need the grad-cam package: pip install 'kdrun[gradcam]')
layer    a module by its path, instead of the automatic choice: the deepest stage map of a CNN (kdrun taps), and for a
         transformer the tokens read by the last block's attention
overlap  number of images (200) on which a student's maps are compared with its teacher's: IoU of the highest fifth of
         the pixels, Pearson and Spearman correlation, averaged over the images; in brackets the same for the teacher's
         maps of other images, which is the chance level (for example from both looking at the centre)

Writes the overlap into the run, to evals/gradcam.json and gradcam.csv (a row for each image). The picture is stored
next to them for one run, and in pictures/ of the output folder for several. Files that cannot be read are listed and
left out; the exit code is then 1.
"""
MOST = 100  # most rows of one picture


def command(words: list[str]) -> int:
    parsed = parse("gradcam", words, Options, passes=True)
    options = parsed.options
    check(options)
    if not parsed.names:
        raise ConfigError("gradcam needs a run directory, a glob, a digest or a weights file.")
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
    """Return the networks of one argument: of runs, or of a weights file, whose results go into pictures/."""
    options = parsed.options
    if not Path(name).is_file():
        return [target_of_run(run, options, parsed.rest, options.split) for run in find_runs(name, root)]
    found = find_target(name, options, parsed.rest, parsed.config_dir)
    return [replace(found, folder=root / "pictures" / slug(Path(name).name))]


def check(options: Options) -> None:
    """Raise ConfigError for faults that involve several settings."""
    if options.method != "gradcam" and find_spec("pytorch_grad_cam") is None:
        raise ConfigError(f"method={options.method} needs the grad-cam package: pip install 'kdrun[gradcam]'.")
    if options.images.isdecimal() and not 1 <= int(options.images) <= MOST:
        raise ConfigError(f"images={options.images}: one picture shows 1 to {MOST} images.")


def place_of_picture(options: Options, targets: list[Target], root: Path, of: str) -> Path:
    """Return save=, else the folder of the only run's results, else a file in pictures/ with a name determined by
    the runs."""
    if options.save is not None:
        return options.save
    name = file_name(targets[0], options, of)
    if len(targets) == 1 and targets[0].folder is not None:
        return targets[0].folder / f"{name}.png"
    return root / "pictures" / f"{name}-{digest_of(sorted(target.label for target in targets))[:8]}.png"


def show(
    every: list[CamSubject], found: list[Overlapping], images: Images, shown: int, picture: Path, options: Options
) -> None:
    """Print the layers, the overlap of each run, and the location of the files."""
    layers = {f"{watched.head[0]} {watched.view.layer} ({'×'.join(map(str, watched.view.grid))})" for watched in every}
    console.note(f"layer and positions: {', '.join(sorted(layers))}")
    if found:
        show_overlaps(found, len(images))
    for watched in every:
        if watched.target is not None and watched.of is None and watched.target.missing:
            console.note(f"{watched.target.label} {watched.target.missing}; its teacher is left out.")
    what = f"{plural(shown, 'image')} × {plural(len(every), 'network')}"
    console.say(f"{what}: [bold]{escape(short_path(picture))}[/]")


def show_overlaps(found: list[Overlapping], count: int) -> None:
    folder, names = short_labels([item.student.label for item in found])
    if len(found) == 1:
        names = [f"{found[0].student.options.name} {names[0]}"]
    rows = []
    for name, item in zip(names, found, strict=True):
        mean, apart = item.result.mean, item.result.apart
        rows.append([name, *(f"{number(mean[key])} ({number(apart[key])})" for key in mean)])
    console.table("", ["student vs teacher", "IoU", "Pearson", "Spearman"], rows)
    empty = max(item.result.undefined for item in found)
    left_out = f"; up to {plural(empty, 'image')} with an empty map left out" if empty else ""
    console.note(
        f"mean of {plural(count, 'image')}; in brackets: chance level, the teacher's maps of other images{left_out}"
    )
    place = f"{folder}/…/evals" if len(found) > 1 else short_path(found[0].path.parent)
    console.note(f"{place}/  ({found[0].path.name}, {found[0].path.stem}.csv)")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
