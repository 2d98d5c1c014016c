"""Measurements of runs as sentences with figures and their files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from kdrun.display import plural
from kdrun.reporting.labels import interval_words, points
from kdrun.reporting.measured import (
    Measured,
    Sheet,
    mean_of,
    over_runs,
    overconfidence,
    related,
    worst_confusion,
)

FEW = 3  # most derived sets in a sentence; of more, only the best and the worst


class Statement:
    """Sentence, with the files or commands that its figures come from."""

    def __init__(self, words: str, *sources: str):
        self.words, self.sources = words, [source for source in sources if source]


def source_words(paths: Sequence[str]) -> str:
    """Return a path; for the same file of several runs a pattern, and their number."""
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        return "".join(paths)
    parts = [PurePosixPath(path).parts for path in paths]
    if len({len(one) for one in parts}) > 1:
        return f"{paths[0]} and {len(paths) - 1} more"
    shared = ["*" if len(set(names)) > 1 else names[0] for names in zip(*parts, strict=True)]
    return f"{'/'.join(shared).replace('//', '/')} ({len(paths)} files)"


def measurements(runs: Sequence[Measured]) -> Iterator[Statement]:
    """Yield sentences on all measurements of a row's runs, as means over those that have them."""
    tests = [run.test for run in runs]
    yield from closeness(tests)
    yield from calibration(tests)
    yield from classes(runs)
    yield from heat_maps(runs)
    yield from derived_sets(runs)
    yield from diagnoses(runs)


def of_runs(number: int, every: int) -> str:
    """Return the number of runs behind a mean, unless there is only one run."""
    if every == 1:
        return ""
    return f", {'one' if number == 1 else 'mean'} of {plural(every if number == 1 else number, 'run')}"


def closeness(tests: Sequence[Sheet | None]) -> Iterator[Statement]:
    agreement, divergence = mean_of(tests, "agreement"), mean_of(tests, "kl_teacher")
    if agreement is None or divergence is None:
        return
    words = (
        f"It predicts the same class as its teacher on {agreement.value:.2f} % of the test images, and "
        f"KL(teacher ‖ student) is {divergence.value:.3g} nats{of_runs(agreement.count, len(tests))}"
    )
    alike = over_runs(tests, related)
    words += "" if alike is None else f"; the linear CKA of their features is {alike.value:.2f} (1: identical)"
    yield Statement(f"{words}.", source_words(agreement.sources))


def calibration(tests: Sequence[Sheet | None]) -> Iterator[Statement]:
    error = mean_of(tests, "ece")
    if error is None:
        return
    words = (
        f"Its confidence deviates from its accuracy by {error.value:.2f} points (ECE, 15 bins"
        f"{of_runs(error.count, len(tests))})"
    )
    gap = over_runs(tests, overconfidence)
    if gap is not None and abs(gap.value) >= 0.005:
        words += f": on average it is {abs(gap.value):.2f} points too {'high' if gap.value > 0 else 'low'}"
    yield Statement(f"{words}.", source_words(error.sources))


def classes(runs: Sequence[Measured]) -> Iterator[Statement]:
    """Yield the worst class of the first run, and its most frequent confusion."""
    run = next((run for run in runs if run.test), None)
    if run is None or run.test is None:
        return
    found = [
        (figure, row.text("class")) for row in run.test.rows("per_class") if (figure := row.figure("f1")) is not None
    ]
    if len(found) < 2:
        return
    worst, name = min(found, key=lambda one: one[0])
    words, sources = f"Its worst class is {name}, with an F1 of {worst:.2f} %", [run.test.source]
    confused = worst_confusion(run)
    if confused is not None:
        words += (
            f"; most often it mistakes {confused.taken} for {confused.instead} ({confused.count:,} of "
            f"{plural(confused.images, 'image')})"
        )
        sources.append(confused.source)
    yield Statement(f"{words}.", *sources)


def heat_maps(runs: Sequence[Measured]) -> Iterator[Statement]:
    maps = [run.gradcam for run in runs]
    overlap, other = mean_of(maps, "iou"), mean_of(maps, "other_images", "iou")
    if overlap is None:
        return
    beside = "" if other is None else f" (chance level, with the teacher's maps of other images: {other.value:.2f})"
    words = f"Its Grad-CAM maps overlap with its teacher's with an IoU of {overlap.value:.2f}"
    words += of_runs(overlap.count, len(runs))
    yield Statement(f"{words}{beside}.", source_words(overlap.sources))


def derived_sets(runs: Sequence[Measured]) -> Iterator[Statement]:
    """Yield the share of clean accuracy kept on derived sets."""
    names = dict.fromkeys(name for run in runs for name in run.derived)
    means = {name: mean_of([run.derived.get(name) for run in runs], "change", "ratio") for name in names}
    kept = sorted(((mean, name) for name, mean in means.items() if mean), key=lambda one: -one[0].value)
    if not kept:
        return
    shown = kept if len(kept) <= FEW else [kept[0], kept[-1]]
    parts = [f"{100 * mean.value:.1f} % on {name}" for mean, name in shown]
    among = "" if len(kept) <= FEW else f", the best and worst of {len(kept)} derived test sets"
    words = f"Of its accuracy on clean images it keeps {enumerated(parts)}{among}."
    yield Statement(words, source_words([source for mean, _ in shown for source in mean.sources]))


