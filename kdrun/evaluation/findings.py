"""Findings on why distillation does not help: an explanation, the figure behind it, and the settings to try next. Drawn
from a `Diagnosis`; no torch here.

Each rule detects something that no healthy run shows. Its bound is midway between deliberately broken runs and the
finished runs of the digits table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdrun.display import plural
from kdrun.evaluation.differences import Sample, Spread, estimate
from kdrun.evaluation.stats import mean_std

if TYPE_CHECKING:
    from kdrun.evaluation.diagnosis import Diagnosis

ABOVE_CHANCE = 0.1  # fraction of the way from chance to 100 % that any trained teacher has covered
UNIFORM = 0.99  # relative to the entropy of equal probabilities
DROWNED = 0.001  # relative to the other terms' gradient
SILENT = 0.001  # relative to the labels' gradient
OPPOSED = -0.5  # cosine
NEAR = 1.0  # point below the better of teacher and independent student
LOSES, BEHIND = 2.0, 5.0  # points below the independent student on test images, and on training images


@dataclass(frozen=True)
class Finding:
    """Finding of a diagnosis. name: its title; words: the explanation; figure: the evidence; settings: key -> value
    to try next, in addition to the run's own settings."""

    name: str
    words: str
    figure: str
    settings: tuple[tuple[str, str], ...]


def findings_of(found: Diagnosis) -> list[Finding]:
    """Return the findings, the most serious first."""
    rules: list[Callable[[Diagnosis], Iterator[Finding]]] = [
        untrained_teacher,
        softened_away,
        drowned_labels,
        silent_teacher,
        weak_teacher,
        opposed_gradients,
        behind_in_training,
    ]
    return [finding for rule in rules for finding in rule(found)]


def untrained_teacher(found: Diagnosis) -> Iterator[Finding]:
    teacher = found.teacher
    learned = teacher is not None and teacher.test >= found.chance + ABOVE_CHANCE * (100 - found.chance)
    if teacher is None or (learned and not teacher.random):
        return
    trained, settings = "", (("teacher.random", "false"), ("teacher.checkpoint", "null"))
    if teacher.epochs is not None:
        trained = f" after {plural(teacher.epochs, 'epoch')} of training"
        settings = (("teacher.recipe.epochs", str(10 * teacher.epochs)),)
    yield Finding(
        "untrained teacher",
        "The teacher has learned almost nothing, so its outputs are mostly noise.",
        f"{teacher.name} is correct on {teacher.test:.2f} % of the test images{trained}; "
        f"chance is {found.chance:.2f} %.",
        settings,
    )


def softened_away(found: Diagnosis) -> Iterator[Finding]:
    teacher = found.teacher
    if teacher is None or teacher.temperature is None or teacher.softened is None or teacher.softened <= UNIFORM:
        return
    if teacher.temperature <= 1:
        return  # not softened
    if next(untrained_teacher(found), None) is not None and teacher.temperature <= 10:
        return  # its outputs are nearly uniform at any temperature
    yield Finding(
        "temperature too high",
        "At this temperature almost nothing is left of the teacher's ranking of the classes.",
        f"At {teacher.temperature:g} the entropy of its probabilities is {teacher.softened:.4f} of that of equal ones.",
        (("method.temperature", "4" if teacher.temperature > 4 else "1"),),
    )


def drowned_labels(found: Diagnosis) -> Iterator[Finding]:
    share = share_of_labels(found)
    if share is None or share >= DROWNED or knows_enough(found):
        return
    norms = found.gradients[0].norms
    loudest = max((name for name in norms if name != "ce"), key=lambda name: norms[name])
    yield Finding(
        "weight that drowns the labels",
        f"The term {loudest} has so much weight that the labels have no influence.",
        f"At the start the labels' gradient is {share:.2g} of that of the other terms.",
        ((f"method.{loudest}_weight", "1"), ("method.ce_weight", "1")),
    )


def knows_enough(found: Diagnosis) -> bool:
    """Return True if the student has come as far as its teacher and the independent student: whatever the weights,
    it has learned the labels."""
    alone = mean_std(list(found.independent.values()))[0]
    others = [found.teacher.test if found.teacher else None, alone]
    known = [value for value in others if value is not None]
    return found.test is not None and bool(known) and found.test >= max(known) - NEAR


