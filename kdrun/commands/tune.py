"""kdrun tune: search better settings of a method on validation images, and test them once."""

from __future__ import annotations

import csv
import io
import shlex
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import parse
from kdrun.config.compose import load
from kdrun.config.options import RunConfig, setting
from kdrun.config.words import seeds_of
from kdrun.console.screen import RichDisplay
from kdrun.display import plural
from kdrun.errors import ConfigError
from kdrun.files import write_text
from kdrun.reporting.table import Entry, table_of
from kdrun.runs.directory import short_path
from kdrun.runs.identity import digest_of, slug
from kdrun.runs.ledger import changes_numbers, check_name, read_ledger
from kdrun.runs.plan import output_root
from kdrun.sweeps.definition import Sweep
from kdrun.sweeps.launcher import split_launcher
from kdrun.sweeps.run import run_sweep
from kdrun.sweeps.space import candidates, split_searched, typed, usual
from kdrun.sweeps.tuning import (
    DEFAULT,
    STUDENT,
    TUNED,
    Candidate,
    Search,
    choose,
    find_best,
    held_out,
    last_sweep,
    rounds,
)

HELP = """
usage: kdrun tune method=NAME ['KEY=interval(LOW,HIGH)'] [KEY=VALUE,VALUE] [seed=0,1,2] [key=value …]

Searches better settings of a method by successive halving: all candidates train for a short time, as lanes on one
teacher forward; the best third train three times as long, and so on, up to three at full length. Candidates are
compared on a fifth of the training images (dataset.val_fraction=0.2), which neither they nor their teacher train on;
the test images stay unseen. If the best beats the default settings there by more than one standard error, then it, the
default settings and the student alone train on all training images, with seeds that the search did not use, and are
tested. The same command shows the result again, and continues an interrupted search.

  kdrun tune method=kd                              temperature and weights around their defaults
  kdrun tune method=dkd 'method.temperature=interval(1,8)' method.nckd_weight=1,2,4,8 'optimizer.lr=interval(0.01,0.1)'

An interval is searched on a logarithmic scale if LOW is above 0. Without any, every temperature is searched from a
quarter to four times its default, and every weight but ce_weight from an eighth to eight times. 27 candidates cost
about as much as nine runs; after them come two or three runs for each seed, and two teachers: one for each set of
training images. All other settings are those of kdrun train, including launcher=.
"""


@dataclass
class Options:
    candidates: int = setting(27, low=2, high=10_000, help="number of candidate settings, including the default ones")
    name: str | None = setting(None, help="name of the search in kdrun table, status and report")


def command(words: list[str]) -> int:
    parsed = parse("tune", words, Options, passes=True)
    if "dry_run" in parsed.rest:
        raise ConfigError(
            "tune has no dry_run: the results of one round choose the next. kdrun train dry_run=true measures one run."
        )
    launcher, overrides = split_launcher([*parsed.names, *parsed.overrides])
    seeds, overrides = seeds_of(overrides)
    dimensions, fixed = split_searched(overrides, parsed.config_dir)
    config = load(fixed, parsed.config_dir)
    dimensions = typed(dimensions or usual(config), config)
    for share in (0, 0.999):  # reports an unknown name, or a bound out of range, in one line
        load([*fixed, *(one.at(share) for one in dimensions)], parsed.config_dir)
    name = check_name(parsed.options.name) if parsed.options.name else default_name(config, overrides, seeds)
    search = Search(name, config, fixed, seeds, parsed.config_dir)
    tried = [Candidate(one) for one in candidates(dimensions, parsed.options.candidates, max(seeds) + 1)]
    show_plan(search, tried, [one.described for one in dimensions])
    display, shown = RichDisplay(name_runs=True), f"kdrun tune {shlex.join(words)}"

    def run(sweep: Sweep) -> int:
        return run_sweep(sweep, launcher, shown, parsed.config_dir, display)

    root = output_root(config)
    ranked, code = find_best(search, tried, run, root, console.note)
    if code is not None:
        return code
    show_search(tried, save_search(tried, [one.key for one in dimensions], root / "sweeps" / name / "search.csv"))
    images = held_out(search)
    best = choose(ranked, images)
    if best is not ranked[0]:
        console.note(
            f"{ranked[0].name} is not better than the default settings by more than one standard error on the "
            f"{plural(images, 'validation image')}, so the default settings are kept; more images detect smaller "
            "differences: dataset.val_fraction=0.4"
        )
    last = last_sweep(search, best)
    code = run(last)
    show_outcome(last, best, root)
    return code


