"""A lane with its files: where training stands, what it has scored, and how both survive a kill."""

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
    notes: list[str] = field(default_factory=list)  # what a resume found

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
            "teacher": self.teacher_sha256,
            "metrics": self.run.metrics_checksum(self.epoch),
        }

    @property
    def teacher_sha256(self) -> str | None:
        return None if self.teacher is None else self.teacher.get("sha256")

    def resume(self, steps: int) -> bool:
        """Load last.pt where there is one; whether training resumes. Raises CheckpointError. All processes of the run
        have loaded it before any goes on."""
        resumed = self.state_path.is_file()
        if resumed:
            self.go_on(load_state(self.state_path), steps)
        elif ranks.now.main:
            self.run.metrics_path.unlink(missing_ok=True)
        ranks.now.most(0)
        return resumed

    def go_on(self, state: dict[str, Any], steps: int) -> None:
        """Check what last.pt holds and take it over. Raises CheckpointError."""
        # The same run on images that have been repaired since may go on where its directory was moved.
        if state.get("digest") != self.digest and state.get("other_images") != self.other_images:
            raise CheckpointError(
                f"{self.state_path} belongs to another run, or to none; move it away and the run starts again from "
                "its beginning."
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
        """Raise CheckpointError where the run would go on with another teacher or other numerics than it began with."""
        before, now = state.get("teacher"), self.teacher_sha256
        if before and now and before != now:
            raise CheckpointError(
                f"the teacher's weights are others than those that {self.run.path} has learned from so far (sha256 "
                f"{now[:12]}…, then {str(before)[:12]}…): restore them, or delete that directory."
            )
        begun, own = state.get("numerics"), self.lane.student.numerics.as_dict()
        if not isinstance(begun, dict):
            return
        if (before := begun.get("processes", 1)) != own["processes"]:
            self.notes.append(
                f"note: {plural(before, 'process', 'processes')} trained it so far and {own['processes']} from here "
                "on: sums in another order, so not the bits of either"
            )
        for key in own.keys() & begun.keys() - {"device", "processes"}:
            if own[key] != begun[key]:
                raise CheckpointError(
                    f"{self.run.path} was trained with {key}={begun[key]} so far and would go on with "
                    f"{key}={own[key]}: set resolved.{key} in its config.yaml back, or delete that directory."
                )

    def load(self, state: dict[str, Any], steps: int) -> None:
        """Take over what `state` holds. Raises KeyError, TypeError and what PyTorch raises where it does not fit."""
        lane = self.lane
        if not 0 <= state["epoch"] <= lane.epochs or state["step"] < 0:
            raise ValueError(f"epoch {state['epoch']}, step {state['step']}")
        lane.model.load_state_dict(state["model"])
        lane.method.load_state_dict(state["method"])
        load_optimizer(lane.optimizer, state["optimizer"])
        if lane.ema is not None:
            lane.ema.load_state_dict(state["ema"])
        self.epoch, self.step = state["epoch"], min(state["step"], steps - 1)  # of fewer images there are fewer
        self.train_seconds, self.images = state["train_seconds"], state["images"]
        self.score = Score(**state["score"])
        if self.step:
            lane.meter = TrainMeter(lane.device, steps)
            lane.meter.load(state["meter"])

    def check_metrics(self, recorded: str | None) -> None:
        """Drop the rows after the checkpoint, and note where those before it are not what they were."""
        if self.stage or not ranks.now.main:
            return
        self.run.truncate_metrics(self.epoch)
        if recorded is None or recorded == self.run.metrics_checksum(self.epoch):
            return
        lost = self.run.epochs_without_rows(self.epoch)
        what = f"has no rows of epoch {listed(map(str, lost))}" if lost else "holds other rows than were written"
        self.notes.append(f"note: {short_path(self.run.metrics_path)} {what}; training goes on, its curves do not")

    def save(self) -> None:
        if not ranks.now.main:
            return
        self.run.sync_metrics()
        save_state(self.state_path, self.state())
