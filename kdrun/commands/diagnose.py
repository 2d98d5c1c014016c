"""kdrun diagnose: explain why distillation does not help in a run, with the measured figures."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import output_root_setting, parse
from kdrun.config.method_schema import method_of
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

Finds out why distillation does not help in a finished or failed run. Measures the teacher (accuracy on test and
training images, confidence), how much of its ranking remains at the temperature, the size of each loss term and of its
gradient, whether the gradients conflict, at the start and at the end of training, and how the run compares with
independent students of the same settings. Prints the problems found, the most serious first, each with the figure
behind it and a command to try next. Also writes evals/diagnosis.json in the run.
"""


@dataclass
class Options:
    trust: bool = setting(False, help="allow a run from elsewhere to execute the user code that it names")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("diagnose", words, Options, passes=PASSED)
    if not parsed.names:
        raise ConfigError("diagnose needs a run directory or a digest (kdrun list runs).")
    root = outputs_folder(parsed.options.output_root)
    for run in [run for name in parsed.names for run in find_runs(name, root)]:
        one(run, parsed.options, parsed.rest)
    return 0


def one(run: Path, options: Options, settings: dict[str, str]) -> None:
    """Measure one run, print the findings, and save them."""
    target = target_of_run(run, Which(trust=options.trust), settings, finished=False)
    if (run / "teacher.safetensors").is_file():
        raise ConfigError(f"{run} is a stored teacher, trained on labels alone: give a student's run.")
    if not method_of(target.config.method).needs_teacher:
        raise ConfigError(f"{run} learned from no teacher: give the run of a student that did.")
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
    """Print the findings first, then all figures."""
    console.say(f"[bold]{escape(short_path(run))}[/]  {escape(verdict_of(found))}\n")
    for number, finding in enumerate(findings, 1):
        console.say(f"[bold red]{number}. {finding.name}[/]  {escape(finding.words)} {escape(finding.figure)}")
        console.to_run("   try:", command_of(run, finding))
    if not findings:
        console.say("[bold green]nothing found[/]  None of the usual obstacles to distillation is present here.")
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
            [f"teacher, {teacher.images:,} unaugmented training images", f"{teacher.train:.2f} %"],
            ["teacher's mean confidence on them", f"{teacher.confidence:.2f} %"],
            ["teacher's parameters", f"{count(teacher.params)}, {smaller}"],
            ["teacher's FLOPs", f"{count(teacher.flops)}, {teacher.flops / max(found.student_flops, 1):.1f} times"],
        ]
        if teacher.softened is not None and teacher.temperature is not None:
            share = f"{teacher.softened:.4f} of equal probabilities' entropy"
            rows.append([f"teacher's outputs at temperature {teacher.temperature:g}", share])
    return rows


def loss_lines(found: Diagnosis) -> dict[str, str]:
    """Return lines on the loss terms and gradients."""
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
    """Return the run's own command with other settings."""
    words = words_of(run)
    known = {word.partition("=")[0] for word in words} | set(method_settings_of(run))
    tried = {key: value for key, value in finding.settings if not key.startswith("method.") or key in known}
    kept = [word for word in words if word.partition("=")[0] not in tried]
    plain = [f"{key}={value}" for key, value in tried.items() if not is_default(key, value)]
    return " ".join(["kdrun train", *map(shlex.quote, [*kept, *plain])])


def words_of(run: Path) -> list[str]:
    """Return the settings with which a run was started, as typed."""
    try:
        return [str(word) for word in RunDirectory(run).result().get("overrides") or []]
    except CheckpointError:  # it is not finished
        pass
    try:
        command = read_json(run / "provenance.json").get("command") or []
    except CheckpointError:
        return []
    return [str(word) for word in command if "=" in str(word) and not str(word).startswith("-")]


def is_default(key: str, value: str) -> bool:
    """Return True for a setting that is reset by leaving it out."""
    return (key, value) in (("teacher.random", "false"), ("teacher.checkpoint", "null"))


def method_settings_of(run: Path) -> list[str]:
    try:
        config = read_json(run / "provenance.json").get("config") or {}
    except CheckpointError:
        return []
    return [f"method.{key}" for key in config.get("method") or {}]
