"""kdrun bench: compare the engine's speed with a plain PyTorch loop."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import parse
from kdrun.config.compose import load
from kdrun.config.options import setting
from kdrun.console.screen import RichDisplay
from kdrun.errors import ConfigError, RunError, suggest

HELP = """
usage: kdrun bench [train|eval|input …|methods|lanes] [teacher=NAME student=NAME dataset=… dataset.root=… batch_size=N]
                   [rounds=N] [steps=N] [rows=fp32,bf16-compiled,bf16-graphs,…] [save=FILE.csv]

Measures training steps, evaluation and the input pipeline of kdrun and of a plain PyTorch loop (float32, NCHW,
per-image torchvision transforms, default SGD) alternately. Prints the median ratio, its range over the rounds, and the
share of the time that the convolutions alone would take. The plain loop runs in a process of its own with default
settings, and once more in kdrun's process, with kdrun's allocator settings. Default: KD, WRN-40-2 to WRN-40-1, batch
64, synthetic images, in fp32 and in the precision of precision=auto on this machine, also compiled.

kdrun bench methods [methods=crd,at,…] [rows=fp32] compares every method's training step with plain KD's instead.
kdrun bench lanes [sharing|machine] [methods=kd,dkd,…] compares several methods on one teacher forward with the same
runs one after the other, and one process per core with lanes inside with the plain loop.
"""

KINDS = ("train", "eval", "input")
ROWS = tuple(f"{name}{how}" for name in ("fp32", "tf32", "bf16") for how in ("", "-compiled", "-graphs"))
LANES = ("lanes", "sharing", "machine")
DEFAULTS = [
    "teacher=wrn_40_2",
    "student=wrn_40_1",
    "method=kd",
    "dataset=fake",
    "dataset.fake_train=4096",
    "dataset.fake_test=512",
    "dataset.fake_classes=100",
    "batch_size=64",
]
METHODS = ["dataset.fake_train=50000"]  # memory banks have the size of the training set


@dataclass
class Options:
    rounds: int | None = setting(None, low=1, high=1000, help="rounds over all rows: 15, or 7 for methods and lanes")
    steps: int = setting(4, low=1, high=10_000, help="training steps per row and round")
    rows: list[str] = setting([], choices=ROWS, help="precisions; default: those of precision=auto on this machine")
    methods: list[str] = setting([], help="methods for bench methods and bench lanes")
    save: Path | None = setting(None, suffixes=(".csv",), help="also write the table")


def command(words: list[str]) -> int:
    parsed = parse("bench", words, Options, passes=True)
    kinds, options = parsed.names, parsed.options
    known = (*KINDS, "methods", *LANES)
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"bench {kind}: no such benchmark.{suggest(kind, known)} Available: {', '.join(known)}.")
    if "methods" in kinds and len(kinds) > 1:
        raise ConfigError("bench methods runs alone: leave out the other benchmarks.")
    words = [*DEFAULTS, *parsed.overrides]
    if "methods" in kinds:
        words = [*DEFAULTS, *METHODS, *parsed.overrides]
    elif "lanes" in kinds:
        words = [*DEFAULTS, "teacher=wrn_40_4", "student=wrn_16_2", *parsed.overrides]
    config = load(words, parsed.config_dir)
    from kdrun.training.bench import lanes, methods, rows
    from kdrun.training.bench.setup import best_precision, default_rows, prepare

    apart = "methods" in kinds or "lanes" in kinds
    chosen = options.rows or ([best_precision(config)] if apart else default_rows(config))
    bench = prepare(config, options.rounds or (7 if apart else 15), options.steps, chosen, RichDisplay())
    if "methods" in kinds:
        show(methods.COLUMNS, methods.lines_of(bench, options.methods), options.save)
    elif "lanes" in kinds:
        show(lanes.COLUMNS, lanes.lines_of(bench, words, options.methods, kinds), options.save)
    else:
        show(rows.COLUMNS, rows.all_lines(bench, kinds or list(KINDS)), options.save)
    if bench.dropped:
        raise RunError(f"not measured: {', '.join(dict.fromkeys(bench.dropped))}; the notes above say why.")
    return 0


def show(columns: list[str], lines: list[list[str]], save: Path | None) -> None:
    console.table("", columns, lines)
    if save is not None:
        with save.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])
