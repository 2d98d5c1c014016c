"""curves.png of a run, drawn at its end and at intervals during training."""

from __future__ import annotations

import time

from kdrun.errors import DiskFull, RunError
from kdrun.runs.curves import draw_curves
from kdrun.training import ranks
from kdrun.training.training_run import TrainingRun

EVERY = 60.0  # seconds between pictures, at least
SHARE = 30  # at most one part in SHARE of the time is spent on pictures


def draw(training: TrainingRun) -> None:
    """Draw a run's curves as far as they are known; for a student with its teacher's accuracy."""
    if not ranks.now.main:
        return
    plan, config = training.plan, training.plan.config
    if training.run.role == "teacher":
        draw_curves(training.run, f"teacher {config.teacher.name} on {config.dataset.name}", config.figures)
        return
    pair = f"{plan.teacher_name or 'no teacher'} → {config.student.name}"
    teacher = None if training.teacher is None else training.teacher["top1"]
    title = f"{plan.method.name}: {pair}, {config.dataset.name}, seed {config.seed}"
    draw_curves(training.run, title, config.figures, teacher)


class GrowingCurves:
    """Pictures of runs that train together: each is redrawn once `EVERY` seconds have passed since its last picture,
    or later if drawing is slow."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.drawn: dict[int, float] = {}
        self.spent = 0.0  # seconds spent on all pictures

    def after(self, training: TrainingRun) -> None:
        """Draw after an epoch of a run, if it is due."""
        now = time.monotonic()
        if now - self.drawn.get(id(training), self.begun) < EVERY or self.spent * SHARE > now - self.begun:
            return
        try:
            draw(training)
        except DiskFull:
            raise
        except RunError:  # the picture at its end will raise this, if it still applies
            pass
        self.drawn[id(training)] = time.monotonic()
        self.spent += time.monotonic() - now
