"""kdrun gradcam: where a teacher and its students look, as one picture and as a number."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun import console
from kdrun.commands.eval import chosen_split
from kdrun.commands.gradcam_words import Asked, Watched, draw, place_of_picture, show, write_overlaps
from kdrun.config.arguments import names_and_settings, take_choices
from kdrun.config.compose import load
from kdrun.data.datasets import DataSource
from kdrun.errors import ConfigError, suggest
from kdrun.evaluation.cam_images import Images, batches, files_named, own_images, read_files
from kdrun.evaluation.targets import Target, networks_of, target_of_run
from kdrun.runs.directory import find_runs
from kdrun.streams import Streams
from kdrun.training.build import Data, images_only, load_data, make_loaders, make_plan, output_root

if TYPE_CHECKING:
    from kdrun.training.network import Network

KINDS = {  # name on the command line -> class of the grad-cam package, None for our own
    "gradcam": None,
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "elementwise": "GradCAMElementWise",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "scorecam": "ScoreCAM",
}
HELP = f"""
usage: kdrun gradcam RUN … [images=N|FOLDER|FILE,…] [target=predicted|true|CLASS] [method=gradcam] [layer=PATH]
                     [overlap=N] [save=FILE.png] [model=student|teacher] [weights=last|best] [split=test|val|train]
                     [device=… output_root=… dataset.root=…]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/. One picture: a row for each image,
in columns the image, the teacher and each student, with the heat map of where the network looks, and its class and
probability in green where it is right and in red where it is wrong. Computed in fp32.

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
beside them, that of several in pictures/ of the output folder.
"""
OWN = {"weights": ("last", "best"), "split": ("test", "val", "train"), "model": ("student", "teacher")}
TAKES = ("images", "target", "method", "layer", "overlap", "save")
MOST = 100  # rows of one picture
BATCH = 32


def command(words: list[str]) -> int:
    names, settings, _ = names_and_settings(words)
    own = take_choices(settings, OWN)
    asked = read_asked(settings)
    if not names:
        raise ConfigError("gradcam of what? Give a run directory, a glob or a digest (kdrun list runs).")
    files = None if asked.images.isdecimal() else files_named(asked.images)
    rest = [f"{key}={value}" for key, value in settings.items()]
    root = output_root(load([word for word in rest if word.startswith("output_root=")]))
    targets = [target_of_run(run, own, settings, TAKES) for name in names for run in find_runs(name, root)]
    same_data(targets)
    watched, numerics = load_networks(targets, asked)
    first = watched[0].data
    if files is None:
        shown = int(asked.images)
        chosen = chosen_split(first, own["split"])
        images = own_images(chosen, max(shown, asked.overlap), first.config.dataset)
        shown = min(shown, len(images))
    else:
        images = read_files(files, first)
        shown = len(images)
    wanted = wanted_classes(asked.target, images, first.splits.class_names)
    look(watched, images, wanted, str(numerics.torch_device))
    of = own["split"] if files is None else "files"
    findings = write_overlaps(watched, images, asked, of)
    picture = place_of_picture(asked, targets, root, of)
    draw(picture, watched, images, shown, asked)
    show(watched, findings, images, shown, picture, asked)
    return 0


def read_asked(settings: dict[str, str]) -> Asked:
    """The settings that are gradcam's alone, taken out of `settings`. Raises ConfigError."""
    method = settings.pop("method", "gradcam").lower()
    if method not in KINDS:
        raise ConfigError(f"method={method}: no such kind.{suggest(method, KINDS)} There are: {', '.join(KINDS)}.")
    if method != "gradcam" and find_spec("pytorch_grad_cam") is None:
        raise ConfigError(f"method={method} needs the grad-cam package: pip install 'kdrun[gradcam]'.")
    images, overlap = settings.pop("images", "10"), settings.pop("overlap", "200")
    if images.isdecimal() and not 1 <= int(images) <= MOST:
        raise ConfigError(f"images={images}: one picture shows 1 to {MOST} of them.")
    if not images:
        raise ConfigError("images= is empty: give a number, a folder or files.")
    if not overlap.isdecimal():
        raise ConfigError(f"overlap={overlap}: expected a number of images.")
    save = settings.pop("save", None)
    if save is not None and not save.lower().endswith(".png"):
        raise ConfigError(f"save={save}: the picture is a PNG; give FILE.png.")
    return Asked(images, settings.pop("target", "predicted"), method, settings.pop("layer", None), int(overlap),
                 Path(save).expanduser() if save else None)  # fmt: skip


