"""Training run: a lane with its files, its position in training and its scores, and how both survive a kill."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.display import plural
from kdrun.errors import CheckpointError, listed, one_line
from kdrun.runs.directory import RunDirectory, short_path
from kdrun.runs.plan import Plan
from kdrun.training import ranks
from kdrun.training.checkpoint import load_state, save_state, unusable
from kdrun.training.loop import EvalLoader, Lane, TrainLoader
from kdrun.training.meters import TrainMeter
from kdrun.training.optimizer import load_optimizer


@dataclass
class Loaders:
    """Loaders shared by lanes: shuffled training batches and the evaluation sets."""

    train: TrainLoader
    test: EvalLoader
    val: EvalLoader | None = None


@dataclass
class Score:
    """Accuracies by selection rule. top1_best: best epoch on the test set (optimistic); top1_val_selected: test
    accuracy of the best epoch on the validation split."""

    last: dict[str, float] = field(default_factory=dict)
    top1_best: float = -1.0
    top1_best_epoch: int = 0
    val_best: float = -1.0
    top1_val_selected: float | None = None

    def update(self, epoch: int, test: dict[str, float], val: dict[str, float] | None) -> bool:
        """Add one epoch (counted from 1). Return True if its weights are the best so far: by validation accuracy if
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
    """Lane with its run directory and its score: a student's run, or a teacher's for the store.

    extra: parameters that the method adds in training only. teacher: description of the teacher, including its
    accuracy; None without one.
    """

    plan: Plan
    run: RunDirectory
    digest: str
    lane: Lane
    extra: int = 0
    teacher: dict[str, Any] | None = None
    score: Score = field(default_factory=Score)
    epoch: int = 0  # position in training: step `step` of this epoch is next
    step: int = 0
    begun: int = 0  # step from which it takes part in the current epoch
    train_seconds: float = 0.0
    images: int = 0
    stage: str = ""  # the preparation has its own checkpoint
    notes: list[str] = field(default_factory=list)  # findings of a resume

    @property
    def state_path(self) -> Path:
        return self.run.path / f"{self.stage}.pt" if self.stage else self.run.state_path

    @property
    def other_images(self) -> str:
        return self.plan.other_images if self.run.role == "student" else self.plan.teacher_other_images

    def state(self) -> dict[str, Any]:
        """Return everything that a resume needs; data order and randomness are functions of the position alone."""
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
            "teacher": self.teacher_sha256,
            "metrics": self.run.metrics_checksum(self.epoch),
        }

    @property
    def teacher_sha256(self) -> str | None:
        return None if self.teacher is None else self.teacher.get("sha256")

    def resume(self, steps: int) -> bool:
        """Load last.pt if there is one; return True if training resumes. All processes of the run have loaded it
        before any continues. Raises CheckpointError."""
        resumed = self.state_path.is_file()
        if resumed:
            self.go_on(load_state(self.state_path), steps)
        elif ranks.now.main:
            self.run.metrics_path.unlink(missing_ok=True)
        ranks.now.most(0)
        return resumed

    def go_on(self, state: dict[str, Any], steps: int) -> None:
        """Check the content of last.pt and take it over. Raises CheckpointError."""
        # A run on images that were repaired since may continue if its directory was renamed.
        if state.get("digest") != self.digest and state.get("other_images") != self.other_images:
            raise CheckpointError(
                f"{self.state_path} belongs to another run, or to none; move it away to start the run again from "
                "the beginning."
            )
        self.check_origin(state)
        try:
            self.load(state, steps)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            problem = f"does not fit this run ({type(error).__name__}: {one_line(error)})"
            raise unusable(self.state_path, problem) from error
        self.check_metrics(state.get("metrics"))

    def start_epoch(self) -> int:
        """Return the step from which it takes part in the current epoch."""
        self.begun = self.step
        return self.step

    def check_origin(self, state: dict[str, Any]) -> None:
        """Raise CheckpointError if the run would continue with a different teacher or different numerics than
        before."""
        before, now = state.get("teacher"), self.teacher_sha256
        if before and now and before != now:
            raise CheckpointError(
                f"the teacher's weights differ from those with which {self.run.path} was trained so far (sha256 "
                f"{now[:12]}…, then {str(before)[:12]}…): restore them, or delete that directory."
            )
        begun, own = state.get("numerics"), self.lane.student.numerics.as_dict()
        if not isinstance(begun, dict):
            return
        if (before := begun.get("processes", 1)) != own["processes"]:
            self.notes.append(
                f"note: {plural(before, 'process', 'processes')} trained it so far and {own['processes']} from now "
                "on: sums in another order, so the result equals neither bit for bit"
            )
        for key in own.keys() & begun.keys() - {"device", "processes"}:
            if own[key] != begun[key]:
                raise CheckpointError(
                    f"{self.run.path} was trained with {key}={begun[key]} so far and would continue with "
                    f"{key}={own[key]}: restore resolved.{key} in its config.yaml, or delete that directory."
                )

    def load(self, state: dict[str, Any], steps: int) -> None:
        """Take over the content of `state`. Raises KeyError, TypeError and PyTorch's errors if it does not fit."""
        lane = self.lane
        if not 0 <= state["epoch"] <= lane.epochs or state["step"] < 0:
            raise ValueError(f"epoch {state['epoch']}, step {state['step']}")
        lane.model.load_state_dict(state["model"])
        lane.method.load_state_dict(state["method"])
        load_optimizer(lane.optimizer, state["optimizer"])
        if lane.ema is not None:
            lane.ema.load_state_dict(state["ema"])
        self.epoch, self.step = state["epoch"], min(state["step"], steps - 1)  # fewer images give fewer steps
        self.train_seconds, self.images = state["train_seconds"], state["images"]
        self.score = Score(**state["score"])
        if self.step:
            lane.meter = TrainMeter(lane.device, steps)
            lane.meter.load(state["meter"])

    def check_metrics(self, recorded: str | None) -> None:
        """Drop the rows after the checkpoint, and add a note if those before it have changed."""
        if self.stage or not ranks.now.main:
            return
        self.run.truncate_metrics(self.epoch)
        if recorded is None or recorded == self.run.metrics_checksum(self.epoch):
            return
        lost = self.run.epochs_without_rows(self.epoch)
        what = f"has no rows of epoch {listed(map(str, lost))}" if lost else "has other rows than were written"
        self.notes.append(f"note: {short_path(self.run.metrics_path)} {what}; training goes on with incomplete curves")

    def save(self) -> None:
        if not ranks.now.main:
            return
        self.run.sync_metrics()
        save_state(self.state_path, self.state())
