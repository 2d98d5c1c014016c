"""What `kdrun eval` prints: a network's lines, its classes, and one table of several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from kdrun import console
from kdrun.errors import ConfigError
from kdrun.evaluation.targets import Target
from kdrun.reporting.evaluation import NAMED
from kdrun.runs.directory import short_path

if TYPE_CHECKING:
    from kdrun.evaluation.bias import Change
    from kdrun.evaluation.examine import Findings

RANKS = {"kl": "kl_teacher", "agreement": "agreement"}
WORST = 10  # classes that are printed where there are more than NAMED


@dataclass
class Measured:
    target: Target
    found: Findings
    classes: list[str]
    place: str  # data set, split, images and precision in words
    files: list[Path]
    change: Change | None = None  # on derived images
    testset: str = ""  # their name

    def score(self, name: str) -> float | None:
        return (self.found.scores | self.found.cost).get(name)


def show_scores(done: Measured) -> None:
    """A line for the network, and one for what it shares with its teacher."""
    scores, target = done.found.scores, done.target
    console.say(
        f"{escape(target.label)}  {escape(target.options.name)} on {escape(done.place)}: "
        f"top-1 [bold]{scores['top1']:.2f} %[/]  top-5 {scores['top5']:.2f} %  NLL {scores['nll']:.4f} nats  "
        f"ECE {scores['ece']:.2f} %"
    )
    if done.change is not None:
        console.say(f"  {escape(change_words(done.change))}")
    if target.missing:
        console.note(f"  {target.label} {target.missing}; KL, agreement and CKA are left out.")
    if "kl_teacher" in scores and target.teacher is not None:
        console.say(
            f"  beside its teacher {escape(target.teacher.options.name)} ({scores['teacher_top1']:.2f} % top-1): "
            f"KL(teacher ‖ student) [bold]{scores['kl_teacher']:.4f} nats[/]  "
            f"agreement [bold]{scores['agreement']:.2f} %[/]"
        )


def change_words(change: Change) -> str:
    """Beside the clean images: accuracy kept and lost, flips and divergence, shape bias."""
    words = [f"clean images {change.clean_top1:.2f} %, here {change.top1:.2f} %, a drop of "
             f"{change.clean_top1 - change.top1:.2f} points"]  # fmt: skip
    chance = "no ratio: the clean ones are answered at chance"
    words += [chance if change.ratio is None else f"ratio {change.ratio:.3f}"]
    words += [] if change.flipped is None else [f"{change.flipped:.2f} % of predictions flip"]
    words += [] if change.kl is None else [f"KL(clean ‖ here) {change.kl:.4f} nats"]
    words += [] if change.shape_bias is None else [f"shape bias {change.shape_bias:.1f} %"]
    words += [] if change.coverage is None else [f"coverage {change.coverage:.1f} %"]
    return ", ".join(words)


def show_details(done: Measured) -> None:
    """CKA of the stages that belong together, cost, and the classes."""
    found = done.found
    if found.similarity is not None:
        pairs = [f"{a}–{b} {'undefined' if value is None else f'{value:.3f}'}"
                 for a, b, value in found.similarity.of_pairs()]  # fmt: skip
        console.say(f"  CKA, student's stage – teacher's: {'  '.join(pairs)}")
    cost = found.cost
    console.say(
        f"  {cost['params']:,.0f} parameters  {console.count(cost['flops'])} FLOPs per image  "
        f"{cost['images_per_second']:,.0f} images/s"
    )
    classes = found.classification
    order = list(range(len(done.classes)))
    title = "classes"
    if len(order) > NAMED:
        order = sorted(order, key=lambda label: classes.f1[label])[:WORST]
        title = f"the {WORST} classes of {len(done.classes)} with the lowest F1"
    figures = [[classes.precision[label], classes.recall[label], classes.f1[label]] for label in order]
    rows = [[done.classes[label], f"{classes.support[label]:,}", *(f"{value:.2f}" for value in values)]
            for label, values in zip(order, figures, strict=True)]  # fmt: skip
    rows.append(["macro average", f"{found.samples:,}", *(f"{value:.2f}" for value in classes.macro.values())])
    console.table(title, ["class", "images", "precision, %", "recall, %", "F1, %"], rows)


COLUMNS = (  # key, title, format
    ("top1", "top-1", "{:.2f}"),
    ("nll", "NLL", "{:.4f}"),
    ("ece", "ECE", "{:.2f}"),
    ("f1", "F1", "{:.2f}"),
    ("kl_teacher", "KL", "{:.4f}"),
    ("agreement", "agree", "{:.2f}"),
    ("params", "params", ""),
    ("flops", "FLOPs", ""),
    ("images_per_second", "images/s", "{:,.0f}"),
)


def show_table(every: list[Measured], rank: str | None) -> None:
    """A row for each network; ranked ones first, by the divergence from their teacher or the agreement with it."""
    ranked = [done for done in every if done.score("kl_teacher") is not None]
    if rank is not None and not ranked:
        raise ConfigError(f"rank={rank}: none of these has a teacher that could be loaded.")
    places = {key: ranking(ranked, key) for key in RANKS.values()}
    order = every
    if rank is not None:
        order = sorted(ranked, key=lambda done: places[RANKS[rank]][id(done)])
        order += [done for done in every if done.score("kl_teacher") is None]
    folder, names = short_labels([done.target.label for done in order])
    taught = {done.target.teacher.options.name for done in ranked if done.target.teacher}
    derived = any(done.testset for done in every)
    rows = []
    for name, done in zip(names, order, strict=True):
        ranks = [str(places[key].get(id(done), "–")) for key in RANKS.values()] if rank is not None else []
        beside = done.target.teacher.options.name if done in ranked and done.target.teacher else "–"
        on = [done.testset or "clean"] if derived else []
        rows.append([name, *on, *ranks, *cells_of(done), *([beside] if len(taught) > 1 else [])])
    heads = ["test set"] if derived else []
    heads += ["rank KL", "agr."] if rank is not None else []
    last = ["teacher"] if len(taught) > 1 else []
    console.say("")
    console.table("", ["run", *heads, *(title for _, title, _ in COLUMNS), *last], rows)
    below = f"runs are below {folder}; " if folder else ""
    below += f"teacher {min(taught)}; " if len(taught) == 1 else ""
    console.note(f"{below}top-1, ECE, macro F1 and agreement in %, NLL and KL(teacher ‖ student) in nats")
    teachers = {str(done.target.teacher.weights) for done in ranked if done.target.teacher}
    if rank is not None and len(teachers) > 1:
        console.note(f"note: these students have {len(teachers)} different teachers; each is compared with its own.")


def cells_of(done: Measured) -> list[str]:
    values = done.found.scores | done.found.cost | {"f1": done.found.classification.macro["f1"]}
    cells = []
    for key, _, form in COLUMNS:
        value = values.get(key)
        known = "–" if value is None else form.format(value)
        cells.append(console.count(value) if value is not None and key in ("params", "flops") else known)
    return cells


def short_labels(labels: list[str]) -> tuple[str, list[str]]:
    """(the folder that all labels share, the rest of each)."""
    parts = [label.split("/") for label in labels]
    columns = list(zip(*(part[:-1] for part in parts), strict=False))
    shared = next((place for place, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return "/".join(parts[0][:shared]), ["/".join(part[shared:]) for part in parts]


def ranking(every: list[Measured], key: str) -> dict[int, int]:
    """id of each -> its rank from 1, the nearest to its teacher first; equals share one."""
    sign = -1 if key == "agreement" else 1
    values = {id(done): sign * (done.score(key) or 0.0) for done in every}
    return {name: 1 + sum(other < value for other in values.values()) for name, value in values.items()}


def show_files(every: list[Measured]) -> None:
    """Where everything is; a line for each network."""
    for done in every:
        if done.files:
            names = ", ".join(path.name for path in done.files)
            console.note(f"{short_path(done.files[0].parent)}/  ({names})")
    if not any(done.files for done in every):
        console.note("save=FOLDER writes all of it, with pictures")