def diagnoses(runs: Sequence[Measured]) -> Iterator[Statement]:
    sheet = next((run.diagnosis for run in runs if run.diagnosis), None)
    if sheet is None:
        return
    findings = [f"{one.text('name')} ({one.text('figure').rstrip('.')})" for one in sheet.rows("findings")]
    if findings:
        yield Statement(f"Obstacles to distillation: {'; '.join(findings)}.", sheet.source)
    else:
        yield Statement("None of the usual obstacles to distillation was found.", sheet.source)


def exported(sheet: Sheet, name: str) -> Iterator[Statement]:
    """Yield whether an exported file computes the same as the network, and what INT8 costs and gains compared to
    float32. name: the network's name in the sentence."""
    forms = {form.text("form"): form for form in sheet.rows("forms")}
    whole = next((form for kind, form in forms.items() if form.text("file") and "INT8" not in kind), None)
    if whole is None:
        return
    yield whole_file(whole, next(iter(forms.values())), name)
    for kind, form in forms.items():
        if "INT8" in kind:
            yield quantised(kind, form, whole)


def whole_file(form: Sheet, reference: Sheet, name: str) -> Statement:
    """Return the comparison of the float32 file with the network in PyTorch."""
    one, many, before = (
        sheet.figure(key)
        for sheet, key in ((form, "milliseconds_of_1"), (form, "milliseconds_of_64"), (reference, "milliseconds_of_1"))
    )
    top1, bytes_ = form.figure("top1"), form.figure("size")
    parts = [] if top1 is None else [f"is correct on {top1:.2f} % of the test images"]
    parts += [] if bytes_ is None else [f"has {bytes_ / 1e6:.2f} MB"]
    if one is not None and many is not None:
        beside = "" if before is None else f" (PyTorch {before:.2f} ms)"
        parts.append(f"takes {one:.2f} ms for one image{beside} and {many:.1f} ms for 64 on the CPU that exported it")
    return Statement(f"Exported as {form.text('form')} {name} {enumerated(parts)}.", form.source)


def quantised(kind: str, form: Sheet, whole: Sheet) -> Statement:
    """Return what INT8 costs in accuracy, and gains in size and speed, compared to the float32 file."""
    ours, theirs = form.figure("top1"), whole.figure("top1")
    cost = "has an unknown accuracy" if ours is None or theirs is None else points_words(ours - theirs)
    gains = [
        text
        for key, unit, more, less in (
            ("size", "", "smaller", "larger"),
            ("milliseconds_of_1", " for one image", "faster", "slower"),
            ("milliseconds_of_64", " for 64 images", "faster", "slower"),
        )
        if (text := times_words(whole.figure(key), form.figure(key), more, less, unit))
    ]
    words = f"{kind.replace('ONNX, ', '').replace('INT8 ', 'INT8 (')}) {cost}"
    words += f" and is {enumerated(gains)} than the float32 file" if gains else ""
    if problem := form.text("problem"):
        words += f"; it was not kept ({problem})"
    return Statement(f"{words}.", form.source)


def enumerated(parts: Sequence[str]) -> str:
    """Return a list as text: a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def points_words(change: float) -> str:
    if abs(change) < 0.005:
        return "costs no accuracy"
    return f"{'costs' if change < 0 else 'gains'} {abs(change):.2f} points of accuracy"


def times_words(before: float | None, after: float | None, less: str, more: str, unit: str) -> str:
    """Return a ratio as text: 1.8 times faster for one image; "no faster" within 5 %; empty if one is unknown."""
    if not before or not after:
        return ""
    ratio = before / after
    if 0.95 < ratio < 1.05:
        return f"no {less}{unit}"
    return f"{ratio:.1f} times {less}{unit}" if ratio > 1 else f"{1 / ratio:.1f} times {more}{unit}"


def bias_shifts(grid: Path, column: str) -> Iterator[Statement]:
    """Yield how far distillation shifted the accuracy kept on derived sets, from the grid.csv of kdrun bias."""
    try:
        with grid.open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line.get("column") == column and line.get("shift_low")]
        found = [
            (float(line["shift"]), float(line["shift_low"]), float(line["shift_high"]), line["row"], line["testset"])
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return
    if not found:
        return
    beyond = [one for one in found if one[1] > 0 or one[2] < 0]
    words = f"Of {plural(len(found), 'shift')} of the accuracy kept on derived sets {len(beyond)} exceed chance"
    if beyond:
        shift, low, high, row, testset = max(beyond, key=lambda one: abs(one[0]))
        words += f"; the largest is {row} on {testset}, {points(shift, 1)} points {interval_words(low, high)}"
    yield Statement(f"{words}.", "grid.csv of kdrun bias")
