"""kdrun eval: measure the network of a run, of a stored teacher, or of a weights file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import Parsed, figures_setting, parse
from kdrun.config.compose import load
from kdrun.config.options import setting
from kdrun.display import count
from kdrun.errors import ConfigError
from kdrun.evaluation.bias import Change
from kdrun.evaluation.measure import Measured, measure
from kdrun.evaluation.targets import Target, WhichSplit, target_of_file, target_of_run
from kdrun.evaluation.testsets.base import NamedSet
from kdrun.evaluation.testsets.registry import parse_list
from kdrun.files import write_text
from kdrun.reporting.evaluation import NAMED, write_findings
from kdrun.reporting.networks import RANKS, NetworkTable
from kdrun.runs.directory import find_runs, outputs_folder, short_path

HELP = """
usage: kdrun eval RUN … [model=student|teacher] [weights=last|best] [split=test|val|train|all] [rank=kl|agreement]
                        [testset=all|NAME[:key=value,…],…] [device=… precision=… eval_batch_size=… dataset.root=…]
       kdrun eval FILE student=NAME dataset=NAME [teacher=NAME teacher.checkpoint=FILE] [save=FOLDER] [key=value …]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/. FILE is a checkpoint: safetensors,
or a torch file in the layout of RepDistiller, mdistiller or timm, or a plain state dict.

Prints top-1, top-5, negative log-likelihood (nats), expected calibration error (15 bins), precision, recall and F1 of
each class, parameters, FLOPs and images/s; with a teacher also KL(teacher ‖ student) (nats), agreement and the linear
CKA of the stages. Writes evals/<split>.json into the run (the files of a finished run are not changed), with
<split>_confusion.csv and the pictures <split>_reliability.png, _confusion.png and _cka.png; save=FOLDER writes them
there, which a FILE needs. Several runs make one table, which save=NAME.csv writes; rank=kl puts the student closest to
its teacher first, rank=agreement the one that agrees with it most often.

dataset.root=FOLDER split=all measures runs on all images of another folder, which may be flat. Results on other images
than those of a run's training get names of their own.

testset= measures on derived copies of the test images instead (kdrun list testsets), writes evals/<testset>.json, and
compares with the clean images: accuracy kept, predictions changed, KL(clean ‖ derived); for a cue conflict also the
shape bias and its coverage.
"""

WORST = 10  # number of classes printed if there are more than NAMED


@dataclass
class Options(WhichSplit):
    testset: str | None = setting(
        None, help="derived test sets to measure on (kdrun list testsets)", shows="all|NAME[:key=value,…],…"
    )
    rank: str | None = setting(None, choices=tuple(RANKS), help="measure by which to rank several students")
    save: Path | None = setting(
        None, help="folder for all results of one network, or file for the table of several", shows="FOLDER|FILE.csv"
    )
    figures: list[str] = figures_setting()


def command(words: list[str]) -> int:
    parsed = parse("eval", words, Options, passes=True)
    options, rank = parsed.options, parsed.options.rank
    testsets = chosen_sets(options.testset, options.split)
    if not parsed.names:
        raise ConfigError("eval needs a run directory, a glob, a digest or a checkpoint file (kdrun list runs).")
    if rank is not None and options.model == "teacher":
        raise ConfigError(f"rank={rank} ranks students against their teacher: leave out model=teacher.")
    if rank is not None and len(testsets) > 1:
        raise ConfigError(f"rank={rank} needs one test set, but testset= names {len(testsets)}.")
    targets = find_targets(parsed)
    if rank is not None and all(target.teacher is None for target in targets):
        raise ConfigError(f"rank={rank}: none of these has a teacher to compare with.")
    file = table_file(options.save, targets)
    every = []
    for target in targets:
        for done in measure(target, options.split, testsets, console.track, bar):
            every.append(done)
            show_scores(done)
            if len(targets) == 1 and len(testsets) < 2:
                show_details(done)
            if target.folder is not None:  # only now: another's run cannot be written
                done.files = write_findings(
                    target.folder, done.name, done.heading, done.found, done.classes, done.about, options.figures
                )
    table = NetworkTable(every, rank)
    if len(every) > 1 or rank is not None:
        show_table(table)
    if file is not None:
        write_text(file, table.to_csv())
    show_files(every, file)
    return 0


def table_file(save: Path | None, targets: list[Target]) -> Path | None:
    """Return the file for the table. Any other place is the folder of a single network's results, which it is given."""
    if save is None or save.suffix == ".csv":
        return save
    if len(targets) > 1:
        raise ConfigError(
            f"save={save}: {len(targets)} networks cannot share one folder; give one, or a file for the table "
            "(save=NAME.csv)."
        )
    targets[0].folder = save
    return None


def find_targets(parsed: Parsed[Options]) -> list[Target]:
    """Return every network given by the arguments; all are checked before the first is measured."""
    options, root = parsed.options, outputs_folder(parsed.rest.get("output_root"))
    targets = []
    for name in parsed.names:
        if Path(name).is_file():
            config = load([*parsed.overrides, f"student.checkpoint={name}", "method=none"], parsed.config_dir)
            targets.append(target_of_file(name, config, options, options.split))
        else:
            targets += [target_of_run(run, options, parsed.rest, options.split) for run in find_runs(name, root)]
    return targets


