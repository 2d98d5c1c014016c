"""kdrun bench: compare the engine's speed with a plain PyTorch loop."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun import console
from kdrun.config.arguments import Parsed, parse
from kdrun.config.compose import load
from kdrun.config.groups import choices
from kdrun.config.options import setting
from kdrun.console.screen import RichDisplay
from kdrun.errors import ConfigError, RunError, suggest

if TYPE_CHECKING:
    from kdrun.training.bench.setup import Bench

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
SHARING = ["teacher=wrn_40_4", "student=wrn_16_2"]  # a teacher that costs more than its students


@dataclass
class Options:
    rounds: int | None = setting(None, low=1, high=1000, help="rounds over all rows: 15, or 7 for methods and lanes")
    steps: int = setting(4, low=1, high=10_000, help="training steps per row and round")
    rows: list[str] = setting([], choices=ROWS, help="precisions; default: those of precision=auto on this machine")
    methods: list[str] = setting([], help="methods for bench methods and bench lanes")
    save: Path | None = setting(None, suffixes=(".csv",), help="also write the table")


def command(words: list[str]) -> int:
    parsed = parse("bench", words, Options, passes=True)
    kind = table_of(parsed.names)
    if parsed.options.methods and kind == "rows":
        raise ConfigError("methods= applies to bench methods and bench lanes only: leave it out, or use method=.")
    from kdrun.training.bench import lanes, methods, rows

    if kind == "methods":
        nodes = nodes_of(["kd", *(parsed.options.methods or choices("method", parsed.config_dir))], parsed)
        benches = [prepared(parsed, kind, METHODS)]
        columns, lines = methods.COLUMNS, methods.lines_of(benches[0], nodes)
    elif kind == "lanes":
        nodes = nodes_of(parsed.options.methods or lanes.METHODS, parsed)
        if len(nodes) < 2:
            raise ConfigError(f"methods={next(iter(nodes))}: lanes need at least two methods.")
        benches, columns, lines = [], lanes.COLUMNS, []
        if "machine" not in parsed.names:
            benches.append(prepared(parsed, kind, SHARING))
            lines += lanes.bench_sharing(benches[-1], list(nodes.values()))
        if "sharing" not in parsed.names:
            benches.append(prepared(parsed, kind, []))
            lines += lanes.bench_scheduler(benches[-1], list(nodes.values()))
    else:
        benches = [prepared(parsed, kind, [])]
        columns, lines = rows.COLUMNS, rows.all_lines(benches[0], parsed.names or list(KINDS))
    show(columns, lines, parsed.options.save)
    dropped = [row for bench in benches for row in bench.dropped]
    if dropped:
        raise RunError(f"not measured: {', '.join(dict.fromkeys(dropped))}; the notes above say why.")
    return 0


def table_of(kinds: list[str]) -> str:
    """Return which table the benchmarks share: rows, methods or lanes. Raises ConfigError if they share none."""
    tables = {"methods": "methods"} | dict.fromkeys(LANES, "lanes") | dict.fromkeys(KINDS, "rows")
    for kind in kinds:
        if kind not in tables:
            known = (*KINDS, "methods", *LANES)
            raise ConfigError(f"bench {kind}: no such benchmark.{suggest(kind, known)} Available: {', '.join(known)}.")
    found = sorted({tables[kind] for kind in kinds}) or ["rows"]
    if len(found) > 1:
        raise ConfigError(f"bench {found[0]} runs alone: leave out the other benchmarks.")
    return found[0]


def nodes_of(names: Sequence[str], parsed: Parsed[Options]) -> dict[str, dict[str, Any]]:
    """Return name -> checked node of each method. Raises ConfigError."""
    nodes = {}
    for name in names:
        try:
            nodes[name] = load([f"method={name}"], parsed.config_dir).method
        except ConfigError as error:
            raise ConfigError(f"methods={name}: {str(error).removeprefix(f'method={name}: ')}") from error
    return nodes


def prepared(parsed: Parsed[Options], kind: str, words: list[str]) -> Bench:
    """Return the setup of a table of this kind, with `words` as its defaults. Raises ConfigError."""
    from kdrun.training.bench.setup import best_precision, default_rows, prepare

    options = parsed.options
    config = load([*DEFAULTS, *words, *parsed.overrides], parsed.config_dir)
    rounds, usual = (15, default_rows(config)) if kind == "rows" else (7, [best_precision(config)])
    return prepare(config, options.rounds or rounds, options.steps, options.rows or usual, RichDisplay())


def show(columns: list[str], lines: list[list[str]], save: Path | None) -> None:
    console.table("", columns, lines)
    if save is not None:
        with save.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])
