#!/usr/bin/env python3
"""Measure what makes training faster on this CPU, and what does not.

Within a part the ways take turns, round by round, in CPU time of one thread, so that other work on the machine counts
little; `processes` alone is in time on the clock and wants a quiet machine. Networks are untrained, images are random:
no time depends on either. Prints and, with `save=`, writes as Markdown: the median time, and how many times as fast as
the part's first way each is, as the median of the rounds' ratios with their range.
Usage: scripts/cpu_speed.py [parts=teacher,step,eval,denormals,lanes,views,processes] [teacher=wrn_40_2]
       [student=wrn_40_1] [rounds=7] [batch_size=64] [methods=kd,dkd,dist,fitnet_joint,at,srd_dist] [save=FILE.md]
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.compose import load
from kdrun.display import PlainDisplay
from kdrun.hardware import available_cores, cpu_kind, cpu_name, environment
from kdrun.structures import Outputs
from kdrun.training.bench.engine_steps import EngineSteps, evaluation_step, untrained_teacher
from kdrun.training.bench.isolated import in_subprocess
from kdrun.training.bench.lanes import METHODS, lane_steps_apart, nodes_of
from kdrun.training.bench.setup import Bench, prepare

Ways = dict[str, Callable[[], Any]]
VIEWS = 81 * 2  # of an image with four pixels of padding: places of the crop, flipped or not
IMAGES, CLASSES = 50_000, 100
LONG = 10  # seconds of a first call that are worth a line, such as those of the compiler


def alternate(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round, after two calls that warm up."""
    for name, way in ways.items():
        begun = time.perf_counter()
        way()
        if (spent_first := time.perf_counter() - begun) > LONG:
            print(f"{name}: {spent_first:.0f} s for the first call")
        way()
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            spent[name].append(time.process_time() - begun)
    return spent


def rows_of(part: str, spent: dict[str, list[float]]) -> list[str]:
    """Table rows of one part, whose first way is the measure of the others."""
    base = next(iter(spent.values()))
    rows = []
    for name, times in spent.items():
        ratios = [other / one for one, other in zip(times, base, strict=True)]
        spread = f"{median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}]"
        rows.append(f"| {part} | {name} | {1000 * median(times):,.0f} ms | {spread} |")
    return rows


def ways_of_teacher(model: nn.Module, image: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """A frozen network, computed in every way that PyTorch has for one."""
    import torch._inductor.config as inductor
    from torch.fx.experimental.optimization import fuse

    def anew() -> nn.Module:
        return copy.deepcopy(model)

    made: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        "as it is": anew,
        "batch norm folded (torch.fx)": lambda: fuse(anew()).to(memory_format=torch.channels_last),
        "traced and frozen": lambda: torch.jit.freeze(torch.jit.trace(anew(), image)),
        "traced, frozen, optimised": lambda: torch.jit.optimize_for_inference(
            torch.jit.freeze(torch.jit.trace(anew(), image))
        ),
        "compiled": lambda: torch.compile(anew(), dynamic=False),
        "compiled, frozen": lambda: torch.compile(anew(), dynamic=False),
    }
    ways = {}
    for name, make in made.items():
        with inductor.patch(freezing=name == "compiled, frozen"):
            try:
                ways[name] = make()
                ways[name](image)
            except Exception as error:  # each way has networks that it does not take
                ways.pop(name, None)
                print(f"{name}: {type(error).__name__}, left out")
    return ways


class LogitsAlone(nn.Module):
    """A way of computing a teacher, in the teacher's place."""

    def __init__(self, way: Callable[[Tensor], Tensor]):
        super().__init__()
        self.way = way

    def forward(self, image: Tensor) -> Outputs:
        return Outputs(self.way(image))


