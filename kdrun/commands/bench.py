"""kdrun bench: the engine against a plain PyTorch loop, side by side."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun import console
from kdrun.config.arguments import split_arguments
from kdrun.config.compose import load
from kdrun.config.schema import RunConfig
from kdrun.data.splits import ArraySet
from kdrun.errors import ConfigError, suggest
from kdrun.streams import Streams
from kdrun.training.bench.engine_steps import EngineSteps, untrained_student, untrained_teacher
from kdrun.training.build import Data, load_data, make_loaders, make_plan

if TYPE_CHECKING:
    import torch

    from kdrun.training.bench.timing import Step, Timing
    from kdrun.training.precision import Numerics

HELP = """
usage: kdrun bench [train|eval|input …|methods|lanes] [teacher=NAME student=NAME dataset=… dataset.root=… batch_size=N]
                   [rounds=N] [steps=N] [rows=fp32,bf16,bf16-compiled,fp32-compiled] [save=FILE.csv]

Measures training steps, evaluation and the input pipeline of the engine against a plain PyTorch loop (float32, NCHW,
per-image torchvision transforms, SGD as it comes) in turn, and prints the median ratio, its range over the rounds, and
the share of the convolution floor. The plain loop runs in a process of its own as anyone would run it, and once more
beside the engine, with the engine's allocator settings. Default: KD, WRN-40-2 to WRN-40-1, batch 64, made-up images,
in fp32 and in what precision=auto means here, compiled too.

