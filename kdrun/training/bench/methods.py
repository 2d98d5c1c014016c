"""kdrun bench methods: measure the cost of each method's step relative to plain KD's."""

from __future__ import annotations

from typing import Any

from kdrun.config.method_schema import method_of
from kdrun.errors import PairingError
from kdrun.training.bench.engine_steps import EngineSteps
from kdrun.training.bench.setup import Bench, machine, measured
from kdrun.training.bench.timing import Step

COLUMNS = ["method", "ms a step", "over kd", "least", "greatest", "more parameters", "precision", "on"]


def lines_of(bench: Bench, nodes: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return table lines of the training steps of methods, measured alternately and relative to the first.

    nodes: their names and checked nodes. Without a teacher's pass a step is of another kind: such a method is left
    out. A pair that a method rejects becomes a note."""
    row = bench.rows[0]
    rows: dict[str, Step] = {}
    extra: dict[str, str] = {}
    for name, method in nodes.items():
        if not method_of(method).needs_teacher:
            bench.display.note(f"{name}: left out: it has no teacher.")
            continue
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
