"""kdrun diagnose: why distillation does not help in a run, in plain words with the figures behind them."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import output_root_setting, parse
from kdrun.config.options import setting
from kdrun.display import count
from kdrun.errors import CheckpointError, ConfigError
from kdrun.evaluation.findings import Finding, findings_of, verdict_of
from kdrun.evaluation.targets import PASSED, Which, target_of_run
from kdrun.files import read_json, write_json
from kdrun.runs.directory import RunDirectory, find_runs, outputs_folder, short_path

if TYPE_CHECKING:
    from kdrun.evaluation.diagnosis import Diagnosis

HELP = """
usage: kdrun diagnose RUN … [device=cpu] [dataset.root=…]

Why does distillation not help here? Of a run, finished or failed: what the teacher knows (accuracy on the test and on
training images, confidence), what the temperature leaves of its ranking, how large each loss term and its gradient are
and whether gradients pull together, at the start and at the end of training, and how the run stands beside independent
students of the same settings. Then what is wrong, in plain words, the gravest first, each with the figure that says so
and the command to try next; nothing, where nothing is found. Written into evals/diagnosis.json of the run too.
"""


@dataclass
class Options:
    trust: bool = setting(False, help="run the code of its own that a run from elsewhere names")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("diagnose", words, Options, passes=PASSED)
    if not parsed.names:
        raise ConfigError("diagnose which run? Give a run directory or a digest: kdrun list runs.")
    root = outputs_folder(parsed.options.output_root)
    for run in [run for name in parsed.names for run in find_runs(name, root)]:
        one(run, parsed.options, parsed.rest)
    return 0


def one(run: Path, options: Options, settings: dict[str, str]) -> None:
    """Measure one run, show what is found, and write it down."""
    target = target_of_run(run, Which(trust=options.trust), settings, finished=False)
    if (run / "teacher.safetensors").is_file():
        raise ConfigError(f"{run} is a stored teacher, which learned from labels alone: give a student's run.")
    from kdrun.evaluation.beside import (
        accuracies,
        independent,
        mean_trained_accuracy,
        same_settings,
        trained_accuracy,
    )
    from kdrun.evaluation.diagnosis import diagnose

    found = diagnose(target, console.track)
    found.method = run.parent.name
    if reason := RunDirectory(run).failure():
        found.notes.append(f"the run failed: {reason}")
    alone = independent(run)
    found.siblings, found.independent = same_settings(run), accuracies(alone)
    found.train, found.independent_train = trained_accuracy(run), mean_trained_accuracy(alone)
    found.losses = losses_of(RunDirectory(run))
    findings = findings_of(found)
    show(run, found, findings)
    content = {"schema": 1, **asdict(found), "findings": [asdict(finding) for finding in findings]}
    write_json(run / "evals" / "diagnosis.json", content)


def losses_of(run: RunDirectory) -> dict[str, tuple[float, float]]:
    """Return term -> (its weighted mean in the first epoch, in the last)."""
    found: dict[str, list[float]] = {}
    for _, split, metric, value in run.read_metrics():
        if split == "train" and metric.startswith("loss/"):
            found.setdefault(metric.removeprefix("loss/"), []).append(value)
    return {name: (values[0], values[-1]) for name, values in found.items()}


def show(run: Path, found: Diagnosis, findings: list[Finding]) -> None:
    """Findings first, then every figure."""
    console.say(f"[bold]{escape(short_path(run))}[/]  {escape(verdict_of(found))}\n")
    for number, finding in enumerate(findings, 1):
        console.say(f"[bold red]{number}. {finding.name}[/]  {escape(finding.words)} {escape(finding.figure)}")
        console.say(f"   try: {escape(command_of(run, finding))}")
    if not findings:
        console.say(
            "[bold green]nothing found[/]  None of what usually stands in the way of distillation is seen here."
        )
    console.say("")
    console.table("", ["figure", "value"], facts(found))
    for name, line in loss_lines(found).items():
        console.fact(name, line)
    for line in found.notes:
        console.note(line)


def facts(found: Diagnosis) -> list[list[str]]:
    rows = [] if found.test is None else [["student, test", f"{found.test:.2f} %"]]
    rows += [] if found.train is None else [["student, in training, last epoch", f"{found.train:.2f} %"]]
    rows.append(["chance", f"{found.chance:.2f} %"])
    teacher = found.teacher
    if teacher is not None:
        smaller = f"{teacher.params / max(found.student_params, 1):.1f} times the student's"
        rows += [
            ["teacher, test", f"{teacher.test:.2f} %"],
            [f"teacher, {teacher.images:,} training images as they are", f"{teacher.train:.2f} %"],
            ["teacher's mean confidence in them", f"{teacher.confidence:.2f} %"],
            ["teacher's parameters", f"{count(teacher.params)}, {smaller}"],
            ["teacher's FLOPs", f"{count(teacher.flops)}, {teacher.flops / max(found.student_flops, 1):.1f} times"],
        ]
        if teacher.softened is not None and teacher.temperature is not None:
            share = f"{teacher.softened:.4f} of equal probabilities' entropy"
            rows.append([f"teacher's outputs at temperature {teacher.temperature:g}", share])
    return rows


def loss_lines(found: Diagnosis) -> dict[str, str]:
    """Return what is known of the loss terms, in lines."""
    lines = {}
    if found.losses:
        parts = [f"{name} {first:.3g} → {last:.3g}" for name, (first, last) in found.losses.items()]
        lines["weighted loss, first → last epoch:"] = ", ".join(parts)
    for one in found.gradients:
        norms = ", ".join(f"{name} {norm:.2g}" for name, norm in one.norms.items())
        cosines = "; ".join(f"cosine {pair.replace(', ', '·')} {value:+.2f}" for pair, value in one.cosines.items())
        lines[f"gradient {one.when}:"] = norms + (f"; {cosines}" if cosines else "")
    return lines


def command_of(run: Path, finding: Finding) -> str:
    """Return the run's own command with other settings in it."""
    words = words_of(run)
    known = {word.partition("=")[0] for word in words} | set(method_settings_of(run))
    tried = {key: value for key, value in finding.settings if not key.startswith("method.") or key in known}
    kept = [word for word in words if word.partition("=")[0] not in tried]
    plain = [f"{key}={value}" for key, value in tried.items() if not is_default(key, value)]
    return " ".join(["kdrun train", *map(shlex.quote, [*kept, *plain])])


def words_of(run: Path) -> list[str]:
    """Return the settings that a run was begun with, as they were typed."""
    try:
        return [str(word) for word in RunDirectory(run).result().get("overrides") or []]
    except CheckpointError:  # it has not ended
        pass
    try:
        command = read_json(run / "provenance.json").get("command") or []
    except CheckpointError:
        return []
    return [str(word) for word in command if "=" in str(word) and not str(word).startswith("-")]


def is_default(key: str, value: str) -> bool:
    """Return True for a setting that is taken back by leaving it out."""
    return (key, value) in (("teacher.random", "false"), ("teacher.checkpoint", "null"))


def method_settings_of(run: Path) -> list[str]:
    try:
        config = read_json(run / "provenance.json").get("config") or {}
    except CheckpointError:
        return []
    return [f"method.{key}" for key in config.get("method") or {}]
