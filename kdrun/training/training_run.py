"""A lane with its files: where training stands, what it has scored, and how both survive a kill."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.errors import CheckpointError
from kdrun.runs.directory import RunDirectory
from kdrun.runs.plan import Plan
from kdrun.training.checkpoint import load_state, save_state
from kdrun.training.loop import EvalLoader, Lane, TrainLoader
from kdrun.training.meters import TrainMeter


@dataclass
class Loaders:
    """What lanes share: shuffled training batches and the evaluation sets."""

    train: TrainLoader
    test: EvalLoader
    val: EvalLoader | None = None


@dataclass
class Score:
    """Accuracies by selection rule. top1_best is the best epoch on the test set, which flatters; top1_val_selected is
    the test accuracy of the best epoch on the validation split."""

    last: dict[str, float] = field(default_factory=dict)
    top1_best: float = -1.0
    top1_best_epoch: int = 0
    val_best: float = -1.0
    top1_val_selected: float | None = None

    def update(self, epoch: int, test: dict[str, float], val: dict[str, float] | None) -> bool:
        """Take in one epoch (counted from 1); whether its weights are the best so far: by validation accuracy where
        there is a validation split, else by test accuracy."""
        self.last = test
        better = test["top1"] > self.top1_best
        if better:
            self.top1_best, self.top1_best_epoch = test["top1"], epoch
        if val is not None:
            better = val["top1"] > self.val_best
            if better:
                self.val_best, self.top1_val_selected = val["top1"], test["top1"]
        return better


@dataclass
class TrainingRun:
    """A lane with its run directory and its score: a student's run, or a teacher's into the store.

    extra: parameters that the method adds in training only. teacher: what is known of the teacher, its accuracy among
    it; None without one.
    """

    plan: Plan
    run: RunDirectory
    digest: str
    lane: Lane
    extra: int = 0
    teacher: dict[str, Any] | None = None
    score: Score = field(default_factory=Score)
    epoch: int = 0  # where training stands: this epoch's step `step` comes next
    step: int = 0
    begun: int = 0  # the step from which it takes part in the current epoch
    train_seconds: float = 0.0
    images: int = 0
    stage: str = ""  # the preparation has a checkpoint of its own

    @property
    def state_path(self) -> Path:
        return self.run.path / f"{self.stage}.pt" if self.stage else self.run.state_path

    @property
    def other_images(self) -> str:
        return self.plan.other_images if self.run.role == "student" else self.plan.teacher_other_images

    def state(self) -> dict[str, Any]:
        """Everything that a resume needs; data order and randomness are functions of the position alone."""
        lane = self.lane
        return {
            "schema": 1,
            "digest": self.digest,
            "other_images": self.other_images,
            "epoch": self.epoch,
            "step": self.step,
            "numerics": lane.student.numerics.as_dict(),
            "model": lane.model.state_dict(),
            "method": lane.method.state_dict(),
            "optimizer": lane.optimizer.state_dict(),
            "ema": None if lane.ema is None else lane.ema.state_dict(),
            "meter": lane.meter.state() if self.step else None,
            "score": vars(self.score),
            "train_seconds": self.train_seconds,
            "images": self.images,
        }

    def resume(self, steps: int) -> bool:
        """Load last.pt where there is one; whether training resumes. Raises CheckpointError."""
        if not self.state_path.is_file():
            self.run.metrics_path.unlink(missing_ok=True)
            return False
        state = load_state(self.state_path)
        # The same run on images that have been repaired since may go on where its directory was moved.
        if state["digest"] != self.digest and state.get("other_images") != self.other_images:
            raise CheckpointError(f"{self.state_path} belongs to another run; move it away.")
        lane = self.lane
        lane.model.load_state_dict(state["model"])
        lane.method.load_state_dict(state["method"])
        lane.optimizer.load_state_dict(state["optimizer"])
        if lane.ema is not None:
            lane.ema.load_state_dict(state["ema"])
        self.epoch, self.step = state["epoch"], min(state["step"], steps - 1)  # of fewer images there are fewer
        self.train_seconds, self.images = state["train_seconds"], state["images"]
        self.score = Score(**state["score"])
        if self.step:
            lane.meter = TrainMeter(lane.device, steps)
            lane.meter.load(state["meter"])
        self.run.truncate_metrics(self.epoch)
        return True

    def save(self) -> None:
        save_state(self.state_path, self.state())
