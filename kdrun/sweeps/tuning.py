"""Successive halving of candidate settings on validation images, each round a sweep whose runs are lanes.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016.
Each round trains its candidates from the start, over a complete schedule of its own length: a third of a longer
schedule, before the rate drops, would favour other settings. Libraries of asynchronous trials do not fit (Optuna's
pruners stop single trials midway): the candidates of a round share every batch and the teacher's forward pass, and end
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdrun.config.compose import load
from kdrun.config.method_schema import read_method
from kdrun.config.options import RunConfig
from kdrun.data.counts import counts_of
from kdrun.data.datasets import DataSource
from kdrun.errors import RunError
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import Cell, TableShape, read_ledger, result_of, state_of
from kdrun.sweeps.cells import CellSpec
from kdrun.sweeps.definition import Sweep

KEPT = 3  # one in KEPT candidates advances, and trains KEPT times as long
SHORTEST = 5  # epochs of a round: with fewer, the ranking is mostly chance
HELD_OUT = "0.2"  # fraction of the training images held out, unless the user sets one
STUDENT, DEFAULT, TUNED = "Student", "Default settings", "Tuned"  # rows of the last table


@dataclass
class Candidate:
    """Candidate settings, as command-line overrides, and their scores. scores: epochs of a round -> (top-1 on the
    validation images in percent, minus the loss there), by which rounds are ranked."""

    words: list[str]
    scores: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the settings without their prefixes."""
        parts = (word.partition("=") for word in self.words)
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in parts) or "default"


@dataclass(frozen=True)
class Search:
    """Search request. words: overrides of every run; seeds: of the runs that are tested; config_dir: the user's own
    groups."""

    name: str
    config: RunConfig
    words: list[str]
    seeds: list[int]
    config_dir: str | None = None

    @property
    def column(self) -> str:
        return f"{self.config.teacher.name} → {self.config.student.name}"


def rounds(candidates: int, epochs: int) -> list[tuple[int, int]]:
    """Return (candidates, epochs) of each round, down to three of full length."""
    counts = [candidates]
    while counts[-1] > KEPT:
        counts.append(math.ceil(counts[-1] / KEPT))
    shortest = min(SHORTEST, epochs)
    lengths = [max(round(epochs / KEPT**left), shortest) for left in reversed(range(len(counts)))]
    return [
        (count, length)
        for at, (count, length) in enumerate(zip(counts, lengths, strict=True))
        if length not in lengths[:at]
    ]


def shortened(config: RunConfig, epochs: int) -> list[str]:
    """Return the overrides for a run of `epochs`, with everything that its schedule and method count in epochs
    scaled in proportion."""
    share = epochs / config.epochs
    if share == 1:
        return []
    optimizer, method = config.optimizer, config.method
    whole = {name for name, kind in read_method(method["_target_"]).parameters.items() if kind.startswith("int")}
    words = [
        f"epochs={epochs}",
        f"optimizer.step_epochs={max(round(optimizer.step_epochs * share), 1)}",
        f"optimizer.warmup_epochs={optimizer.warmup_epochs * share:g}",
    ]
    if optimizer.milestones:
        kept = [max(round(epoch * share), 1) for epoch in optimizer.milestones]
        words.append(f"optimizer.milestones=[{','.join(map(str, kept))}]")
    for name, value in method.items():
        if name.endswith("_epochs") and isinstance(value, int | float) and value > 0:
            words.append(f"method.{name}={max(round(value * share), 1) if name in whole else f'{value * share:g}'}")
    return words