kdrun bench methods [methods=crd,at,…] [rows=fp32] times every method's training step beside plain KD's instead.
kdrun bench lanes [sharing|machine] [methods=kd,dkd,…] times several methods on one teacher forward against the same
runs one after the other, and one process per core with lanes inside against the plain loop.
"""

PLAIN, TUNED = "plain loop", "plain, tuned malloc"
KINDS = ("train", "eval", "input")
LANES = ("lanes", "sharing", "machine")
ROWS = ("fp32", "bf16", "bf16-compiled", "fp32-compiled")
DEFAULT_ROWS = {"bf16": ROWS[:3], "fp32": ("fp32", "fp32-compiled")}  # by what precision=auto means
DEFAULTS = ["teacher=wrn_40_2", "student=wrn_40_1", "method=kd", "dataset=fake", "dataset.fake_train=4096",
            "dataset.fake_test=512", "dataset.fake_classes=100", "batch_size=64"]  # fmt: skip
METHODS = ["dataset.fake_train=50000"]  # memory banks are as large as the training set
TEST_IMAGES = 512  # of one evaluation pass: enough for several batches, and soon done on a CPU
COLUMNS = ["what", "row", "images/s", "ratio", "least", "greatest", "of floor", "precision", "on"]


@dataclass
class Bench:
    """What all rows of one benchmark share."""

    config: RunConfig
    data: Data
    numerics: Numerics  # fp32, uncompiled; rows replace what differs
    rounds: int
    steps: int
    rows: list[str]

    @property
    def device(self) -> torch.device:
        return self.numerics.torch_device

    def numerics_of(self, row: str) -> Numerics:
        return replace(self.numerics, precision=row.partition("-")[0], compile=row.endswith("-compiled"))


def command(words: list[str]) -> int:
    _, overrides, config_dir = split_arguments(words)
    kinds = [word for word in overrides if "=" not in word]
    known = (*KINDS, "methods", *LANES)
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"bench {kind}: no such benchmark.{suggest(kind, known)} There are: {', '.join(known)}.")
    own = {"rounds": "15", "steps": "4", "rows": "", "save": "", "methods": ""}
    if "methods" in kinds or "lanes" in kinds:
        own |= {"rounds": "7"}
    for word in overrides:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
    rest = [word for word in overrides if "=" in word and word.partition("=")[0] not in own]
    if "methods" in kinds:
        return compare_methods(kinds, [*DEFAULTS, *METHODS, *rest], own, config_dir)
    if "lanes" in kinds:
        return compare_lanes(kinds, [*DEFAULTS, "teacher=wrn_40_4", "student=wrn_16_2", *rest], own)
    bench = prepare(load([*DEFAULTS, *rest], config_dir), own)
    lines: list[list[str]] = []
    from kdrun.training.bench.isolated import apart
    from kdrun.training.bench.plain_loop import plain_steps

    arguments = plain_arguments(bench)
    tuned = plain_steps(*arguments)
    with apart(plain_steps, *arguments) as plain:
        for kind in kinds or KINDS:
            lines += {"train": bench_train, "eval": bench_eval, "input": bench_input}[kind](bench, plain, tuned)
    show(COLUMNS, lines, own["save"])
    return 0


def compare_methods(kinds: list[str], words: list[str], own: dict[str, str], config_dir: str | None) -> int:
    """`kdrun bench methods`, a benchmark of its own: its first row's precision, a training set of CIFAR's size."""
    from kdrun.training.bench import methods

    if len(kinds) > 1:
        raise ConfigError("bench methods runs alone: leave the other benchmarks out.")
    names = own["methods"].split(",") if own["methods"] else []
    config = load(words, config_dir)
    bench = prepare(config, {**own, "rows": own["rows"] or best_precision(config)})
    lines = methods.lines_of(bench, names, measured, machine(bench))
    show(methods.COLUMNS, lines, own["save"])
    return 0


def compare_lanes(kinds: list[str], words: list[str], own: dict[str, str]) -> int:
    """`kdrun bench lanes`."""
    from kdrun.training.bench import lanes

    config = load(words)
    bench = prepare(config, {**own, "rows": own["rows"] or best_precision(config)})
    names = own["methods"].split(",") if own["methods"] else []
    show(lanes.COLUMNS, lanes.lines_of(bench, words, names, kinds), own["save"])
    return 0


def show(columns: list[str], lines: list[list[str]], save: str) -> None:
    console.table("", columns, lines)
    if save:
        with Path(save).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])


def prepare(config: RunConfig, own: dict[str, str]) -> Bench:
    from kdrun.training.precision import cpu_kind, resolve

    for key in ("rounds", "steps"):
        if not own[key].isdigit() or int(own[key]) < 1:
            raise ConfigError(f"{key}={own[key]}: must be a whole number of at least 1.")
    rows = own["rows"].split(",") if own["rows"] else list(DEFAULT_ROWS[best_precision(config)])
    for row in rows:
        if row not in ROWS:
            raise ConfigError(f"rows={own['rows']}: {row} is no row.{suggest(row, ROWS)} There are: {', '.join(ROWS)}.")
    if any(row.endswith("compiled") for row in rows):
        resolve(config.device, "fp32", "true", config.threads, False)  # says so where there is no compiler
    numerics = resolve(config.device, "fp32", "false", config.threads, False).numerics
    numerics.apply()
    data = load_data(make_plan(config, []), console.track)
    if not isinstance(data.splits.train, ArraySet):
        raise ConfigError(
            f"dataset={config.dataset.name}: bench measures resident sets (cifar10, cifar100, digits, fake)."
        )
    test = data.splits.test
    data.splits = replace(data.splits, test=test.take(np.arange(min(len(test), TEST_IMAGES))))
    where = numerics.device if numerics.device.startswith("cuda") else f"CPU with {cpu_kind()}"
    console.say(
        f"[bold]{config.teacher.name} → {config.student.name}[/], {config.dataset.name} "
        f"{config.dataset.image_size} px, batch {config.batch_size}, {where}, {numerics.threads} threads, "
        f"{own['rounds']} rounds of {own['steps']} steps"
    )
    return Bench(config, data, numerics, int(own["rounds"]), int(own["steps"]), rows)


def best_precision(config: RunConfig) -> str:
    """Return what `precision=auto` means on the benchmark's device."""
    from kdrun.training.precision import resolve_device, resolve_precision

    return resolve_precision("auto", resolve_device(config.device))


def machine(bench: Bench) -> str:
    import torch

    from kdrun.training.precision import cpu_kind

    cuda = bench.device.type == "cuda"
    return torch.cuda.get_device_name(bench.device) if cuda else cpu_kind()