def chosen_sets(text: str | None, split: str) -> list[NamedSet]:
    """Return the derived sets of testset=; an empty list if it is not given. Raises ConfigError."""
    if text is not None and split != "test":
        raise ConfigError(f"split={split}: derived sets are made from the test images; leave out split=.")
    return [] if text is None else parse_list(text)


def bar(steps: Iterator[int], total: int, label: str) -> Iterator[int]:
    """Yield `steps` unchanged, with a progress bar on a terminal and nothing elsewhere."""
    return console.track(steps, total, label) if console.out.is_terminal else steps


def show_scores(done: Measured) -> None:
    """Print a line for the network, and one for the comparison with its teacher."""
    scores, target = done.found.scores, done.target
    console.say(
        f"{escape(target.label)}  {escape(target.options.name)} on {escape(done.place)}: "
        f"top-1 [bold]{scores['top1']:.2f} %[/]  top-5 {scores['top5']:.2f} %  NLL {scores['nll']:.4f} nats  "
        f"ECE {scores['ece']:.2f} %"
    )
    if done.change is not None:
        console.say(f"  {escape(change_words(done.change))}")
    if target.missing:
        console.note(f"  {target.label} {target.missing}; KL, agreement and CKA are left out.")
    if "kl_teacher" in scores and target.teacher is not None:
        console.say(
            f"  vs teacher {escape(target.teacher.options.name)} ({scores['teacher_top1']:.2f} % top-1): "
            f"KL(teacher ‖ student) [bold]{scores['kl_teacher']:.4f} nats[/]  "
            f"agreement [bold]{scores['agreement']:.2f} %[/]"
        )


def change_words(change: Change) -> str:
    """Return a line of comparison with the clean images: accuracy kept and lost, flips and divergence, shape bias."""
    words = [
        f"clean images {change.clean_top1:.2f} %, here {change.top1:.2f} %, a drop of "
        f"{change.clean_top1 - change.top1:.2f} points"
    ]
    chance = "no ratio: accuracy on the clean images is at chance"
    words += [chance if change.ratio is None else f"ratio {change.ratio:.3f}"]
    words += [] if change.flipped is None else [f"{change.flipped:.2f} % of predictions flip"]
    words += [] if change.kl is None else [f"KL(clean ‖ here) {change.kl:.4f} nats"]
    words += [] if change.shape_bias is None else [f"shape bias {change.shape_bias:.1f} %"]
    words += [] if change.coverage is None else [f"coverage {change.coverage:.1f} %"]
    return ", ".join(words)


def show_details(done: Measured) -> None:
    """Print the CKA of paired stages, the cost, and the classes."""
    found = done.found
    if found.similarity is not None:
        pairs = [
            f"{a}–{b} {'undefined' if value is None else f'{value:.3f}'}" for a, b, value in found.similarity.of_pairs()
        ]
        console.say(f"  CKA, student's stage – teacher's: {'  '.join(pairs)}")
    cost = found.cost
    console.say(
        f"  {cost['params']:,.0f} parameters  {count(cost['flops'])} FLOPs per image  "
        f"{cost['images_per_second']:,.0f} images/s"
    )
    classes = found.classification
    order = list(range(len(done.classes)))
    title = "classes"
    if len(order) > NAMED:
        order = sorted(order, key=lambda label: classes.f1[label])[:WORST]
        title = f"the {WORST} of {len(done.classes)} classes with the lowest F1"
    figures = [[classes.precision[label], classes.recall[label], classes.f1[label]] for label in order]
    rows = [
        [done.classes[label], f"{classes.support[label]:,}", *(f"{value:.2f}" for value in values)]
        for label, values in zip(order, figures, strict=True)
    ]
    rows.append(["macro average", f"{found.samples:,}", *(f"{value:.2f}" for value in classes.macro.values())])
    console.table(title, ["class", "images", "precision, %", "recall, %", "F1, %"], rows)


def show_table(table: NetworkTable) -> None:
    """Print a row for each network, and notes on what the figures are."""
    heads, rows, below = table.shown()
    console.say("")
    console.table("", heads, rows)
    console.note(below)
    if table.places and (count := table.number_of_teachers) > 1:
        console.note(f"note: these students have {count} different teachers; each is compared with its own.")


def show_files(every: list[Measured], table: Path | None) -> None:
    """Print the location of all files, a line for each network; if there are none, how to get them."""
    for done in every:
        if done.files:
            names = ", ".join(path.name for path in done.files)
            console.note(f"{short_path(done.files[0].parent)}/  ({names})")
    if table is not None:
        console.note(f"wrote {short_path(table)}")
    elif not any(done.files for done in every):
        several = len({id(done.target) for done in every}) > 1
        console.note("save=NAME.csv writes this table" if several else "save=FOLDER writes all results, with pictures")
