"""Shared setup of a benchmark's rows: configuration, data, numerics, and alternating timing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from kdrun.config.options import RunConfig
from kdrun.data.splits import ArraySet
from kdrun.display import Display, plural
from kdrun.errors import ConfigError, out_of_memory, reason_of
from kdrun.hardware import cpu_kind
from kdrun.runs.plan import make_plan
from kdrun.training.bench.timing import Step, Timing, alternate
from kdrun.training.build import Data, load_data
from kdrun.training.graphs import WARM
from kdrun.training.precision import Numerics, resolve, resolve_device, resolve_precision

TEST_IMAGES = 512  # per evaluation pass: enough for several batches, and quick on a CPU


@dataclass
class Bench:
    """Setup shared by all rows of one benchmark."""

    config: RunConfig
    data: Data
    numerics: Numerics  # fp32, uncompiled; rows override this
    rounds: int
    steps: int
    rows: list[str]
    display: Display
    dropped: list[str] = field(default_factory=list)  # names of rows that failed

    @property
    def device(self) -> torch.device:
        return self.numerics.torch_device

    def numerics_of(self, row: str) -> Numerics:
        precision, *how = row.split("-")
        return replace(self.numerics, precision=precision, compile="compiled" in how, graphs="graphs" in how)

    @contextmanager
    def arithmetic(self, numerics: Numerics) -> Iterator[None]:
        """Switch to a row's arithmetic and back: of what is set for the process, rows differ in TF32 alone."""
        numerics.apply_tf32()
        try:
            yield
        finally:
            self.numerics.apply_tf32()


def prepare(config: RunConfig, rounds: int, steps: int, rows: list[str], display: Display) -> Bench:
    """Load the data and resolve the numerics. Raises ConfigError."""
    if any(row.endswith("compiled") for row in rows):
        resolve(config.device, "fp32", "true", config.threads, False)  # raises an error if there is no compiler
    place = resolve_device(config.device)
    for row in rows:
        if not place.startswith("cuda") and (row.startswith("tf32") or row.endswith("graphs")):
            raise ConfigError(f"rows={row}: needs a GPU, but this runs on {place}; leave it out.")
    numerics = resolve(config.device, "fp32", "false", config.threads, False).numerics
    numerics.apply()
    data = load_data(make_plan(config, []), display.track)
    if not isinstance(data.splits.train, ArraySet):
        raise ConfigError(
            f"dataset={config.dataset.name}: bench measures resident sets (cifar10, cifar100, digits, fake)."
        )
    test = data.splits.test
    data.splits = replace(data.splits, test=test.take(np.arange(min(len(test), TEST_IMAGES))))
    where = numerics.device if numerics.device.startswith("cuda") else f"CPU with {cpu_kind()}"
    display.fact(
        f"{config.teacher.name} → {config.student.name}",
        f"{config.dataset.name} {config.dataset.image_size} px, batch {config.batch_size}, {where}, "
        f"{plural(numerics.threads, 'thread')}, {plural(rounds, 'round')} of {plural(steps, 'step')}",
    )
    return Bench(config, data, numerics, rounds, steps, rows, display)


def plain_precision(bench: Bench) -> str:
    """Return the precision of the plain loop in its own process: PyTorch's defaults, by which a GPU convolves in
    TF32."""
    return "fp32, convolutions tf32" if bench.device.type == "cuda" else "fp32"


def best_precision(config: RunConfig) -> str:
    """Return the precision that `precision=auto` means on the benchmark's device."""
    return resolve_precision("auto", resolve_device(config.device))


def default_rows(config: RunConfig) -> list[str]:
    """Return the rows for `precision=auto` on the benchmark's device."""
    return ["fp32", "bf16", "bf16-compiled"] if best_precision(config) == "bf16" else ["fp32", "fp32-compiled"]


def machine(bench: Bench) -> str:
    """Return the name of the GPU or the kind of the CPU."""
    cuda = bench.device.type == "cuda"
    return torch.cuda.get_device_name(bench.device) if cuda else cpu_kind()


def measured(bench: Bench, rows: dict[str, Step]) -> list[Timing]:
    """Time `rows` alternately, with progress on the display. A row that fails becomes a note."""

    def drop(name: str, error: Exception) -> None:
        bench.dropped.append(name)
        bench.display.note(f"{name}: not measured: {out_of_memory(error) or reason_of(error)}")

    total = len(rows) * (bench.rounds + 1)
    ticks = bench.display.track(iter(range(total)), total, "measuring")
    return alternate(rows, bench.rounds, bench.steps, WARM + 2, bench.device, lambda: next(ticks, None), drop)
