"""Section of a report with everything measured after training: evaluations, derived test sets, exports, and their
pictures."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from kdrun.display import plural
from kdrun.reporting.html.album import Album
from kdrun.reporting.html.grids import grid_of
from kdrun.reporting.known import Known, KnownPlaces
from kdrun.reporting.labels import EMPTY, Section
from kdrun.reporting.measured import Mean, Measured, Sheet, mean_of, over_runs, related
from kdrun.reporting.table import Table

PICTURES = (  # file in evals/, its title
    ("test_confusion", "Confusion matrix: which class is mistaken for which"),
    ("test_reliability", "Reliability diagram: does confidence match accuracy?"),
    ("test_cka", "Linear CKA: similarity of the stages of student and teacher"),
    ("gradcam", "Grad-CAM: where teacher and student look"),
)
EVALUATED = (  # heading, key of an evaluation, digits
    ("top-1, %", "top1", 2),
    ("NLL, nats", "nll", 4),
    ("ECE, %", "ece", 2),
    ("macro F1, %", "f1_macro", 2),
    ("KL(teacher ‖ student), nats", "kl_teacher", 4),
    ("agreement, %", "agreement", 2),
)


def measured_section(table: Table, known: KnownPlaces, album: Album) -> str:
    """Return the section; an empty string if nothing was measured."""
    rows = [(name_of(table, known[place]), known[place]) for place in in_order(table, known)]
    parts = [
        *shown(
            evaluations(rows), "On the test set, with the weights of the last epoch; means over the measured seeds."
        ),
        *shown(derived(rows), "Accuracy on derived test images, in percent of the accuracy on clean ones."),
        *shown(exports(rows), "Times are on the CPU that exported; differences are to the network in PyTorch."),
        *(details(name, place, album, len(rows) == 1) for name, place in rows),
    ]
    if album.left_out:
        parts.append(
            f'<p class="quiet">{plural(album.left_out, "picture")} more in the evals/ folders of the runs.</p>'
        )
    text = "".join(parts)
    return f'<section id="measured"><h2>What was measured</h2>{text}</section>' if text else ""


def in_order(table: Table, known: KnownPlaces) -> list[tuple[str, str]]:
    """Return the places with any measurement, in order; places that share their runs occur once."""
    places: dict[tuple[str, ...], tuple[str, str]] = {}
    for column in table.columns:
        for row in table.rows:
            found = known.get((row, column))
            if found is not None and any(one.anything for one in found.measured):
                places.setdefault(tuple(one.run for one in found.measured), (row, column))
    return list(places.values())


def name_of(table: Table, place: Known) -> str:
    return f"{place.entry.row}, {place.entry.column}" if len(table.columns) > 1 else place.entry.row


def shown(section: Section, words: str) -> list[str]:
    """Return a grid with its caption, without empty columns."""
    if not section.rows:
        return []
    kept = [
        place for place in range(len(section.columns)) if not place or any(row[place] != EMPTY for row in section.rows)
    ]
    columns = [section.columns[place] for place in kept]
    rows = [[row[place] for place in kept] for row in section.rows]
    return [f"<h3>{html.escape(section.heading)}</h3>", grid_of(Section("", columns, rows)), quiet(words)]


def quiet(words: str) -> str:
    return f'<p class="quiet">{html.escape(words)}</p>'


def figure(mean: Mean | None, digits: int) -> str:
    return EMPTY if mean is None else f"{mean.value:.{digits}f}"


def evaluations(rows: Sequence[tuple[str, Known]]) -> Section:
    heads = ["row", "seeds", *(head for head, _, _ in EVALUATED), "CKA", "Grad-CAM IoU", "of other images"]
    lines = []
    for name, place in rows:
        tests, maps = [one.test for one in place.measured], [one.gradcam for one in place.measured]
        seeds = sum(test is not None for test in tests)
        if not seeds and not any(maps):
            continue
        cells = [figure(mean_of(tests, key), digits) for _, key, digits in EVALUATED]
        looks = [figure(mean_of(maps, *keys), 2) for keys in (("iou",), ("other_images", "iou"))]
        lines.append([name, str(seeds) if seeds else EMPTY, *cells, figure(over_runs(tests, related), 2), *looks])
    return Section("Evaluation", heads, lines)


def derived(rows: Sequence[tuple[str, Known]]) -> Section:
    names = list(dict.fromkeys(name for _, place in rows for one in place.measured for name in one.derived))
    lines = []
    for label, place in rows:
        means = [mean_of([one.derived.get(name) for one in place.measured], "change", "ratio") for name in names]
        if any(means):
            lines.append([label, *(EMPTY if mean is None else f"{100 * mean.value:.1f}" for mean in means)])
    return Section("Derived test sets", ["row", *names], lines)


def exports(rows: Sequence[tuple[str, Known]]) -> Section:
    heads = ["row", "form", "file", "top-1, %", "max |Δlogit|", "size, MB", "1 image, ms", "64 images, ms", "kept"]
    columns: tuple[tuple[str, Callable[[float], str]], ...] = (
        ("top1", lambda value: f"{value:.2f}"),
        ("max_logit_difference", lambda value: f"{value:.2g}"),
        ("size", lambda value: f"{value / 1e6:.2f}" if value else EMPTY),
        ("milliseconds_of_1", lambda value: f"{value:.2f}"),
        ("milliseconds_of_64", lambda value: f"{value:.1f}"),
    )
    lines = []
    for name, place in rows:
        for sheet in (export for one in place.measured for export in one.exports):
            for form in sheet.rows("forms"):
                cells = [EMPTY if (value := form.figure(key)) is None else show(value) for key, show in columns]
                kept = EMPTY if not form.text("file") else "no" if form.text("problem") else "yes"
                lines.append([name, form.text("form"), form.text("file") or EMPTY, *cells, kept])
    return Section("Files for deployment", heads, lines)


def details(name: str, place: Known, album: Album, unfolded: bool) -> str:
    """Return the pictures, the classes and the diagnosis of the first run of a place that has them."""
    run = next((one for one in place.measured if one.anything), None)
    if run is None:
        return ""
    drawn = [
        f"<figure>{image}<figcaption>{html.escape(words)}</figcaption></figure>"
        for stem, words in PICTURES
        if (image := album.picture(run.folder / "evals" / f"{stem}.png", f"{words}, {name}"))
    ]
    parts = [f'<div class="charts pictures">{"".join(drawn)}</div>' if drawn else "", *classes(run), *findings(run)]
    if not any(parts):
        return ""
    return (
        f"<details{' open' if unfolded else ''}><summary><b>{html.escape(name)}</b> "
        f'<span class="quiet">{html.escape(run.run)}</span></summary>{"".join(parts)}</details>'
    )


def classes(run: Measured) -> list[str]:
    """Return precision, recall and F1 of every class."""
    if run.test is None:
        return []
    keys = ("support", "precision", "recall", "f1")

    def cells(row: Sheet) -> list[str]:
        values = [row.figure(key) for key in keys]
        return [
            EMPTY if value is None else f"{value:,.{2 * (key != 'support')}f}"
            for key, value in zip(keys, values, strict=True)
        ]

    rows = [[str(row.content.get("class", "")), *cells(row)] for row in run.test.rows("per_class")]
    heads = ["class", "images", "precision, %", "recall, %", "F1, %"]
    grid = grid_of(Section("", heads, rows))
    return [f"<details><summary>{plural(len(rows), 'class', 'classes')}</summary>{grid}</details>"] if rows else []


def findings(run: Measured) -> list[str]:
    """Return the findings of kdrun diagnose."""
    found = [] if run.diagnosis is None else run.diagnosis.rows("findings")
    items = "".join(
        f"<li><b>{html.escape(one.text('name'))}</b>: {html.escape(' '.join(map(one.text, ('words', 'figure'))))}</li>"
        for one in found
    )
    return [f"<h4>Obstacles to distillation</h4><ul>{items}</ul>"] if items else []
