"""Runs of the user's own networks: as student, as teacher, in lanes, and in every command that uses them afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import kdrun as package
from kdrun.models.zoo import create_model
from tests.conftest import TINY
from tests.models.test_first_pass import Small, Tutorial

HERE = "tests.training.test_own_networks"
SHORT = [*(word for word in TINY if not word.startswith(("teacher=", "student="))), "epochs=1", "device=cpu"]


class Features(Small):
    """Features first, as `is_feat=True` of RepDistiller's networks."""

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.features(x)
        return [features], self.fc(features)


class Doubled(Tutorial):
    """Twice as many outputs while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([logits, logits], 1) if self.training else logits


def frozen(num_classes: int) -> nn.Module:
    return Tutorial(num_classes).requires_grad_(False)


def run_in(outputs: Path) -> Path:
    (place,) = outputs.glob("runs/*/*/*/*/")
    return place


def test_the_tutorial_network_in_every_command(kdrun, outputs, tmp_path):
    """Trained with a teacher that returns features and logits, on feature maps, with an average of its weights."""
    words = [*SHORT, f"teacher={HERE}:Features", f"student={HERE}:Tutorial", "optimizer.ema_decay=0.5"]
    code, out, err = kdrun("train", *words, "method=fitnet_joint")
    assert (code, err) == (0, "")
    assert out.count("runs in contiguous memory, because it fails in channels-last: RuntimeError: view size") == 1
    run = run_in(outputs)
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "one.png")
    for command in (
        ("eval", str(run)),
        ("predict", str(run), f"path={tmp_path / 'one.png'}"),
        ("gradcam", str(run), "images=2", "overlap=2"),
        ("taps", *words),
    ):
        code, _, err = kdrun(*command)
        assert (code, err) == (0, ""), command
    trained = package.load(run)
    logits = trained.model(trained.transform(tmp_path / "one.png"))
    assert logits.shape == (1, 4)
    plain = Tutorial(4)
    plain.load_state_dict(trained.model.state_dict())
    assert torch.allclose(plain.eval()(trained.transform(tmp_path / "one.png").contiguous()), logits, atol=1e-6)


def test_lanes_of_contiguous_networks(kdrun, outputs):
    words = [*SHORT, f"teacher={HERE}:Tutorial", f"student={HERE}:Tutorial", "method=kd,at"]
    code, out, err = kdrun("train", "-m", *words, "launcher.processes=0")
    assert (code, err) == (0, ""), out
    assert len(list(outputs.glob("runs/*/*/*/*/result.json"))) == 2


@pytest.mark.parametrize(
    ("role", "name", "line"),
    [
        ("student", "frozen", "all its parameters are frozen"),
        ("teacher", "frozen", "all its parameters are frozen"),
        ("student", "Doubled", "returns 8 outputs per image in training mode, but the data set has 4 classes"),
        ("teacher", "Doubled", "returns 8 outputs per image in training mode, but the data set has 4 classes"),
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_trains(role, name, line, kdrun, outputs):
    other = "student" if role == "teacher" else "teacher"
    code, out, err = kdrun("train", *SHORT, f"{role}={HERE}:{name}", f"{other}=resnet8", "method=kd")
    assert code == 2
    assert err.startswith(f"error: {role} {HERE}:{name}")
    assert line in err
    assert err.count("\n") == 1
    assert "epoch 1/1" not in out
    assert not list(outputs.rglob("*.safetensors"))


def test_a_teacher_that_only_answers_need_not_train(kdrun, outputs, tmp_path):
    place = tmp_path / "teacher.pt"
    torch.manual_seed(0)
    torch.save(create_model(f"{HERE}:Doubled", num_classes=4, image_size=16).state_dict(), place)
    words = [*SHORT, f"teacher={HERE}:Doubled", f"teacher.checkpoint={place}", "student=resnet8"]
    code, _, err = kdrun("train", *words, "method=kd")
    assert (code, err) == (0, "")
    code, _, err = kdrun(
        "eval", str(place), *SHORT, f"student={HERE}:Doubled", "teacher=resnet8", "save=" + str(tmp_path)
    )
    assert code == 0, err
    assert err.count("runs in contiguous memory") == 1  # of a file's network no training said so
