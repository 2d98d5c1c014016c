#!/usr/bin/env python3
"""Measure the coverage of the intervals of `kdrun bias`, and how often a grid reports a false inheritance.

Every grid is simulated: the difficulty of an image has a part shared by all networks, one shared by the seeds of a row,
and one of each network; the accuracies of a row's seeds differ by a normal deviate, on the derived sets by `sd` points.
Half of the methods are independent students under another name, the others are shifted; for false inheritances all are
independent students. Prints: coverage      share of single 95 % intervals of the shift that contain the true one;
target: at least 0.93 false grids   share of grids with only null methods in which an interval of the grid excludes 0;
target: at most 0.05
  power         share of shifts of 10 points of accuracy whose interval in the grid excludes 0
  ratio         share of the shown transfer ratios whose interval contains the true one, and how many are shown
Usage: scripts/simulate_bias.py [grids=200] [images=900,10000] [sd=2,4] [seeds=3]     (about 0.1 to 0.5 s per grid)
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from kdrun.evaluation.bias_grid import CLEAN, TEACHER, Column, Row, interval_count, kept_by, shifts
from kdrun.evaluation.predictions import Answers
from kdrun.evaluation.transfer import LIMITS, Interval

CLASSES, METHODS, SETS = 10, 9, 8
CLEAN_ACCURACY, DERIVED, WAY = 0.95, 0.65, 0.15  # the teacher is WAY better on the derived sets
SHIFT = 0.10
SHARED, ROWS, OWN = 0.5, 0.2, 0.3  # parts of an image's difficulty: for all, for a row, for one network
SPREADS = {"equal": (1.0,), "unequal": (0.25, 1.0, 1.75)}  # of the rows, in units of sd


@dataclass
class Found:
    """Counts over grids."""

    covered: int = 0
    intervals: int = 0
    wrong_grids: int = 0
    found: int = 0
    shifted: int = 0
    ratios: int = 0
    right_ratios: int = 0


def simulated(generator: np.random.Generator, images: int, seeds: int, sd: float, shift: list[float], spread: str):
    """Simulate a column of METHODS rows shifted by `shift`, an independent student and a teacher. sd: a fraction."""
    testsets = [CLEAN, *(f"set {place}" for place in range(SETS))]
    labels = generator.integers(CLASSES, size=images)
    scores = np.empty((images, CLASSES), dtype=np.float16)  # unused but for their width, the number of classes
    hard = generator.standard_normal((len(testsets), images), dtype=np.float32) * math.sqrt(SHARED)
    least, normal = 1e-3, NormalDist()

    def network(means: list[float], own: np.ndarray) -> dict[str, Answers]:
        noise = generator.standard_normal(own.shape, dtype=np.float32) * math.sqrt(OWN)
        bars = [normal.inv_cdf(min(max(mean, least), 1 - least)) for mean in means]
        right = hard + own + noise < np.array(bars, dtype=np.float32)[:, None]
        predicted = np.where(right, labels, (labels + 1) % CLASSES)
        return {name: Answers(scores, predicted[place], labels) for place, name in enumerate(testsets)}

    def row(label: str, moved: float, factor: float) -> Row:
        own = generator.standard_normal(hard.shape, dtype=np.float32) * math.sqrt(ROWS)
        drawn = generator.standard_normal((seeds, SETS)) * sd * factor
        clean = CLEAN_ACCURACY + generator.standard_normal(seeds) * 0.005
        every = {seed: network([clean[seed], *(DERIVED + moved + drawn[seed])], own) for seed in range(seeds)}
        return Row(label, every)

    factors = SPREADS[spread]
    rows = [row(f"method {place}", moved, factors[place % len(factors)]) for place, moved in enumerate(shift)]
    rows.append(row("independent", 0.0, 1.0))
    own = generator.standard_normal(hard.shape, dtype=np.float32) * math.sqrt(ROWS)
    teacher = network([CLEAN_ACCURACY, *[DERIVED + WAY] * SETS], own)
    names = dict.fromkeys(testsets, "set")
    return Column("simulated", "", TEACHER, teacher, rows, testsets, names, "independent")


def holds(found: Interval, true: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= true <= found.high


def simulate(grids: int, images: int, sd: float, seeds: int = 3, spread: str = "equal", seed: int = 0) -> Found:
    """Simulate grids and count. sd: in points."""
    generator = np.random.default_rng([seed, images, round(100 * sd)])
    above = CLEAN_ACCURACY - 1 / CLASSES
    total = Found()
    for grid in range(2 * grids):
        null = grid < grids
        shift = [0.0 if null or place % 2 else SHIFT for place in range(METHODS)]
        column = simulated(generator, images, seeds, sd / 100, shift, spread)
        found = shifts(column, kept_by(column))
        tests = interval_count(column, found)
        beyond = False
        for (label, _), one in found.items():
            if label == TEACHER:
                continue
            true = shift[int(label.split()[1])]
            alone, together, ratio = one.interval(1), one.interval(tests), one.ratio(1)
            total.intervals += 1
            total.covered += holds(alone, 100 * true / above)
            total.ratios += ratio.value is not None
            total.right_ratios += holds(ratio, min(max(true / WAY, LIMITS[0]), LIMITS[1]))
            total.shifted += true != 0
            total.found += true != 0 and together.beyond
            beyond |= together.beyond
        total.wrong_grids += null and beyond
    return total


def main() -> None:
    given = {key: [float(part) for part in text.split(",")] for key, text in (word.split("=") for word in sys.argv[1:])}
    grids = int(given.get("grids", [200])[0])
    print(f"{'rows':>8} {'images':>7} {'sd':>4} {'seeds':>5} {'coverage':>9} {'false grids':>12} {'power':>6}  ratio")
    for spread in SPREADS:
        for images in given.get("images", [900, 10000]):
            for sd in given.get("sd", [2, 4]):
                for seeds in given.get("seeds", [3]):
                    one = simulate(grids, int(images), sd, int(seeds), spread)
                    shares = (one.covered / one.intervals, one.wrong_grids / grids, one.found / one.shifted)
                    ratios = f"{one.right_ratios / max(one.ratios, 1):.3f} of {one.ratios / one.intervals:.2f}"
                    print(
                        f"{spread:>8} {images:7.0f} {sd:4g} {seeds:5.0f} {shares[0]:9.3f} {shares[1]:12.3f} "
                        f"{shares[2]:6.2f}  {ratios}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
