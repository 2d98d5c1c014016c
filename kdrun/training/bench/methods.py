"""kdrun bench methods: measure the cost of each method's step relative to plain KD's."""

from __future__ import annotations

from kdrun.config.compose import load
from kdrun.config.groups import choices
from kdrun.config.method_schema import method_of
from kdrun.errors import PairingError
from kdrun.training.bench.engine_steps import EngineSteps
from kdrun.training.bench.setup import Bench, machine, measured
from kdrun.training.bench.timing import Step

BASE = "kd"
COLUMNS = ["method", "ms a step", "over kd", "least", "greatest", "more parameters", "precision", "on"]


def lines_of(bench: Bench, names: list[str]) -> list[list[str]]:
    """Return table lines of training steps of KD and `names` (empty: all methods with a teacher), measured
    alternately; a pair that a method rejects becomes a note."""
    row = bench.rows[0]
    rows: dict[str, Step] = {}
    extra: dict[str, str] = {}
    for name in [BASE, *(name for name in names or choices("method") if name != BASE)]:
        method = load([f"method={name}"]).method
        if not method_of(method).needs_teacher:
            continue  # no teacher forward: a different kind of step
        try:
            steps = EngineSteps(bench, row, [method])
        except PairingError as error:
            bench.display.note(f"{name}: {error}")
            continue
        rows[name], extra[name] = steps.step_lanes, f"{steps.lanes[0].method.extra_parameters():,}"
    timings, on = measured(bench, rows), machine(bench)
    lines = []
    for timing in timings:
        # Rates are images per second: a slower method's ratio to KD is the inverse of its cost.
        middle, least, greatest = (1 / ratio for ratio in timing.ratio(timings[0]))
        lines.append(
            [
                timing.name,
                f"{1000 * bench.config.batch_size / timing.rate:,.0f}",
                f"{middle:.2f}",
                f"{greatest:.2f}",
                f"{least:.2f}",
                extra[timing.name],
                row.partition("-")[0],
                on,
            ]
        )
    return lines
