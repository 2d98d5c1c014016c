#!/usr/bin/env python3
"""Simulate tables with known truth, and measure the error rate and power of each test of one row against another.

    python scripts/compare_tests.py                                 all tests (8 minutes of one core)
    python scripts/compare_tests.py --test moderated --tables 4000  kdrun's own, more precisely (5 minutes)
    python scripts/compare_tests.py --verdicts                      only the verdicts on published values

A table has columns of seven rows; the others are compared with the first. Cells have a spread of 0.25
points ("equal"), or one drawn for each from 0.1, 0.25 and 0.6 ("mixed"). Errors: percentage of
columns without any real difference in which a difference is reported at 5 %; "table": the same for tables, in any of
their columns. Power: how often a single better row of seven is found.

kdrun's own test is "moderated": kdrun/evaluation/differences.py.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kdrun.evaluation.differences import Sample, Spread, estimate
from kdrun.evaluation.stats import ALPHA, holm, verdict

EQUAL, MIXED = (0.25,), (0.1, 0.25, 0.6)
Column = list[np.ndarray]  # the values of each row


@dataclass(frozen=True)
class Setting:
    """Setting from which tables are drawn. alike: the correlation of one seed's values over the rows of a column."""

    name: str
    columns: int = 1
    rows: int = 7
    seeds: int = 3
    sds: tuple[float, ...] = EQUAL
    effect: float = 0.0
    t4: bool = False
    missing: float = 0.0
    alike: float = 0.0

    def draw(self, rng: np.random.Generator) -> list[Column]:
        shape = (self.columns, self.rows, self.seeds)
        noise = rng.standard_t(4, shape) / 2**0.5 if self.t4 else rng.standard_normal(shape)
        shared = rng.standard_normal((self.columns, 1, self.seeds))
        values = ((1 - self.alike) ** 0.5 * noise + self.alike**0.5 * shared) * rng.choice(self.sds, (*shape[:2], 1))
        values[:, -1] += self.effect
        gone = rng.random(shape) < self.missing
        gone[:, :, :2] = False
        return [[values[c, r][~gone[c, r]] for r in range(self.rows)] for c in range(self.columns)]


def moderated(table: list[Column]) -> list[list[float]]:
    """Return Holm's p of each row against the first: kdrun's own test."""
    spread = Spread.of(sample for column in table for row in column if (sample := Sample.of(row)) is not None)
    found = [[estimate(row, column[0], spread) for row in column[1:]] for column in table]
    return [holm([1.0 if one is None else one.p for one in column]) for column in found]


def pooled(table: list[Column]) -> list[list[float]]:
    """Return p-values with one variance for the whole table."""
    freedom = sum(len(row) - 1 for column in table for row in column)
    variance = sum((len(row) - 1) * row.var(ddof=1) for column in table for row in column) / freedom

    def p(row: np.ndarray, other: np.ndarray) -> float:
        scale = (variance * (1 / len(row) + 1 / len(other))) ** 0.5
        return 2 * float(stats.t.sf(abs(row.mean() - other.mean()) / scale, freedom))

    return [holm([p(row, column[0]) for row in column[1:]]) for column in table]


def dunnett(table: list[Column]) -> list[list[float]]:
    """Return p-values of Dunnett's many-to-one test, with one variance for each column (scipy)."""
    return [list(stats.dunnett(*column[1:], control=column[0], random_state=0).pvalue) for column in table]


def welch(table: list[Column]) -> list[list[float]]:
    """Return p-values from each pair's own two variances (scipy)."""
    return [holm([stats.ttest_ind(row, column[0], equal_var=False).pvalue for row in column[1:]]) for column in table]


def paired(table: list[Column]) -> list[list[float]]:
    """Return p-values from each pair's differences, seed by seed (scipy), over their common seeds."""

    def p(row: np.ndarray, other: np.ndarray) -> float:
        both = min(len(row), len(other))
        return float(stats.ttest_rel(row[:both], other[:both]).pvalue)

    return [holm([p(row, column[0]) for row in column[1:]]) for column in table]


def paired_over_the_table(table: list[Column]) -> list[list[float]]:
    """Return p-values as in earlier versions of kdrun: paired, with all tests of the table as one family."""
    rows = [
        (stats.ttest_rel(row[: min(len(row), len(column[0]))], column[0][: min(len(row), len(column[0]))]).pvalue)
        for column in table
        for row in column[1:]
    ]
    corrected, size = holm(rows), len(table[0]) - 1
    return [corrected[place * size : (place + 1) * size] for place in range(len(table))]


