"""Runs that a sweep's cells start from: the assistant that teaches, the teacher that was trained on. They are trained
first, since a checkpoint is part of a run's identity by its content."""

from __future__ import annotations

from dataclasses import replace

from kdrun.config.compose import load
from kdrun.runs.plan import make_plan
from kdrun.sweeps.definition import CellSpec, Sweep
from kdrun.sweeps.messages import SweepDisplay
from kdrun.sweeps.run import run_sweep


def train_before(
    sweep: Sweep, launcher: dict[str, str], command: str, config_dir: str | None, display: SweepDisplay
) -> tuple[Sweep, int | None]:
    """Train the runs of `before:`, one after the other; return the sweep with their directories in its cells, and None,
    or an exit code where it cannot go on: a run has failed, was stopped, or waits in a cluster's queue."""
    for label in list(sweep.before):
        words = sweep.before[label]  # with the directories of those before it
        own = Sweep(f"{sweep.name}-{label}", f"{sweep.title}: {label}", [CellSpec("", "", words)])
        code = run_sweep(own, launcher, command, config_dir, display)
        plan = make_plan(load(words, config_dir), words)
        if code or not plan.run.finished:
            if not code:
                display.note(f"the cells of {sweep.name} start from {label}: give the same command when it is done")
            return sweep, code
        sweep = filled(sweep, f"<{label}>", str(plan.run.path))
        if plan.teacher_run is not None:
            sweep = filled(sweep, f"<{label}.teacher>", str(plan.teacher_run.path))
    return sweep, None


def filled(sweep: Sweep, name: str, place: str) -> Sweep:
    """Return the sweep with `place` for `name` in every override."""
    return replace(
        sweep,
        specs=[replace(spec, overrides=[word.replace(name, place) for word in spec.overrides]) for spec in sweep.specs],
        before={label: [word.replace(name, place) for word in words] for label, words in sweep.before.items()},
    )


def laid_open(sweep: Sweep, with_runs: bool) -> Sweep:
    """Return the sweep as it can be looked at before the runs of `before:` are there: its cells without the weights
    that they start from. with_runs: with those runs as cells of their own, in front."""
    names = [name for label in sweep.before for name in (f"<{label}>", f"<{label}.teacher>")]

    def bare(words: list[str]) -> list[str]:
        return [word for word in words if not any(name in word for name in names)]

    own = [CellSpec(f"before: {label}", "", bare(words)) for label, words in sweep.before.items()] if with_runs else []
    cells = [replace(spec, overrides=bare(spec.overrides)) for spec in sweep.specs]
    return replace(sweep, specs=[*own, *cells], before={})
