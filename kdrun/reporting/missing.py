"""Measurement of what a report lacks: finished runs on the test set, heat maps, and for a single run an exported
file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kdrun.display import Track, untracked
from kdrun.errors import KdrunError
from kdrun.reporting.known import KnownPlaces
from kdrun.reporting.measured import Measured


@dataclass(frozen=True)
class Measuring:
    """Settings of the measurement. settings: where to measure, as for kdrun eval; tell: prints a line."""

    settings: dict[str, str]
    trust: bool
    track: Track
    tell: Callable[[str], None]


def measure_missing(known: KnownPlaces, how: Measuring) -> None:
    """Measure what is missing, and write it into the runs. Whatever cannot be measured is reported and left out."""
    steps = list(missing_steps(known, how))
    for number in how.track(iter(range(len(steps))), len(steps), "measuring"):
        run, what, step = steps[number]
        try:
            step()
        except KdrunError as error:
            how.tell(f"left out: {what} of {run}: {error}")


def missing_steps(known: KnownPlaces, how: Measuring) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield the missing measurements: every run on the test set; the heat maps of one run of each student with a
    teacher; for a single run its export, if ONNX is installed."""
    runs = {run.run: run for place in known.values() for run in place.measured}
    for run in runs.values():
        if run.test is None:
            yield run.run, "the evaluation", lambda run=run: evaluate(run, how)
    looked: dict[str, Measured] = {}
    for place in known.values():
        if place.unlooked:
            looked.setdefault(place.measured[0].run, place.measured[0])
    for run in looked.values():
        yield run.run, "Grad-CAM", lambda run=run: look(run, how)
    if len(runs) == 1 and find_spec("onnxruntime"):
        (single,) = runs.values()
        if not single.exports:
            yield single.run, "the export", lambda: export_run(single, how)


def evaluate(run: Measured, how: Measuring) -> None:
    from kdrun.evaluation.measure import measure
    from kdrun.evaluation.targets import Which, target_of_run
    from kdrun.reporting.evaluation import write_findings

    target = target_of_run(run.folder, Which(trust=how.trust), how.settings)
    for done in measure(target, "test", [], untracked, untracked):
        write_findings(run.folder / "evals", done.name, done.heading, done.found, done.classes, done.about)


def look(run: Measured, how: Measuring) -> None:
    from kdrun.evaluation.cam_images import own_images
    from kdrun.evaluation.cam_runs import Options, file_name, load_networks, write_overlaps
    from kdrun.evaluation.cam_runs import look as see
    from kdrun.evaluation.measure import chosen_split
    from kdrun.evaluation.targets import target_of_run
    from kdrun.reporting.cam_panel import write_panel

    options = Options(trust=how.trust)
    target = target_of_run(run.folder, options, how.settings)
    networks, numerics = load_networks([target], options, untracked)
    data, shown = networks[0].data, int(options.images)
    images = own_images(chosen_split(data, "test"), max(shown, options.overlap), data.config.dataset)
    see(networks, images, None, str(numerics.torch_device), untracked)
    write_overlaps(networks, images, options, "test")
    place = run.folder / "evals" / f"{file_name(target, options, 'test')}.png"
    write_panel(place, networks, images, min(shown, len(images)), options)


def export_run(run: Measured, how: Measuring) -> None:
    from kdrun.evaluation.export.files import Options, destination, export
    from kdrun.evaluation.targets import target_of_run

    options = Options(quantize="all", trust=how.trust)
    target = target_of_run(run.folder, options, how.settings)
    found = export(target, destination(target, options), options, untracked)
    for form in found.forms:
        if form.problem:
            how.tell(f"{Path(run.run).name}, {form.name}: {form.problem}; no file written.")
