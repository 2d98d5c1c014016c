"""Checkpoints of others: known layouts load, everything else is one line, and no code ever runs."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdrun.errors import CheckpointError
from kdrun.models.weights import load_weights, read_state_dict
from kdrun.models.zoo import create_model


@pytest.fixture
def source():
    torch.manual_seed(3)
    return create_model("resnet8", num_classes=10)


def fresh():
    torch.manual_seed(4)
    return create_model("resnet8", num_classes=10)


LAYOUTS = {
    "plain": lambda state: state,
    "repdistiller": lambda state: {
        "epoch": 240,
        "model": state,
        "best_acc": torch.tensor(75.6),
        "opt": argparse.Namespace(lr=0.05),
        "accuracy": np.float64(1),
    },
    "mdistiller": lambda state: {
        "epoch": 240,
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "mdistiller trainer": lambda state: {"model": {f"module.student.{key}": value for key, value in state.items()}},
    "timm": lambda state: {"state_dict": state, "arch": "resnet8", "metric": 75.0},
    "data parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](source.state_dict()), path)
    model = fresh()
    load_weights(model, path, "resnet8")
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_safetensors(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = fresh()
    load_weights(model, tmp_path / "weights.safetensors", "resnet8")
    assert torch.equal(model.fc.weight, source.fc.weight)


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_hostile_pickle_is_never_run(tmp_path):
    target = tmp_path / "proof"
    for name, write in (
        ("torch.pth", lambda path: torch.save({"model": Bomb(target)}, path)),
        ("plain.pth", lambda path: path.write_bytes(pickle.dumps({"model": Bomb(target)}))),
    ):
        write(tmp_path / name)
        with pytest.raises(CheckpointError, match=r"not unpickled|is not read"):
            read_state_dict(tmp_path / name)
    assert not target.exists()


def test_what_does_not_fit_is_named(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"does not fit wrn_16_1: .* missing, first .*unknown, first"):
        load_weights(create_model("wrn_16_1", num_classes=10), path, "wrn_16_1")
    with pytest.raises(
        CheckpointError, match=r"of another shape, first fc.bias \(\(10,\) in the file, \(100,\) in the model"
    ):
        load_weights(create_model("resnet8", num_classes=100), path, "resnet8")


def test_damaged_files(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        read_state_dict(path)
    (tmp_path / "weights.safetensors").write_bytes(b"not a file")
    with pytest.raises(CheckpointError, match="is text"):
        read_state_dict(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        read_state_dict(tmp_path / "absent.pth")
    torch.save({"weights": 3}, path)
    with pytest.raises(CheckpointError, match="holds no state dict; its entries are weights"):
        read_state_dict(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        read_state_dict(path)


def test_new_head_keeps_the_rest(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    model = create_model("resnet8", num_classes=3, pretrained=str(path))
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert model.fc.weight.shape == (3, 64)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
def test_pretrained_file_for_external_models(name, tmp_path):
    torch.manual_seed(0)
    source = create_model(name, num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = create_model(name, num_classes=2, pretrained=str(tmp_path / "weights.pth"))
    key = next(key for key in source.state_dict() if key.endswith("layer1.0.conv1.weight"))
    assert torch.equal(model.state_dict()[key], source.state_dict()[key])
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
