"""kdrun bench train, eval and input: measure the engine's rows against those of the plain loop."""

from __future__ import annotations

import copy

import torch

from kdrun.streams import Streams
from kdrun.training.bench.conv_floor import floor_seconds, matmul_peak
from kdrun.training.bench.engine_steps import (
    EngineSteps,
    evaluation_step,
    plain_arguments,
    untrained_student,
    untrained_teacher,
)
from kdrun.training.bench.isolated import in_subprocess
from kdrun.training.bench.plain_loop import plain_steps
from kdrun.training.bench.setup import Bench, machine, measured, plain_precision
from kdrun.training.bench.timing import Step, Timing
from kdrun.training.build import make_loaders
from kdrun.training.cost import count_flops

PLAIN, TUNED = "plain loop", "plain, tuned malloc"
COLUMNS = ["what", "row", "images/s", "ratio", "least", "greatest", "of floor", "precision", "on"]


def all_lines(bench: Bench, kinds: list[str]) -> list[list[str]]:
    """Measure every kind and return the table's lines."""
    arguments = plain_arguments(bench)
    tuned = plain_steps(*copy.deepcopy(arguments))  # the other process trains its own networks
    lines: list[list[str]] = []
    with in_subprocess(plain_steps, *arguments) as plain:
        for kind in kinds:
            lines += {"train": train_lines, "eval": eval_lines, "input": input_lines}[kind](bench, plain, tuned)
    return lines


def lines_of(bench: Bench, what: str, timings: list[Timing], floors: dict[str, float]) -> list[list[str]]:
    """Return table lines; the first timing is the plain loop."""
    lines = []
    for timing in timings:
        middle, least, greatest = timing.ratio(timings[0])
        precision = precision_of(bench, timing.name)
        share = f"{timing.rate / floors[precision]:.0%}" if precision in floors else ""
        lines.append(
            [
                what,
                timing.name,
                f"{timing.rate:,.0f}",
                f"{middle:.2f}",
                f"{least:.2f}",
                f"{greatest:.2f}",
                share,
                precision,
                machine(bench),
            ]
        )
    return lines


def precision_of(bench: Bench, row: str) -> str:
    """Return a row's precision. In kdrun's process the plain loop has kdrun's fp32."""
    if row == PLAIN:
        return plain_precision(bench)
    return "fp32" if row == TUNED else row.partition("-")[0]


def train_lines(bench: Bench, plain: dict[str, Step], tuned: dict[str, Step]) -> list[list[str]]:
    """Measure whole training steps, including the input pipeline."""
    config = bench.config
    ours = {row: EngineSteps(bench, row, [config.method]).step_lanes for row in bench.rows}
    timings = measured(bench, {PLAIN: plain["train"], TUNED: tuned["train"], **ours})
    student, teacher = untrained_student(bench, bench.numerics), untrained_teacher(bench, bench.numerics)
    floors, side = {}, config.dataset.image_size
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        if any(row.startswith(precision) for row in bench.rows):
            size = (config.batch_size, side, dtype, bench.device)
            seconds = floor_seconds(teacher.tap.model, *size, False) + floor_seconds(student.tap.model, *size, True)
            floors[precision] = config.batch_size / seconds
    work = count_flops(teacher.tap.model, side) + 3 * count_flops(student.tap.model, side)
    fastest = max(timings, key=lambda timing: timing.rate)
    precision = "bf16" if fastest.name.startswith("bf16") else "fp32"
    with bench.arithmetic(bench.numerics_of(fastest.name) if fastest.name in bench.rows else bench.numerics):
        peak = matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32, bench.device)
    bench.display.note(
        f"convolution floor: {', '.join(f'{name} {rate:,.0f} images/s' for name, rate in floors.items())}; "
        f"{work / 1e6:,.0f} MFLOP per image; a large {precision} matrix product {peak / 1e12:.2f} TFLOP/s, which the "
        f"fastest row uses to {fastest.rate * work / peak:.1%}"
    )
    return lines_of(bench, "train", timings, floors)


def eval_lines(bench: Bench, plain: dict[str, Step], tuned: dict[str, Step]) -> list[list[str]]:
    """Measure whole passes over (the first TEST_IMAGES of) the test set."""
    rows: dict[str, Step] = {PLAIN: plain["eval"], TUNED: tuned["eval"]}
    rows |= {row: evaluation_step(bench, row) for row in bench.rows if "-" not in row}
    return lines_of(bench, "eval", measured(bench, rows), {})


def input_lines(bench: Bench, plain: dict[str, Step], tuned: dict[str, Step]) -> list[list[str]]:
    """Measure only batches of augmented, normalised images."""
    loader = make_loaders(bench.data, bench.config.batch_size, Streams("student", 0), "same", bench.numerics).train

    def epoch() -> int:
        """Run a whole epoch, to include the permutation and the draws."""
        return sum(len(batch.label) for batch in loader.epoch(0))

    rows = {PLAIN: plain["input"], "resident": epoch}
    return lines_of(bench, "input", measured(bench, rows), {})