def share_of_labels(found: Diagnosis) -> float | None:
    """Return the labels' gradient relative to the others' at the start; None if one of the two is missing. At the
    end of training this says nothing about the weights, because the gradients of the terms cancel each other there."""
    norms = found.gradients[0].norms if found.gradients else {}
    others = sum(norm for name, norm in norms.items() if name != "ce")
    known = "ce" in norms and 0 < norms["ce"] < math.inf and 0 < others < math.inf
    return norms["ce"] / others if known else None


def silent_teacher(found: Diagnosis) -> Iterator[Finding]:
    if found.teacher is None or next(untrained_teacher(found), None) is not None:
        return
    share = share_of_labels(found)
    if share is None or share <= 1 / SILENT:
        return
    yield Finding(
        "distillation without weight",
        "Compared to the labels, the teacher hardly influences the student.",
        f"At the start the labels' gradient is {share:,.0f} times that of all other terms.",
        (("method.kd_weight", "0.9"), ("method.ce_weight", "0.1")),
    )


def weak_teacher(found: Diagnosis) -> Iterator[Finding]:
    teacher, alone = found.teacher, mean_std(list(found.independent.values()))[0]
    if teacher is None or alone is None or teacher.test >= alone or next(untrained_teacher(found), None) is not None:
        return
    yield Finding(
        "teacher no better than the student",
        "A student trained on the labels alone is better than the teacher.",
        f"{teacher.name} is correct on {teacher.test:.2f} % of the test images, the independent student on "
        f"{alone:.2f} % ({plural(len(found.independent), 'seed')}).",
        (("teacher.recipe.epochs", "240"),),
    )


def opposed_gradients(found: Diagnosis) -> Iterator[Finding]:
    for pair in found.gradients[-1].cosines if found.gradients else ():
        values = [one.cosines[pair] for one in found.gradients if pair in one.cosines]
        if "ce" in pair.split(", ") and len(values) > 1 and max(values) < OPPOSED:
            yield Finding(
                "terms that pull against each other",
                f"The gradients of {pair.replace(', ', ' and ')} point in opposite directions.",
                f"Their cosine is {values[0]:+.2f} at the start and {values[-1]:+.2f} at the end.",
                (("method.ce_weight", "1"),),
            )


def behind_in_training(found: Diagnosis) -> Iterator[Finding]:
    alone = mean_std(list(found.independent.values()))[0]
    if alone is None or found.test is None or found.train is None or found.independent_train is None:
        return
    if found.test < alone - LOSES and found.train < found.independent_train - BEHIND:
        yield Finding(
            "student that has not learned its training images yet",
            "With this method the student learns more slowly, and its training ends too early.",
            f"At the last epoch it is correct on {found.train:.2f} % of the training images, the independent student "
            f"on {found.independent_train:.2f} %; on the test images it is {alone - found.test:.2f} points behind.",
            (("epochs", str(2 * found.epochs)),),
        )


def verdict_of(found: Diagnosis) -> str:
    """Return a sentence that compares the run with the independent student."""
    ours, alone = (mean_std(list(values.values())) for values in (found.siblings, found.independent))
    if ours[0] is None:
        return f"{found.method}, unfinished"
    mine = f"{found.method} {ours[0]:.2f} % ({plural(len(found.siblings), 'seed')})"
    if alone[0] is None:
        return f"{mine}; no independent student of the same settings to compare with: method=none trains one"
    difference = ours[0] - alone[0]
    beside = f"{mine}, the independent student {alone[0]:.2f} % ({plural(len(found.independent), 'seed')})"
    return f"{beside}: {difference:+.2f} points" + ("" if told_apart(found) else ", not distinguishable by these seeds")


def told_apart(found: Diagnosis) -> bool:
    """Return True if the interval of the difference of the means excludes 0."""
    ours, alone = list(found.siblings.values()), list(found.independent.values())
    samples = [sample for values in (ours, alone) if (sample := Sample.of(values)) is not None]
    estimated = estimate(ours, alone, Spread.of(samples)) if len(samples) == 2 else None
    if estimated is None:
        return False
    low, high = estimated.interval()
    return low > 0 or high < 0