TESTS: dict[str, Callable[[list[Column]], list[list[float]]]] = {
    "moderated": moderated,
    "pooled": pooled,
    "dunnett": dunnett,
    "welch": welch,
    "paired": paired,
    "paired, table": paired_over_the_table,
}


@dataclass(frozen=True)
class Rates:
    """Rates in percent: columns with a false finding, tables with one, true effects found; and one standard error."""

    columns: float
    tables: float
    found: float
    error: float


def rates(test: Callable[[list[Column]], list[list[float]]], setting: Setting, tables: int, seed: int = 1) -> Rates:
    """Return a test's rates in a setting over `tables` tables, which are the same for every test."""
    rng = np.random.default_rng(seed)
    false, somewhere, found = [], [], []
    for _ in range(tables):
        hits = np.array(test(setting.draw(rng))) < ALPHA
        null = hits[:, :-1] if setting.effect else hits
        false += list(null.any(1))
        somewhere.append(null.any())
        found += list(hits[:, -1])
    rate = np.mean(found) if setting.effect else np.mean(false)
    error = 100 * (rate * (1 - rate) / len(false)) ** 0.5
    return Rates(*(100 * float(np.mean(one)) for one in (false, somewhere, found)), float(error))


def settings() -> list[Setting]:
    """Return the settings of docs/statistics.md."""
    made = []
    for columns, seeds in ((1, 3), (5, 3), (1, 5), (5, 5)):
        size = {"columns": columns, "seeds": seeds}
        made += [
            Setting("errors, equal", **size),
            Setting("errors, mixed", sds=MIXED, **size),
            Setting("errors, mixed, t4", sds=MIXED, t4=True, **size),
            Setting("errors, mixed, 30 % missing", sds=MIXED, missing=0.3, **size),
            Setting("power, 0.5 points", effect=0.5, **size),
            Setting("power, 1 point", effect=1.0, **size),
            Setting("power, 0.5 points, mixed", effect=0.5, sds=MIXED, **size),
        ]
    made += [Setting("errors, two rows", rows=2), Setting("errors, two rows, mixed", rows=2, sds=MIXED)]
    made += [
        Setting(f"power, 0.5 points, seeds alike {alike:g}", columns=5, seeds=seeds, effect=0.5, alike=alike)
        for seeds in (3, 5)
        for alike in (0.3, 0.6, 0.9)
    ]
    return made


def verdict_rates(gap: float, sd: float, seeds: int, draws: int = 4000) -> dict[str, float]:
    """Return verdict -> percent of draws, if the truth is `gap` points from the published value."""
    values = np.random.default_rng(1).normal(gap, sd, (draws, seeds))
    words = [verdict(list(row), 0.0, 0.5).word for row in values]
    return {word: 100 * words.count(word) / draws for word in ("reproduced", "unclear", "differs")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=500, help="columns drawn for each rate (500; dunnett: a tenth)")
    parser.add_argument("--test", choices=TESTS, help="only this test")
    parser.add_argument("--verdicts", action="store_true", help="only the verdicts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # scipy warns about nearly identical differences
    chosen = {name: test for name, test in TESTS.items() if options.test in (None, name)}
    if not options.verdicts:
        print(f"{'':44}" + "".join(f"{name:>15}" for name in chosen))
        for setting in settings():
            name = f"{setting.columns} x {setting.rows}, {setting.seeds} seeds: {setting.name}"
            cells = []
            for test in chosen.values():
                if test is dunnett and setting.rows == 2:
                    cells.append(f"{'':>15}")
                    continue
                drawn = options.tables // setting.columns // (10 if test is dunnett else 1)
                done = rates(test, setting, max(drawn, 1))
                cells.append(f"{done.found if setting.effect else done.columns:9.1f} ± {done.error:.1f}")
            print(f"{name:44}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
    print(f"\n{'verdicts':44}" + "".join(f"{word:>15}" for word in ("reproduced", "unclear", "differs")))
    for seeds in (3, 5):
        for gap in (0.0, 0.25, 0.5, 1.0):
            for sd in (0.15, 0.25, 0.8, 3.0):
                found = verdict_rates(gap, sd, seeds).values()
                print(f"{f'gap {gap:g}, sd {sd:g}, {seeds} seeds':44}" + "".join(f"{rate:15.1f}" for rate in found))


if __name__ == "__main__":
    main()
