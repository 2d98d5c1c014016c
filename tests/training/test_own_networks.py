"""Runs of the user's own networks: as student, as teacher, in lanes, and in every command that uses them afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import kdrun as package
from kdrun.models.logits import find_logits
from kdrun.models.zoo import create_model
from tests.conftest import TINY
from tests.models.small_networks import Small, Tutorial

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


class Tied(nn.Module):
    """A learned query passed through a layer, and two layers with one weight."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 4, 1)
        self.query = nn.Parameter(torch.randn(1, 1, 8))
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.second(self.conv(x).flatten(2).transpose(1, 2))
        query = self.first(self.query.expand(len(x), -1, -1))
        return self.fc(((query @ tokens.transpose(1, 2)).softmax(-1) @ tokens)[:, 0])


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


def test_tied_weights_and_a_learned_query_lose_no_run(kdrun, outputs):
    """Both ended in a traceback after training: the file refuses shared memory, the counter of FLOPs a view of a
    parameter. An exported forward that reads len(x) would take batches of one size only."""
    code, _, err = kdrun("train", *SHORT, f"student={HERE}:Tied", "method=none")
    assert (code, err) == (0, "")
    run = run_in(outputs)
    trained = package.load(run)
    weights = trained.model.state_dict()
    assert torch.equal(weights["first.weight"], weights["second.weight"])
    assert kdrun("eval", str(run))[0] == 0
    code, _, err = kdrun("export", str(run))
    assert code == 1 and "as len(x) does; x.shape[0] does not" in err and "Traceback" not in err


def test_logits_are_found_by_part_of_a_name():
    class Two(Small):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            features = self.features(x)
            return {"embedding": features[:, :4], "class_logits": self.fc(features)}

    image = torch.randn(2, 3, 32, 32)
    found, others = find_logits(Two(4).eval()(image), 2, 4)
    assert found is not None and found.words == ("class_logits",) and len(others) == 1
