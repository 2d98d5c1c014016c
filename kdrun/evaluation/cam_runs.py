"""Class activation maps of the networks of runs, and the overlap of teachers' and students' maps."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.arguments import figures_setting
from kdrun.config.options import setting
from kdrun.data.datasets import DataSource
from kdrun.display import Track
from kdrun.errors import ConfigError, suggest
from kdrun.evaluation.cam_images import Images, batches
from kdrun.evaluation.loading import check_split, numerics_for, open_data, tell_unreadable
from kdrun.evaluation.targets import Target, WhichSplit, open_networks
from kdrun.files import spreadsheet_safe, write_json, write_text
from kdrun.runs.directory import now
from kdrun.training.build import Data

if TYPE_CHECKING:
    from kdrun.evaluation.cam import View
    from kdrun.evaluation.cam_overlap import Overlap
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
BATCH = 32


@dataclass
class Options(WhichSplit):
    """Options of kdrun gradcam."""

    images: str = setting(
        "10",
        shows="N|FOLDER|FILE,…",
        help="number of the run's images, one of every class first; or files and folders",
    )
    target: str = setting("predicted", shows="predicted|true|CLASS", help="the class that a map explains")
    method: str = setting("gradcam", choices=tuple(KINDS), help="the kind of map; all but the first need grad-cam")
    layer: str | None = setting(None, shows="PATH", help="a module by its path, instead of the automatic choice")
    overlap: int = setting(200, low=0, help="images on which a student's maps are compared with its teacher's")
    save: Path | None = setting(None, suffixes=(".png",), help="picture file; default: in evals/ or pictures/")
    figures: list[str] = figures_setting()


@dataclass
class CamSubject:
    """Network with its data set's normalisation and its maps. of: position of its teacher in the list, for a student
    that has one."""

    head: tuple[str, str]
    view: View
    data: Data
    target: Target | None = None
    of: int | None = None
    maps: np.ndarray | None = None
    predicted: np.ndarray | None = None
    shown: np.ndarray | None = None
    probability: np.ndarray | None = None


@dataclass(frozen=True)
class Overlapping:
    """Overlap of a student with its teacher, and the JSON file that holds it."""

    student: Target
    result: Overlap
    path: Path


def same_data(targets: list[Target]) -> None:
    """Raise ConfigError unless all runs have the same images and classes, as one picture requires."""

    def data_of(target: Target) -> dict[str, Any]:
        data = target.config.dataset
        return {
            "dataset": data.name,
            "dataset.root": DataSource(data).fingerprint(),
            "dataset.image_size": data.image_size,
            "dataset.resize": data.resize,
            "dataset.train_fraction": data.train_fraction,
            "dataset.split_seed": data.split_seed,
            "dataset.test_limit": data.test_limit,
        }

    first = data_of(targets[0])
    for target in targets[1:]:
        other = data_of(target)
        for key, value in first.items():
            if other[key] != value:
                ours, theirs = (
                    getattr(item.config.dataset, key.partition(".")[2] or "name") for item in (targets[0], target)
                )
                raise ConfigError(
                    f"{key}: {targets[0].label} has {ours} and {target.label} has {theirs}; all runs of a "
                    "picture need the same data set and classes."
                )


def load_networks(targets: list[Target], options: Options, track: Track) -> tuple[list[CamSubject], Any]:
    """Load the teachers first, each once, then the students; also return the numerics: maps are computed in fp32."""
    from kdrun.evaluation.cam import View

    config = targets[0].config
    numerics = numerics_for(config, "fp32")
    numerics.apply()
    teachers: dict[str, CamSubject] = {}
    students: list[tuple[CamSubject, str | None]] = []

    def watch(network: Network, head: tuple[str, str], data: Data, deployed: Any = None) -> CamSubject:
        return CamSubject(head, View(network.tap, deployed, layer_in(network, options), KINDS[options.method]), data)

    for target in targets:
        every = options.split == "all"
        plan, data = open_data(target.config, track, target.run, every)
        if options.images.isdecimal() and not every:
            check_split(plan.source, target.run)
        if target is targets[0]:  # the data are the same for all
            tell_unreadable(data)
        network, deployed, teacher = open_networks(target, data, numerics)
        key = None
        if teacher is not None and target.teacher is not None:
            teachers_own = target.teacher.options
            key = f"{teachers_own.name} {target.teacher.weights or teachers_own.seed}"
            if key not in teachers:
                teachers[key] = watch(teacher, (teachers_own.name, "teacher"), data)
        made = watch(network, (target.options.name, subtitle(target)), data, deployed)
        made.target = target
        students.append((made, key))
    order = list(teachers)
    for made, key in students:
        made.of = None if key is None else order.index(key)
    every = [*teachers.values(), *(made for made, _ in students)]
    check_layer(every, options)
    return every, numerics


def layer_in(network: Network, options: Options) -> str | None:
    """Return the named layer, if this network has it."""
    return options.layer if options.layer in dict(network.tap.model.named_modules()) else None


def check_layer(every: list[CamSubject], options: Options) -> None:
    """Raise ConfigError if no network has the named layer."""
    from kdrun.evaluation.cam import module_of

    if options.layer is not None and not any(watched.view.path == options.layer for watched in every):
        module_of(every[-1].view.tap.model, options.layer)


def subtitle(target: Target) -> str:
    """Return a label that distinguishes a run's network from the others: its method and seed, or that it is a
    teacher."""
    if target.own is not None or (target.weights is not None and target.weights.name.startswith("teacher")):
        return "teacher"
    if target.run is None:
        return Path(target.label).name
    assert target.folder is not None
    return f"{target.folder.parent.parent.name}, seed {target.config.seed}"


def wanted_classes(word: str, images: Images, classes: list[str]) -> np.ndarray | None:
    """Return the class [N] that every map explains, or None for each network's prediction. Raises ConfigError."""
    if word == "predicted":
        return None
    if word == "true":
        unknown = [name for name, label in zip(images.names, images.labels, strict=True) if label < 0]
        if unknown:
            raise ConfigError(f"target=true: the class of {unknown[0]} is unknown: name its folder like it.")
        return images.labels
    if word in classes:
        return np.full(len(images), classes.index(word))
    if word.isdecimal() and int(word) < len(classes):
        return np.full(len(images), int(word))
    raise ConfigError(
        f"target={word}: choose predicted, true or a class.{suggest(word, classes)} The "
        f"{len(classes)} classes: {', '.join(classes[:12])}{' …' if len(classes) > 12 else ''}."
    )


