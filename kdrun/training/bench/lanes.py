"""kdrun bench lanes: measure how much sharing a teacher saves, and the whole machine against the plain PyTorch loop."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from kdrun.config.options import RunConfig
from kdrun.display import PlainDisplay
from kdrun.hardware import available_cores, environment
from kdrun.training.bench.engine_steps import EngineSteps, plain_arguments
from kdrun.training.bench.isolated import in_subprocess
from kdrun.training.bench.plain_loop import plain_steps
from kdrun.training.bench.setup import Bench, machine, measured, plain_precision, prepare
from kdrun.training.bench.timing import Step, Timing

METHODS = ("kd", "dkd", "dist", "fitnet_joint", "at", "srd_dist")
COLUMNS = ["what", "row", "images/s", "ratio", "least", "greatest", "precision", "on"]
ALONE, SHARED, PLAIN, WHOLE = "one after the other", "lanes", "plain loop, KD", "processes with lanes"


def bench_sharing(bench: Bench, nodes: list[dict[str, Any]]) -> list[list[str]]:
    """Measure runs one after the other against the same runs as lanes: same process, precision and threads.

    nodes: the checked nodes of their methods."""
    row = bench.rows[0]
    both = {ALONE: EngineSteps(bench, row, nodes).step_alone, SHARED: EngineSteps(bench, row, nodes).step_lanes}
    timings = measured(bench, both)
    return [line("sharing", timing, timings[0], row, bench) for timing in timings]


def line(what: str, timing: Timing, base: Timing, row: str, bench: Bench) -> list[str]:
    ratios = [f"{ratio:.2f}" for ratio in timing.ratio(base)]
    precision = plain_precision(bench) if timing.name == PLAIN else row
    return [what, timing.name, f"{timing.rate:,.0f}", *ratios, precision, machine(bench)]


def lane_steps_apart(config: RunConfig, nodes: list[dict[str, Any]], row: str, seconds: float) -> dict[str, Step]:
    """Return `run`, which trains for `seconds` on one thread and returns images per second, summed over students;
    for a process of its own."""
    bench = prepare(replace(config, threads=1), 1, 1, [row], PlainDisplay())
    steps = EngineSteps(bench, row, nodes)
    steps.step_lanes()

    def run() -> int:
        begun, images = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < seconds:
            images += steps.step_lanes()
        return round(images / spent)

    return {"run": run}


def bench_scheduler(bench: Bench, nodes: list[dict[str, Any]]) -> list[list[str]]:
    """Measure one process per core with its share of the methods, all at once, against one plain loop with all
    cores."""
    # On one GPU only a few processes: the kernels are small.
    cores = min(4, len(nodes)) if bench.device.type == "cuda" else available_cores()
    shares = [nodes[number::cores] for number in range(cores)]
    seconds, row = 6.0, bench.rows[0]
    timings = [Timing(PLAIN), Timing(WHOLE)]
    with ExitStack() as stack:
        plain = stack.enter_context(in_subprocess(plain_steps, *plain_arguments(bench)))
        stack.enter_context(environment({"OMP_NUM_THREADS": "1"}))
        processes = [
            stack.enter_context(in_subprocess(lane_steps_apart, bench.config, share, row, seconds))
            for share in shares
            if share
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(processes)))
        plain["train"]()
        for _ in bench.display.track(iter(range(bench.rounds)), bench.rounds, "whole machine"):
            begun, images = time.perf_counter(), 0
            while (spent := time.perf_counter() - begun) < seconds:
                images += plain["train"]()
            timings[0].rates.append(images / spent)
            timings[1].rates.append(sum(pool.map(lambda process: process["run"](), processes)))
    return [line("whole machine", timing, timings[0], row, bench) for timing in timings]
