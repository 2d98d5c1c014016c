"""Runs that other cells of a sweep start from (a teaching assistant, a pretrained teacher). They are trained first,
because a checkpoint's content is part of a run's identity."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from kdrun.config.compose import load
from kdrun.errors import KdrunError
from kdrun.runs.directory import RunDirectory
from kdrun.runs.plan import make_plan
from kdrun.sweeps.cells import CellSpec
from kdrun.sweeps.definition import Sweep
from kdrun.sweeps.messages import SweepDisplay
from kdrun.sweeps.run import run_sweep


def train_before(
    sweep: Sweep, launcher: dict[str, str], command: str, config_dir: str | None, display: SweepDisplay
) -> tuple[Sweep, int | None]:
    """Train the runs of `before:`, one after the other. Return the sweep with their directories in its cells, and None;
    or an exit code if it cannot continue: a run has failed, was stopped, or waits in a cluster's queue."""
    for label in list(sweep.before):
        words = sweep.before[label]  # with the directories of earlier ones filled in
        own = Sweep(f"{sweep.name}-{label}", f"{sweep.title}: {label}", [CellSpec("", "", words)])
        code = run_sweep(own, launcher, command, config_dir, display)
        plan = make_plan(load(words, config_dir), words)
        if code or not plan.run.finished:
            if not code:
                display.note(f"the cells of {sweep.name} start from {label}: repeat the command when it is done")
            return sweep, code
        sweep = filled(sweep, f"<{label}>", str(plan.run.path))
        teacher = plan.config.teacher.checkpoint if plan.teacher_run is None else plan.teacher_run.path
        if teacher is not None:
            sweep = filled(sweep, f"<{label}.teacher>", str(teacher))
    return sweep, None


def foreseen(sweep: Sweep, config_dir: str | None) -> Sweep:
    """Return the sweep as far as it can be composed now. Unfinished runs of `before:` are replaced by untrained
    weights, at the same cost."""
    for label in list(sweep.before):
        places: dict[str, RunDirectory | None] = {f"<{label}>": None, f"<{label}.teacher>": None}
        with suppress(KdrunError):  # such as missing images
            plan = make_plan(load(sweep.before[label], config_dir), [])
            places = {f"<{label}>": plan.run, f"<{label}.teacher>": plan.teacher_run}
        for name, run in places.items():
            sweep = filled(sweep, name, str(run.path)) if run is not None and run.finished else untrained(sweep, name)
    return sweep


def first_cells(sweep: Sweep) -> list[CellSpec]:
    """Return the runs of `before:` as cells, for a dry run."""
    return [CellSpec(label, "first", words) for label, words in sweep.before.items()]


def untrained(sweep: Sweep, name: str) -> Sweep:
    """Return the sweep with an untrained network wherever an override uses the run `name` as a checkpoint."""
    instead = {
        f"teacher.checkpoint={name}": ["teacher.checkpoint=null", "teacher.random=true"],
        f"student.checkpoint={name}": ["student.checkpoint=null"],
    }

    def changed(words: list[str]) -> list[str]:
        return [new for word in words for new in instead.get(word, [word])]

    return replace(
        sweep,
        specs=[replace(spec, overrides=changed(spec.overrides)) for spec in sweep.specs],
        before={label: changed(words) for label, words in sweep.before.items()},
    )


def filled(sweep: Sweep, name: str, place: str) -> Sweep:
    """Return the sweep with the text `name` replaced by `place` in every override."""
    return replace(
        sweep,
        specs=[replace(spec, overrides=[word.replace(name, place) for word in spec.overrides]) for spec in sweep.specs],
        before={label: [word.replace(name, place) for word in words] for label, words in sweep.before.items()},
    )