def default_name(config: RunConfig, overrides: list[str], seeds: list[int]) -> str:
    """Return the default name of a search: from the method and the other settings."""
    changing = sorted(word for word in overrides if changes_numbers(word.partition("=")[0]))
    return f"tune-{slug(str(config.method['_name_']))}-{digest_of([changing, seeds])[:8]}"


def show_plan(search: Search, tried: list[Candidate], searched: list[str]) -> None:
    """Print what will be trained."""
    parts = [f"{count} × {epochs}" for count, epochs in rounds(len(tried), search.config.epochs)]
    console.fact(search.name, f" {', '.join(searched)}")
    console.fact("search:", f"candidates × epochs on validation images: {', '.join(parts)}")
    if search.config.teacher.checkpoint is not None:
        console.note(
            "note: if the teacher's checkpoint was trained on the images held out here, it has memorised their "
            "labels, and settings that rely on it will look better than they are."
        )


def save_search(tried: list[Candidate], keys: list[str], place: Path) -> Path:
    """Write every candidate with its settings and its scores in each round; return the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lengths = lengths_of(tried)
    writer.writerow([*keys, *(f"{value}_{epochs}_epochs" for epochs in lengths for value in ("top1", "nll"))])
    for one in in_order(tried):
        given = dict(word.split("=", 1) for word in one.words)
        scores = [one.scores.get(epochs) for epochs in lengths]
        figures = [f"{value:.6g}" for pair in scores if pair for value in (pair[0], -pair[1])]
        writer.writerow([*(given.get(key, "default") for key in keys), *figures])
    write_text(place, text.getvalue())
    return place


def lengths_of(tried: list[Candidate]) -> list[int]:
    """Return the lengths of the rounds in epochs, the shortest first."""
    return sorted({epochs for one in tried for epochs in one.scores})


def in_order(tried: list[Candidate]) -> list[Candidate]:
    """Return the candidates, those that reached the longest round first, by score."""
    return sorted(tried, key=lambda one: max(one.scores.items(), default=(0, (0.0, 0.0))), reverse=True)


def show_search(tried: list[Candidate], place: Path) -> None:
    """Print every candidate's accuracy on the validation images."""
    lengths = lengths_of(tried)
    rows = [
        [one.name, *(f"{one.scores[epochs][0]:.2f}" if epochs in one.scores else "" for epochs in lengths)]
        for one in in_order(tried)
    ]
    console.table("validation top-1, %", ["settings", *(plural(epochs, "epoch") for epochs in lengths)], rows)
    console.note(f"wrote {short_path(place)}")


def show_outcome(last: Sweep, best: Candidate, root: Path) -> None:
    """Print the results on the test images."""
    table = table_of(read_ledger(root, last.name), root)
    entries = {row: table.entries[row, column] for row in table.rows for column in table.columns}
    for row in (STUDENT, DEFAULT, TUNED):
        if row in entries and entries[row].mean is not None:
            words = f" ({' '.join(best.words)})" if row == TUNED else ""
            console.fact(f"{row}:", f"{accuracy(entries[row])}{words}")
    if not best.words:
        console.say("No candidate is clearly better than the default settings: keep them.")
        return
    test = entries[TUNED].test
    if test is None:
        return
    interval = "" if test.low is None else f", 95 % interval {test.low:+.2f} to {test.high:+.2f}"
    told = "" if test.distinguishable else "; not significant with these seeds"
    console.fact("difference:", f"{test.difference:+.2f} points against the default settings{interval}{told}")
    if test.difference <= 0:
        console.say("The candidate is not better on the test images: keep the default settings.")
        return
    words = next(spec.overrides for spec in last.specs if spec.row == TUNED)
    console.fact("command:", f"kdrun train {shlex.join(words)}")


def accuracy(entry: Entry) -> str:
    """Return mean, spread and number of seeds as text."""
    spread = "" if entry.std is None else f" ± {entry.std:.2f}"
    return f"{entry.mean:.2f}{spread} % on the test images, {plural(len(entry.values), 'seed')}"
