"""Measures of what a student inherits from its teacher besides accuracy, computed over images. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kdrun.evaluation.predictions import Answers

CHANCE_Z = 2.326  # one-sided 99 %
FEW_ERRORS = 10  # errors of the teacher below which agreement on them rests on too few images


def above_chance(answers: Answers) -> bool:
    """Return True if accuracy is clearly above that of always predicting the most frequent class: the one-sided 99 %
    Wilson bound lies above it."""
    count = len(answers.labels)
    share = float(answers.right.mean())
    chance = float(np.bincount(answers.labels).max()) / count
    z2 = CHANCE_Z**2 / count
    low = (share + z2 / 2 - CHANCE_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))) / (1 + z2)
    return low > chance


def divergence(teacher: Answers, student: Answers) -> float:
    """Return KL(teacher ‖ student) at temperature 1 in nats, mean over images, from the stored probabilities (16
    bits)."""
    # rounding to 16 bits can make a zero divergence slightly negative
    p, q = teacher.log_probabilities.astype(np.float64), student.log_probabilities.astype(np.float64)
    shares = np.exp(p)
    return max(0.0, float((shares * (p - q)).sum(axis=1).mean() / shares.sum(axis=1).mean()))


def agreement(teacher: Answers, student: Answers) -> float:
    """Return the percentage of images on which both predict the same class (Stanton et al., arXiv:2106.05945)."""
    return 100 * float((teacher.predicted == student.predicted).mean())


def agreement_on_errors(teacher: Answers, student: Answers) -> float | None:
    """Return the percentage of the teacher's errors that the student repeats with the same class; None below
    FEW_ERRORS errors."""
    wrong = ~teacher.right
    if wrong.sum() < FEW_ERRORS:
        return None
    return 100 * float((teacher.predicted == student.predicted)[wrong].mean())


def error_consistency(one: Answers, other: Answers) -> float | None:
    """Return Cohen's kappa of being right or wrong on the same images (Geirhos, Meding, Wichmann, NeurIPS 2020,
    arXiv:2006.16736); None if either is right or wrong on all of them.

    Equation:
        kappa = (c_obs - c_exp) / (1 - c_exp),  c_exp = p1 p2 + (1 - p1)(1 - p2)
    """
    observed = float((one.right == other.right).mean())
    p1, p2 = float(one.right.mean()), float(other.right.mean())
    expected = p1 * p2 + (1 - p1) * (1 - p2)
    if p1 in (0.0, 1.0) or p2 in (0.0, 1.0):
        return None
    return (observed - expected) / (1 - expected)


@dataclass(frozen=True)
class ShapeBias:
    """Shape bias of decisions on images whose shape and texture belong to two classes. bias: shape / (shape +
    texture), percent, None if neither was ever predicted; coverage: (shape + texture) / N, percent (Geirhos et al.,
    ICLR 2019)."""

    shape: int
    texture: int
    count: int

    @property
    def bias(self) -> float | None:
        named = self.shape + self.texture
        return 100 * self.shape / named if named else None

    @property
    def coverage(self) -> float:
        return 100 * (self.shape + self.texture) / self.count if self.count else 0.0


def shape_bias(answers: Answers) -> ShapeBias:
    """Return the shape bias on a cue conflict; images whose shape and texture belong to the same class are left out."""
    assert answers.textures is not None
    conflict = answers.labels != answers.textures
    predicted = answers.predicted[conflict]
    shape = int((predicted == answers.labels[conflict]).sum())
    return ShapeBias(shape, int((predicted == answers.textures[conflict]).sum()), int(conflict.sum()))


@dataclass(frozen=True)
class Change:
    """Change of a network's predictions on derived images. clean_top1, top1: percent; ratio: top1 / clean_top1, None
    if accuracy on the clean images is at chance; flipped: predictions that change, percent; kl: KL(clean ‖ derived),
    nats; both None unless the images are the same in the same order. shape_bias, coverage: of a cue conflict, in
    percent."""

    clean_top1: float
    top1: float
    ratio: float | None
    flipped: float | None
    kl: float | None
    shape_bias: float | None = None
    coverage: float | None = None


def change_of(clean: Answers, derived: Answers) -> Change:
    same = np.array_equal(clean.labels, derived.labels)
    shape = None if derived.textures is None else shape_bias(derived)
    return Change(
        clean.accuracy,
        derived.accuracy,
        derived.accuracy / clean.accuracy if above_chance(clean) else None,
        100 - agreement(clean, derived) if same else None,
        divergence(clean, derived) if same else None,
        shape and shape.bias,
        shape and shape.coverage,
    )
