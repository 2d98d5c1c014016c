"""Tests that need a GPU; `pytest -m gpu`."""

from __future__ import annotations

import json

import pytest
import torch

from kdrun.cli import main
from kdrun.data.decode import untracked
from kdrun.models.features import Tap
from kdrun.models.zoo import create_model
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher
from kdrun.training.teacher_cache import fill, tensors_of
from tests.conftest import TINY
from tests.integration.test_runs import numbers, only_run
from tests.training.test_teacher_cache import STILL, loader

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = [word for word in TINY if not word.startswith(("precision", "compile"))]


@pytest.mark.parametrize("compiled", ["true", "false"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_trains(tmp_path, precision, compiled):
    words = [
        *CUDA,
        f"precision={precision}",
        f"compile={compiled}",
        "epochs=2",
        f"output_root={tmp_path}",
        "device=cuda",
    ]
    assert main(["train", *words]) == 0
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["device"].startswith("cuda")
    assert result["precision"] == precision
    assert result["peak_memory"] > 0


def test_repeats_when_deterministic(tmp_path):
    found = []
    for folder in ("a", "b"):
        words = [
            *CUDA,
            "precision=fp32",
            "compile=false",
            "epochs=2",
            "deterministic=true",
            "device=cuda",
            f"output_root={tmp_path / folder}",
        ]
        assert main(["train", *words]) == 0
        found.append(numbers(only_run(tmp_path / folder)))
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_outputs_are_those_of_a_pass(precision):
    """cuDNN may choose another algorithm for the small last batch, so to rounding."""
    numerics = Numerics("cuda", precision, False, 1, False)
    model = create_model("resnet8", num_classes=4, image_size=16).cuda()
    network = Network(Tap(model, 16, frozenset({"maps", "pooled"})), numerics, 8)
    teacher, batches = Teacher(network), loader(STILL, device="cuda")
    cache, _ = fill(network, batches, untracked)
    assert cache is not None
    for batch in batches.epoch(1):
        for one, other in zip(tensors_of(cache(batch.index)), tensors_of(teacher(batch.teacher_image)), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_out_of_memory_is_one_line(tmp_path, capsys):
    """About half a terabyte of activations, from images that take 2.5 GB of the host's memory to make."""
    words = [
        *CUDA,
        "student=wrn_40_4",
        "batch_size=1024",
        "dataset.fake_train=1024",
        "dataset.image_size=224",
        "teacher.random=true",
        "epochs=1",
        f"output_root={tmp_path}",
        "device=cuda",
    ]
    assert main(["train", *words]) == 1
    assert "batch_size" in capsys.readouterr().err