def teacher_ways(bench: Bench) -> tuple[Tensor, dict[str, Callable[[Tensor], Tensor]]]:
    side = bench.config.dataset.image_size
    image = torch.randn(bench.config.batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    model = untrained_teacher(bench, bench.numerics).tap.model.eval().requires_grad_(False)
    with torch.no_grad():
        return image, ways_of_teacher(model, image)


def teacher(bench: Bench, settings: dict[str, str]) -> list[str]:
    """The teacher's forward pass."""
    image, ways = teacher_ways(bench)
    with torch.no_grad():
        spent = alternate({name: lambda way=way: way(image) for name, way in ways.items()}, bench.rounds)
    return rows_of(f"forward of {bench.config.teacher.name}", spent)


def step(bench: Bench, settings: dict[str, str]) -> list[str]:
    """KD's whole training step: with the teacher in the ways that a run could use, and everything compiled."""
    _, ways = teacher_ways(bench)
    rows: Ways = {"as it is": EngineSteps(bench, "fp32", [bench.config.method]).step_lanes}
    for name in ("batch norm folded (torch.fx)", "traced, frozen, optimised"):
        if name in ways:
            changed = EngineSteps(bench, "fp32", [bench.config.method])
            changed.teacher.network.tap = LogitsAlone(ways[name]).eval()  # type: ignore[assignment]
            rows[f"teacher {name}"] = changed.step_lanes
    rows["compiled (compile=true)"] = EngineSteps(bench, "fp32-compiled", [bench.config.method]).step_lanes
    return rows_of("step of KD", alternate(rows, bench.rounds))


def evaluation(bench: Bench, settings: dict[str, str]) -> list[str]:
    """A pass over 512 test images, by eval_batch_size."""
    rows: Ways = {}
    for size in (64, 32, 128, 256, 512):
        bench.config.eval_batch_size = size
        rows[f"eval_batch_size={size}"] = evaluation_step(bench, "fp32")
    bench.config.eval_batch_size = None
    return rows_of("evaluation", alternate(rows, bench.rounds))


def denormals(bench: Bench, settings: dict[str, str]) -> list[str]:
    """Training steps with numbers below 1e-38 taken for zero; how many there are after 200 steps on the digits."""
    steps = EngineSteps(bench, "fp32", [bench.config.method]).step_lanes

    def flushed() -> None:
        torch.set_flush_denormal(True)
        steps()
        torch.set_flush_denormal(False)

    rows = rows_of("step of KD", alternate({"as it is": steps, "denormals flushed": flushed}, bench.rounds))
    digits = EngineSteps(
        prepare(load(["threads=1", "device=cpu"]), 1, 1, ["fp32"], PlainDisplay()), "fp32", nodes_of(["kd"])
    )
    for _ in range(200):
        digits.step_lanes()
    lane = digits.lanes[0]
    kept = [moment for state in lane.optimizer.state.values() for moment in state.values() if torch.is_tensor(moment)]
    numbers = torch.cat([tensor.detach().flatten().float() for tensor in (*lane.model.state_dict().values(), *kept)])
    few = int(((numbers != 0) & (numbers.abs() < torch.finfo(torch.float32).tiny)).sum())
    return [*rows, f"| denormals | weights and momenta of digits, 200 steps | {few:,} of {len(numbers):,} | |"]


def lanes(bench: Bench, settings: dict[str, str]) -> list[str]:
    """Methods that share the teacher's pass, beside the same one after the other."""
    methods = settings.get("methods", ",".join(METHODS)).split(",")
    nodes = nodes_of(methods)
    rows: Ways = {
        "one after the other": EngineSteps(bench, "fp32", nodes).step_alone,
        "lanes": EngineSteps(bench, "fp32", nodes).step_lanes,
    }
    return rows_of(f"{len(methods)} methods, {bench.config.teacher.name}", alternate(rows, bench.rounds))


def views(bench: Bench, settings: dict[str, str]) -> list[str]:
    """Return what remembering the teacher's logits of every view would gain.

    That follows from the teacher's share of a step, and from how often a view comes again.
    """
    steps = EngineSteps(bench, "fp32", [bench.config.method])
    image = next(steps.loaders.train.epoch(0)).teacher_image
    spent = alternate({"step": steps.step_lanes, "teacher": lambda: steps.teacher(image)}, bench.rounds)
    share = median(one / whole for one, whole in zip(spent["teacher"], spent["step"], strict=True))
    rows = [f"| views | teacher's share of a step of KD | {share:.0%} | |"]
    for epochs, seeds in ((20, 1), (60, 1), (240, 1), (20, 5), (60, 5), (240, 5)):
        every = epochs * seeds
        again = 1 - VIEWS * (1 - (1 - 1 / VIEWS) ** every) / every
        rows.append(
            f"| views | {epochs} epochs, {seeds} seeds: seen before | {again:.0%} | at most "
            f"{1 / (1 - share * again):.2f} |"
        )
    size = IMAGES * VIEWS * CLASSES * 4 / 1e9
    return [
        *rows,
        f"| views | logits of {IMAGES:,} images in {VIEWS} views, {CLASSES} classes, fp32 | {size:.2f} GB | |",
    ]


def processes(bench: Bench, settings: dict[str, str]) -> list[str]:
    """Images per second on the clock of one process with all cores, and of one process for each core."""
    cores, seconds = available_cores(), 6.0
    words = [word for word in words_of(settings) if not word.startswith("threads=")]
    paces: dict[str, list[float]] = {}
    with ExitStack() as stack:

        def started(threads: int, count: int) -> list[Callable[[], int]]:
            given = ([*words, f"threads={threads}"], ["kd"], "fp32", seconds)
            with environment({"OMP_NUM_THREADS": str(threads)}):
                return [stack.enter_context(in_subprocess(lane_steps_apart, *given))["run"] for _ in range(count)]

        ways = {f"1 process, {cores} threads": started(cores, 1), f"{cores} processes, 1 thread": started(1, cores)}
        pool = stack.enter_context(ThreadPoolExecutor(cores))
        for _ in range(bench.rounds):
            for name, runs in ways.items():
                paces.setdefault(name, []).append(sum(pool.map(lambda run: run(), runs)))
    base = next(iter(paces.values()))
    rows = []
    for name, found in paces.items():
        ratios = [one / other for one, other in zip(found, base, strict=True)]
        rows.append(
            f"| whole machine, KD | {name} | {median(found):,.0f} images/s | {median(ratios):.2f} "
            f"[{min(ratios):.2f}–{max(ratios):.2f}] |"
        )
    return rows


PARTS = {
    "teacher": teacher,
    "step": step,
    "eval": evaluation,
    "denormals": denormals,
    "lanes": lanes,
    "views": views,
    "processes": processes,
}


def words_of(settings: dict[str, str]) -> list[str]:
    """The overrides of a run on random images of CIFAR's size."""
    return [
        f"teacher={settings.get('teacher', 'wrn_40_2')}",
        f"student={settings.get('student', 'wrn_40_1')}",
        f"batch_size={settings.get('batch_size', '64')}",
        *("dataset=fake", "dataset.fake_classes=100", "dataset.image_size=32", "dataset.fake_train=2048"),
        *("dataset.fake_test=512", "method=kd", "device=cpu", "threads=1"),
    ]


def main(words: list[str]) -> None:
    warnings.filterwarnings("ignore")
    settings = dict(word.split("=", 1) for word in words)
    bench = prepare(load(words_of(settings)), int(settings.get("rounds", 7)), 1, ["fp32"], PlainDisplay())
    rows = []
    for part in settings.get("parts", ",".join(PARTS)).split(","):
        rows += PARTS[part](bench, settings)
        print("\n".join(rows[-8:]), flush=True)
    config = bench.config
    lines = [
        f"## {config.teacher.name} → {config.student.name}",
        "",
        f"`scripts/cpu_speed.py {' '.join(words)}`",
        "",
        f"CIFAR-sized images, batches of {config.batch_size}, fp32, {bench.rounds} rounds in turn. {cpu_name()} "
        f"({cpu_kind()}), {available_cores()} cores; PyTorch {torch.__version__}.",
        "",
        "| what | how | time | times as fast: median [range] of rounds |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    print("\n".join(lines))
    if "save" in settings:
        with Path(settings["save"]).open("a") as file:
            file.write("\n".join(["", *lines]))


if __name__ == "__main__":
    main(sys.argv[1:])
