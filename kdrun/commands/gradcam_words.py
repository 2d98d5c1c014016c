"""What `kdrun gradcam` writes and prints: the overlap of each run with its teacher, and the picture."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from kdrun import console
from kdrun.commands.eval_words import short_labels
from kdrun.evaluation.cam_images import Images
from kdrun.evaluation.targets import Target
from kdrun.reporting.cam_panel import Column, draw_panel
from kdrun.runs.directory import digest_of, now, short_path
from kdrun.runs.files import write_atomically, write_json, write_text
from kdrun.training.build import Data

if TYPE_CHECKING:
    from kdrun.evaluation.cam import View
    from kdrun.evaluation.cam_overlap import Overlap


@dataclass
class Asked:
    """The command's own settings, checked."""

    images: str
    target: str
    method: str
    layer: str | None
    overlap: int
    save: Path | None


@dataclass
class Watched:
    """A network with its data set's normalisation, and what it was seen to look at. `of`: the teacher's place among
    all, for a student that has one."""

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
    """A student's overlap with its teacher, and the JSON that holds it."""

    student: Target
    result: Overlap
    path: Path


def write_overlaps(every: list[Watched], images: Images, asked: Asked, of: str) -> list[Overlapping]:
    """Compare each student's maps with its teacher's, and write both files into its run."""
    from kdrun.evaluation.cam_overlap import overlap

    found = []
    for watched in every:
        if watched.of is None or watched.target is None:
            continue
        teacher = every[watched.of]
        assert watched.maps is not None and teacher.maps is not None and watched.target.folder is not None
        result = overlap(watched.maps, teacher.maps)
        place = watched.target.folder / f"{file_name(watched.target, asked, of)}.json"
        write_json(place, as_json(watched, teacher, result, images, asked, of))
        write_text(place.with_suffix(".csv"), as_csv(watched, teacher, result, images))
        found.append(Overlapping(watched.target, result, place))
    return found


def file_name(target: Target, asked: Asked, of: str) -> str:
    """gradcam, with what differs from the defaults: gradcam_train, layercam_files_best."""
    best = "_best" if target.name.removesuffix("_teacher").endswith("_best") else ""
    return f"{asked.method.replace('++', '_plus_plus')}{'' if of == 'test' else f'_{of}'}{best}"


def as_json(
    watched: Watched, teacher: Watched, result: Overlap, images: Images, asked: Asked, of: str
) -> dict[str, Any]:
    """Means over the images; `other_images` are those with the teacher's maps of other images."""
    assert watched.predicted is not None and teacher.predicted is not None
    return {
        "schema": 1, "method": asked.method, "target": asked.target, "images": len(images), "of": of,
        "student": watched.head[0], "student_layer": watched.view.layer, "student_grid": list(watched.view.grid),
        "teacher": teacher.head[0], "teacher_layer": teacher.view.layer, "teacher_grid": list(teacher.view.grid),
        **result.mean, "other_images": result.apart, "undefined": result.undefined,
        "agreement": 100 * float((watched.predicted == teacher.predicted).mean()), "measured_at": now(),
    }  # fmt: skip


def as_csv(watched: Watched, teacher: Watched, result: Overlap, images: Images) -> str:
    """A row for each image; empty where a measure is undefined, or the class unknown."""
    classes = watched.data.splits.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("predicted", "explained", "probability")
    writer.writerow(["image", "class", *(f"{role}_{end}" for role in ("student", "teacher") for end in ends),
                     *result.each])  # fmt: skip
    for place, name in enumerate(images.names):
        label = images.labels[place]
        row: list[Any] = [name, classes[label] if label >= 0 else ""]
        for seen in (watched, teacher):
            assert seen.predicted is not None and seen.shown is not None and seen.probability is not None
            row += [classes[seen.predicted[place]], classes[seen.shown[place]], f"{seen.probability[place]:.6f}"]
        row += ["" if np.isnan(values[place]) else f"{values[place]:.6f}" for values in result.each.values()]
        writer.writerow(row)
    return text.getvalue()


def place_of_picture(asked: Asked, targets: list[Target], root: Path, of: str) -> Path:
    """save=, else beside the only run's findings, else in pictures/ under a name that the same runs find again."""
    if asked.save is not None:
        return asked.save
    name = file_name(targets[0], asked, of)
    if len(targets) == 1 and targets[0].folder is not None:
        return targets[0].folder / f"{name}.png"
    return root / "pictures" / f"{name}-{digest_of(sorted(target.label for target in targets))[:8]}.png"


def draw(picture: Path, every: list[Watched], images: Images, shown: int, asked: Asked) -> None:
    """The first `shown` images, class by class."""
    labels = images.labels[:shown]
    order = np.argsort(labels, kind="stable") if (labels >= 0).all() else np.arange(shown)
    columns = []
    for watched in every:
        parts = (watched.maps, watched.predicted, watched.shown, watched.probability)
        columns.append(Column(watched.head, *(part[order] for part in parts if part is not None)))
    data = every[0].data
    explained = {"predicted": "each network's predicted class", "true": "the true class"}.get(
        asked.target, f"the class {asked.target}"
    )
    name = "Grad-CAM" if asked.method == "gradcam" else asked.method
    place = data.config.dataset.name if asked.images.isdecimal() else "own files"
    title = f"{name} for {explained}, {place}"
    pixels = draw_panel(images.pixels[order], labels[order], data.splits.class_names, columns, title)
    write_atomically(picture, lambda file: file.write(pixels))


def show(every: list[Watched], found: list[Overlapping], images: Images, shown: int, picture: Path,
         asked: Asked) -> None:  # fmt: skip
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