def find_best(
    search: Search, candidates: list[Candidate], run: Callable[[Sweep], int], root: Path, note: Callable[[str], None]
) -> tuple[list[Candidate], int | None]:
    """Train round after round. Return the candidates of the last one, best first, and None; or an exit code if the
    search cannot continue: it was stopped, or waits in a cluster's queue. Raises RunError if no candidate can be
    trained."""
    alive = candidates
    for count, epochs in rounds(len(candidates), search.config.epochs):
        alive = alive[:count]
        alive += [one for one in candidates if not one.words and one not in alive]  # the default is kept to the end
        sweep = round_of(search, alive, epochs)
        code = run(sweep)
        if code not in (0, 1):  # 1: some have failed, which only ranks them last
            return alive, code
        cells = read_ledger(root, sweep.name).cells
        if any(state_of(cell, root)[0] not in ("done", "failed") for cell in cells):
            note("repeat the command when these runs are done, to continue the search")
            return alive, code
        for candidate, cell in zip(alive, cells, strict=True):
            if (score := score_of(cell, root)) is not None:
                candidate.scores[epochs] = score
        alive = sorted((one for one in alive if epochs in one.scores), key=lambda one: one.scores[epochs], reverse=True)
        if not alive:
            raise RunError(f"none of the candidates could be trained: kdrun status {sweep.name}")
    return alive, None


def held_out(search: Search) -> int:
    """Return the number of validation images on which the candidates are compared."""
    config = load(round_of(search, [Candidate([])], search.config.epochs).specs[0].overrides, search.config_dir)
    return counts_of(DataSource(config.dataset)).test


def choose(ranked: list[Candidate], images: int) -> Candidate:
    """Return the best of the last round, or the default settings unless it beats them by more than one standard error
    of its accuracy on `images` images: smaller differences may be chance, and the best of many always looks better than
    it is.

    Source: the one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984, section 3.4.3.
    """
    best = ranked[0]
    default = next((one for one in ranked if not one.words), None)
    last = max(best.scores)
    if default is None:
        return best
    share = best.scores[last][0] / 100
    error = 100 * (share * (1 - share) / images) ** 0.5
    return best if best.scores[last][0] - default.scores[last][0] > error else default


def round_of(search: Search, candidates: Sequence[Candidate], epochs: int) -> Sweep:
    """Return a round as a sweep: one run per candidate, tested on validation images, with a seed that is not used
    for the final test."""
    config = search.config
    words = [
        *search.words,
        "dataset.evaluate_on=val",
        *([] if config.dataset.val_fraction else [f"dataset.val_fraction={HELD_OUT}"]),
        *shortened(config, epochs),
        f"eval_every={epochs}",
        f"seed={max(search.seeds) + 1}",
    ]
    specs = [CellSpec(one.name, search.column, [*words, *one.words], published=False) for one in candidates]
    title = f"{search.name}: {len(specs)} candidates on validation images"
    return Sweep(f"{search.name}-{epochs}", title, specs, TableShape([spec.row for spec in specs], [search.column]))


def last_sweep(search: Search, best: Candidate) -> Sweep:
    """Return the sweep that tests the best candidate against the default settings and the independent student:
    trained on all training images, tested on the test images, with its own seeds."""
    whole = [word for word in search.words if not word.startswith("dataset.val_fraction=")]
    alone = [word for word in whole if not word.startswith(("method=", "method.", "+method."))]
    rows = {STUDENT: [*alone, "method=none"], DEFAULT: whole}
    if best.words:
        rows[TUNED] = [*whole, *best.words]
    specs = [
        CellSpec(row, search.column, [*words, f"seed={seed}"], published=False)
        for row, words in rows.items()
        for seed in search.seeds
    ]
    shape = TableShape(list(rows), [search.column], baseline=STUDENT, against=DEFAULT)
    return Sweep(search.name, f"{search.name}: tested on all training images", specs, shape)


def score_of(cell: Cell, root: Path) -> tuple[float, float] | None:
    """Return a finished run's accuracy on the validation images, and minus its loss there as a tie-breaker; None for
    a run that failed."""
    result = result_of(cell, root)
    if result is None or cell.run is None:
        return None
    losses = [row[3] for row in RunDirectory(root / cell.run).read_metrics() if row[1:3] == ("test", "nll")]
    return float(result["top1_last"]), -losses[-1] if losses else 0.0