def measured(bench: Bench, rows: dict[str, Step]) -> list[Timing]:
    from kdrun.training.bench.timing import alternate

    total = len(rows) * (bench.rounds + 1)
    ticks = console.track(iter(range(total)), total, "measuring")
    return alternate(rows, bench.rounds, bench.steps, 3, bench.device, lambda: next(ticks, None))


def lines_of(bench: Bench, what: str, timings: list[Timing], floors: dict[str, float]) -> list[list[str]]:
    """Table lines; the first timing is the plain loop."""
    lines = []
    for timing in timings:
        middle, least, greatest = timing.ratio(timings[0])
        precision = "fp32" if timing.name in (PLAIN, TUNED) else timing.name.partition("-")[0]
        share = f"{timing.rate / floors[precision]:.0%}" if precision in floors else ""
        lines.append([what, timing.name, f"{timing.rate:,.0f}", f"{middle:.2f}", f"{least:.2f}", f"{greatest:.2f}",
                      share, precision, machine(bench)])  # fmt: skip
    return lines


def bench_train(bench: Bench, plain: dict[str, Step], tuned: dict[str, Step]) -> list[list[str]]:
    """Whole training steps, the input pipeline included."""
    import torch

    from kdrun.training.bench.conv_floor import floor_seconds, matmul_peak
    from kdrun.training.flops import count_flops

    config = bench.config
    ours = {row: EngineSteps(bench, row, [config.method]).together for row in bench.rows}
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
    peak = matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32, bench.device)
    console.note(
        f"convolution floor: {', '.join(f'{name} {rate:,.0f} images/s' for name, rate in floors.items())}; "
        f"{work / 1e6:,.0f} MFLOP per image; a large {precision} matrix product {peak / 1e12:.2f} TFLOP/s, which the "
        f"fastest row uses to {fastest.rate * work / peak:.1%}"
    )
    return lines_of(bench, "train", timings, floors)


def bench_eval(bench: Bench, plain: dict[str, Step], tuned: dict[str, Step]) -> list[list[str]]:
    """Whole passes over (the first TEST_IMAGES of) the test set."""
    rows: dict[str, Step] = {PLAIN: plain["eval"], TUNED: tuned["eval"]}
    rows |= {row: evaluation_step(bench, row) for row in bench.rows if not row.endswith("compiled")}
    return lines_of(bench, "eval", measured(bench, rows), {})


def evaluation_step(bench: Bench, row: str) -> Step:
    from kdrun.training.loop import evaluate

    numerics = bench.numerics_of(row)
    network = untrained_student(bench, numerics)
    loader = make_loaders(bench.data, bench.config.batch_size, Streams("student", 0), "same", numerics).test

    def step() -> int:
        evaluate(network.tap.model, network.tap.prepare, loader, numerics)
        return loader.num_samples

    return step


def bench_input(bench: Bench, plain: dict[str, Step], tuned: dict[str, Step]) -> list[list[str]]:
    """Batches of augmented, normalised images and nothing else."""

    loader = make_loaders(bench.data, bench.config.batch_size, Streams("student", 0), "same", bench.numerics).train

    def epoch() -> int:
        """A whole epoch, so that the permutation and the draws are counted in."""
        return sum(len(batch.label) for batch in loader.epoch(0))

    rows = {PLAIN: plain["input"], "resident": epoch}
    return lines_of(bench, "input", measured(bench, rows), {})


def plain_arguments(bench: Bench) -> tuple[Any, ...]:
    """What `plain_steps` needs: networks in PyTorch's own memory format and plain arrays."""
    import torch

    networks = untrained_student(bench, bench.numerics), untrained_teacher(bench, bench.numerics)
    models = [network.tap.model.cpu().to(memory_format=torch.contiguous_format) for network in networks]
    sets = [ArraySet(np.array(part.images[:4096]), part.labels[:4096]) for part in
            (bench.data.splits.train, bench.data.splits.test) if isinstance(part, ArraySet)]  # fmt: skip
    augment = bench.config.dataset.augment
    return (*models, *sets, bench.data.stats, augment.padding, augment.flip, bench.config.batch_size,
            bench.numerics.device, bench.numerics.threads)  # fmt: skip