def same_data(targets: list[Target]) -> None:
    """Raise ConfigError unless all runs have the same images and classes, which one picture needs."""

    def data_of(target: Target) -> dict[str, Any]:
        data = target.config.dataset
        return {"dataset": data.name, "dataset.root": DataSource(data).fingerprint(),
                "dataset.image_size": data.image_size, "dataset.resize": data.resize,
                "dataset.train_fraction": data.train_fraction, "dataset.split_seed": data.split_seed,
                "dataset.test_limit": data.test_limit}  # fmt: skip

    first = data_of(targets[0])
    for target in targets[1:]:
        other = data_of(target)
        for key, value in first.items():
            if other[key] != value:
                ours, theirs = (getattr(item.config.dataset, key.partition(".")[2] or "name") for item in
                                (targets[0], target))  # fmt: skip
                raise ConfigError(
                    f"{key}: {targets[0].label} has {ours} and {target.label} has {theirs}; the runs of one picture "
                    "share data set and classes."
                )


def load_networks(targets: list[Target], asked: Asked) -> tuple[list[Watched], Any]:
    """Teachers first, each once, then the students; and the numerics: maps are made in fp32."""
    from kdrun.evaluation.cam import View
    from kdrun.training.precision import resolve

    config = targets[0].config
    numerics = resolve(config.device, "fp32", "false", config.threads, config.deterministic).numerics
    numerics.apply()
    teachers: dict[str, Watched] = {}
    students: list[tuple[Watched, str | None]] = []

    def watch(network: Network, head: tuple[str, str], data: Data, deployed: Any = None) -> Watched:
        return Watched(head, View(network.tap, deployed, layer_in(network, asked), KINDS[asked.method]), data)

    for target in targets:
        data = load_data(make_plan(images_only(target.config), []), console.track)
        loaders: Any = None
        if target.deploys:
            loaders = make_loaders(data, target.config.batch_size, Streams("student", 0), "same", numerics)
        network, deployed, teacher = networks_of(target, data, loaders, numerics)
        key = None
        if teacher is not None and target.teacher is not None:
            options = target.teacher.options
            key = f"{options.name} {target.teacher.weights or options.seed}"
            if key not in teachers:
                teachers[key] = watch(teacher, (options.name, "teacher"), data)
        made = watch(network, (target.options.name, subtitle(target)), data, deployed)
        made.target = target
        students.append((made, key))
    order = list(teachers)
    for made, key in students:
        made.of = None if key is None else order.index(key)
    every = [*teachers.values(), *(made for made, _ in students)]
    check_layer(every, asked)
    return every, numerics


def layer_in(network: Network, asked: Asked) -> str | None:
    """The named layer, where this network has it."""
    return asked.layer if asked.layer in dict(network.tap.model.named_modules()) else None


def check_layer(every: list[Watched], asked: Asked) -> None:
    """Raise ConfigError where no network has the named layer."""
    from kdrun.evaluation.cam import module_of

    if asked.layer is not None and not any(watched.view.path == asked.layer for watched in every):
        module_of(every[-1].view.tap.model, asked.layer)


def subtitle(target: Target) -> str:
    """What tells a run's network from the others': its method and seed, or that it is a teacher."""
    if target.own is not None or (target.weights is not None and target.weights.name.startswith("teacher")):
        return "teacher"
    assert target.folder is not None
    return f"{target.folder.parent.parent.name}, seed {target.config.seed}"


def wanted_classes(word: str, images: Images, classes: list[str]) -> np.ndarray | None:
    """The class [N] that every map explains, or None for what each network predicts. Raises ConfigError."""
    if word == "predicted":
        return None
    if word == "true":
        unknown = [name for name, label in zip(images.names, images.labels, strict=True) if label < 0]
        if unknown:
            raise ConfigError(f"target=true: the class of {unknown[0]} is unknown; put it into a folder named like it.")
        return images.labels
    if word in classes:
        return np.full(len(images), classes.index(word))
    if word.isdecimal() and int(word) < len(classes):
        return np.full(len(images), int(word))
    raise ConfigError(f"target={word}: choose predicted, true or a class.{suggest(word, classes)} There are "
                      f"{len(classes)}: {', '.join(classes[:12])}{' …' if len(classes) > 12 else ''}.")  # fmt: skip


def look(every: list[Watched], images: Images, wanted: np.ndarray | None, device: str) -> None:
    """Fill in maps, predictions and probabilities of every network."""
    import torch

    from kdrun.data.resident import Normalise

    windows = [(watched, window) for watched in every for window in batches(len(images), BATCH)]
    parts: dict[int, list[list[np.ndarray]]] = {id(watched): [] for watched in every}
    for number in console.track(iter(range(len(windows))), len(windows), "looking"):
        watched, window = windows[number]
        normalise = Normalise(watched.data.stats, torch.device(device))
        image = normalise(torch.from_numpy(images.pixels[window]).to(device))
        target = None if wanted is None else torch.from_numpy(wanted[window]).to(device)
        seen = watched.view.see(image, target)
        probability = seen.logits.softmax(dim=1).gather(1, seen.target[:, None])[:, 0]
        every_part = (seen.maps, seen.logits.argmax(dim=1), seen.target, probability)
        parts[id(watched)].append([part.cpu().numpy() for part in every_part])
    for watched in every:
        whole = [np.concatenate(part) for part in zip(*parts[id(watched)], strict=True)]
        watched.maps, watched.predicted, watched.shown, watched.probability = whole