def look(every: list[CamSubject], images: Images, wanted: np.ndarray | None, device: str, track: Track) -> None:
    """Compute maps, predictions and probabilities of every network."""
    import torch

    from kdrun.data.resident import Normalise

    windows = [(watched, window) for watched in every for window in batches(len(images), BATCH)]
    parts: dict[int, list[list[np.ndarray]]] = {id(watched): [] for watched in every}
    for number in track(iter(range(len(windows))), len(windows), "looking"):
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


def write_overlaps(every: list[CamSubject], images: Images, options: Options, of: str) -> list[Overlapping]:
    """Compare each student's maps with its teacher's, and write both files into its run."""
    from kdrun.evaluation.cam_overlap import overlap

    found = []
    for watched in every:
        if watched.of is None or watched.target is None:
            continue
        teacher = every[watched.of]
        assert watched.maps is not None and teacher.maps is not None and watched.target.folder is not None
        result = overlap(watched.maps, teacher.maps)
        place = watched.target.folder / f"{file_name(watched.target, options, of)}.json"
        write_json(place, as_json(watched, teacher, result, images, options, of))
        write_text(place.with_suffix(".csv"), as_csv(watched, teacher, result, images))
        found.append(Overlapping(watched.target, result, place))
    return found


def file_name(target: Target, options: Options, of: str) -> str:
    """Return gradcam, plus the options that differ from the defaults: gradcam_train, layercam_files_best."""
    best = "_best" if target.name.removesuffix("_teacher").endswith("_best") else ""
    return f"{options.method.replace('++', '_plus_plus')}{'' if of == 'test' else f'_{of}'}{best}"


def as_json(
    watched: CamSubject, teacher: CamSubject, result: Overlap, images: Images, options: Options, of: str
) -> dict[str, Any]:
    """Return means over the images; `other_images`: with the teacher's maps of other images (chance level)."""
    assert watched.predicted is not None and teacher.predicted is not None
    return {
        "schema": 1,
        "method": options.method,
        "target": options.target,
        "images": len(images),
        "of": of,
        "student": watched.head[0],
        "student_layer": watched.view.layer,
        "student_grid": list(watched.view.grid),
        "teacher": teacher.head[0],
        "teacher_layer": teacher.view.layer,
        "teacher_grid": list(teacher.view.grid),
        **result.mean,
        "other_images": result.apart,
        "undefined": result.undefined,
        "agreement": 100 * float((watched.predicted == teacher.predicted).mean()),
        "measured_at": now(),
    }


def as_csv(watched: CamSubject, teacher: CamSubject, result: Overlap, images: Images) -> str:
    """Return a row for each image; empty if a measure is undefined, or the class unknown."""
    classes = watched.data.splits.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("predicted", "explained", "probability")
    writer.writerow(
        ["image", "class", *(f"{role}_{end}" for role in ("student", "teacher") for end in ends), *result.each]
    )
    for place, name in enumerate(images.names):
        label = images.labels[place]
        row: list[Any] = [name, classes[label] if label >= 0 else ""]
        for seen in (watched, teacher):
            assert seen.predicted is not None and seen.shown is not None and seen.probability is not None
            row += [classes[seen.predicted[place]], classes[seen.shown[place]], f"{seen.probability[place]:.6f}"]
        row += ["" if np.isnan(values[place]) else f"{values[place]:.6f}" for values in result.each.values()]
        writer.writerow(spreadsheet_safe(row))
    return text.getvalue()
