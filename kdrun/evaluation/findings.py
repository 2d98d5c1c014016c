"""Why distillation does not help: findings in plain words, the figure behind each, and the command to try next. Drawn
from a `Diagnosis`; no torch here.

Each rule names what no healthy run shows. Its bound lies between the prepared failures and the finished runs of the
digits table, as far from both as they allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdrun.evaluation.differences import Sample, Spread, estimate
from kdrun.evaluation.stats import mean_std

if TYPE_CHECKING:
    from kdrun.evaluation.diagnosis import Diagnosis

ABOVE_CHANCE = 0.1  # of the way from chance to 100 %, which a teacher that learned anything has gone
UNIFORM = 0.99  # of the entropy of equal probabilities
DROWNED = 0.001  # of the other terms' gradient
SILENT = 0.001  # of the labels' gradient
OPPOSED = -0.5  # cosine
NEAR = 1.0  # point below the better of teacher and independent student
LOSES, BEHIND = 2.0, 5.0  # points below the independent student on test images, and in training


@dataclass(frozen=True)
class Finding:
    """name: what it is called; words: what is wrong; figure: what says so; settings: the words to try next, key ->
    value, beside those that the run was trained with."""

    name: str
    words: str
    figure: str
    settings: tuple[tuple[str, str], ...]


def findings_of(found: Diagnosis) -> list[Finding]:
    """Return what is wrong, the gravest first."""
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
    yield Finding(
        "untrained teacher",
        "The teacher knows next to nothing, so that its outputs are noise to learn from.",
        f"{teacher.name} is right on {teacher.test:.2f} % of the test images; chance is {found.chance:.2f} %.",
        (("teacher.random", "false"), ("teacher.checkpoint", "null")),
    )


def softened_away(found: Diagnosis) -> Iterator[Finding]:
    teacher = found.teacher
    if teacher is None or teacher.temperature is None or teacher.softened is None or teacher.softened <= UNIFORM:
        return
    if next(untrained_teacher(found), None) is not None and teacher.temperature <= 10:
        return  # its outputs are alike at any temperature
    yield Finding(
        "temperature too high",
        "The temperature leaves almost nothing of the teacher's ranking of the classes.",
        f"At {teacher.temperature:g} its probabilities have {teacher.softened:.4f} of the entropy of equal ones.",
        (("method.temperature", "4"),),
    )


def drowned_labels(found: Diagnosis) -> Iterator[Finding]:
    share = share_of_labels(found)
    if share is None or share >= DROWNED or knows_enough(found):
        return
    norms = found.gradients[0].norms
    loudest = max((name for name in norms if name != "ce"), key=lambda name: norms[name])
    yield Finding(
        "weight that drowns the labels",
        f"The term {loudest} is so heavy that the labels have no say.",
        f"At the start the labels' gradient is {share:.2g} of that of the other terms.",
        ((f"method.{loudest}_weight", "1"), ("method.ce_weight", "1")),
    )


def knows_enough(found: Diagnosis) -> bool:
    """Return True if the student has come as far as its teacher and the independent student have: whatever the weights
    were, it has learned the labels."""
    alone = mean_std(list(found.independent.values()))[0]
    others = [found.teacher.test if found.teacher else None, alone]
    known = [value for value in others if value is not None]
    return found.test is not None and bool(known) and found.test >= max(known) - NEAR


def share_of_labels(found: Diagnosis) -> float | None:
    """Return the labels' gradient as a share of the others' at the start; None where one of the two is missing. At the
    end of training it says nothing of the weights: there the gradients of the terms cancel each other."""
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
        "What the teacher says moves the student next to nothing beside the labels.",
        f"At the start the labels' gradient is {share:,.0f} times that of all other terms.",
        (("method.kd_weight", "0.9"), ("method.ce_weight", "0.1")),
    )


def weak_teacher(found: Diagnosis) -> Iterator[Finding]:
    teacher, alone = found.teacher, mean_std(list(found.independent.values()))[0]
    if teacher is None or alone is None or teacher.test >= alone or next(untrained_teacher(found), None) is not None:
        return
    yield Finding(
        "teacher no better than the student",
        "The student learns more from the labels alone than the teacher knows.",
        f"{teacher.name} is right on {teacher.test:.2f} % of the test images, the independent student on {alone:.2f} % "
        f"({seeds_in_words(len(found.independent))}).",
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
            f"At the last epoch it is right on {found.train:.2f} % of the training images, the independent student on "
            f"{found.independent_train:.2f} %; on the test images it is {alone - found.test:.2f} points behind.",
            (("epochs", str(2 * found.epochs)),),
        )


def seeds_in_words(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def verdict_of(found: Diagnosis) -> str:
    """Return in a sentence how the run's settings stand beside the independent student."""
    ours, alone = (mean_std(list(values.values())) for values in (found.siblings, found.independent))
    if ours[0] is None:
        return f"{found.method}, which has not ended"
    mine = f"{found.method} {ours[0]:.2f} % ({seeds_in_words(len(found.siblings))})"
    if alone[0] is None:
        return f"{mine}; no independent student of the same settings is there to compare with: method=none trains one"
    difference = ours[0] - alone[0]
    beside = f"{mine}, the independent student {alone[0]:.2f} % ({seeds_in_words(len(found.independent))})"
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
