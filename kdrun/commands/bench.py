"""kdrun bench: the engine against a plain PyTorch loop, side by side."""

from __future__ import annotations

import csv
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import split_arguments
from kdrun.config.compose import load
from kdrun.console import RichDisplay
from kdrun.errors import ConfigError, suggest

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

KINDS = ("train", "eval", "input")
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
METHODS = ["dataset.fake_train=50000"]  # memory banks are as large as the training set


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
    config = load([*DEFAULTS, *rest], config_dir)
    from kdrun.training.bench import rows
    from kdrun.training.bench.setup import prepare

    bench = prepare(config, own, RichDisplay())
    show(rows.COLUMNS, rows.all_lines(bench, kinds or list(KINDS)), own["save"])
    return 0


def compare_methods(kinds: list[str], words: list[str], own: dict[str, str], config_dir: str | None) -> int:
    """`kdrun bench methods`, a benchmark of its own: its first row's precision, a training set of CIFAR's size."""
    from kdrun.training.bench import methods
    from kdrun.training.bench.setup import best_precision, prepare

    if len(kinds) > 1:
        raise ConfigError("bench methods runs alone: leave the other benchmarks out.")
    names = own["methods"].split(",") if own["methods"] else []
    config = load(words, config_dir)
    bench = prepare(config, {**own, "rows": own["rows"] or best_precision(config)}, RichDisplay())
    lines = methods.lines_of(bench, names)
    show(methods.COLUMNS, lines, own["save"])
    return 0


def compare_lanes(kinds: list[str], words: list[str], own: dict[str, str]) -> int:
    """`kdrun bench lanes`."""
    from kdrun.training.bench import lanes
    from kdrun.training.bench.setup import best_precision, prepare

    config = load(words)
    bench = prepare(config, {**own, "rows": own["rows"] or best_precision(config)}, RichDisplay())
    names = own["methods"].split(",") if own["methods"] else []
    show(lanes.COLUMNS, lanes.lines_of(bench, words, names, kinds), own["save"])
    return 0


def show(columns: list[str], lines: list[list[str]], save: str) -> None:
    console.table("", columns, lines)
    if save:
        with Path(save).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])
