"""Failures of a user's method and network: one line that says what and where, and a traceback in failed.txt."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

from kdrun.config.own_code import located
from kdrun.errors import ConfigError, PairingError
from kdrun.methods.factory import make_method
from kdrun.models.zoo import create_model
from tests.conftest import TINY

METHODS = """
import random

import numpy as np
import torch.nn.functional as F
from kdrun.errors import PairingError
from kdrun.methods.base import Method


class Typo(Method):
    def losses(self, batch, student, teacher, progress):
        return {"ce": F.cross_entropy(student.logit, batch.label)}


class Late(Method):
    needs_teacher = False

    def losses(self, batch, student, teacher, progress):
        loss = F.cross_entropy(student.logits, batch.label)
        if progress.step:
            loss = loss + "one"
        return {"ce": loss}


class Unbuildable(Method):
    def __init__(self):
        super().__init__()
        self.weight = 1 / 0

    losses = Typo.losses


class Refusing(Unbuildable):
    def __init__(self):
        raise PairingError("not on this pair")


class NotMethod:
    pass


class Mixed(Method):
    needs_teacher = False

    def losses(self, batch, student, teacher, progress):
        share = np.random.beta(1, 1) * random.random()
        return {"ce": F.cross_entropy(student.logits, batch.label, label_smoothing=share)}


class Silent(Method):
    pass


made = Typo()
"""
NETS = """
import random

import numpy as np
import torch
from torch import nn

THREE = 3


def fails(num_classes):
    widths = [num_classes]
    return nn.Linear(widths[1], num_classes)


def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))


def drawn(num_classes):
    model = net(num_classes)
    with torch.no_grad():
        weight = np.random.randn(*model[1].weight.shape) * random.random()
        model[1].weight.copy_(torch.from_numpy(weight) / 28)
    return model
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "project"
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "failing_methods.py").write_text(METHODS)
    (folder / "failing_nets.py").write_text(NETS)
    (folder / "broken_module.py").write_text("x = 1\nx.y\n")
    (folder / "unparsed_module.py").write_text("x = 1\nx = = 2\n")
    for name in ("Typo", "Late", "Mixed"):
        (folder / "conf" / "method" / f"{name.lower()}.yaml").write_text(f"_target_: failing_methods.{name}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("failing_methods.NotMethod", "is not a method; derive it: class NotMethod(kdrun.methods.base.Method)."),
        ("failing_methods.made", "made is not a method"),
        ("failing_methods.Absent", "Absent is not a method"),
        ("failing_methods.Silent", "Silent lacks losses(self, batch, student, teacher, progress)"),
        (
            "failing_methods.Unbuildable",
            "Unbuildable(…) failed: ZeroDivisionError: division by zero (failing_methods.py, line 28)",
        ),
        ("broken_module.Any", "cannot import broken_module: AttributeError: 'int' object has no attribute 'y'"),
        ("broken_module.Any", "(broken_module.py, line 2)"),
        (
            "unparsed_module.Any",
            "cannot import unparsed_module: SyntaxError: invalid syntax (unparsed_module.py, line 2)",
        ),
        ("absent_module.Any", "cannot import absent_module: ModuleNotFoundError"),
    ],
)
def test_what_is_no_method_is_one_line(project, target, line):
    with pytest.raises(ConfigError) as caught:
        make_method({"_target_": target})
    assert str(caught.value).startswith(f"method._target_={target}: ") and line in str(caught.value)


def test_an_error_of_kdruns_own_kind_stays_as_it_is(project):
    with pytest.raises(PairingError, match=r"^not on this pair$"):
        make_method({"_target_": "failing_methods.Refusing"})


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("failing_nets:THREE", "THREE is a int, which cannot be called."),
        ("failing_nets:nett", "failing_nets has no nett. Did you mean net?"),
        ("failing_nets:fails", "IndexError: list index out of range (failing_nets.py, line 13)"),
        ("failing_nets:fails", "cannot be called with {'num_classes': 4}"),
        ("unparsed_module:net", "SyntaxError: invalid syntax (unparsed_module.py, line 2)"),
        ("absent_module.net:net", "No module named 'absent_module'; start kdrun in the folder that contains it"),
        ("builtins:print", "the callable must take num_classes"),
        ("./failing_nets.py:net", "a network is named by its module, not by a file: failing_nets:net."),
        ("package/nets.py:net", "not by a file: package.nets:net."),
    ],
)
def test_what_is_no_network_is_one_line(project, name, line):
    with pytest.raises(ConfigError) as caught:
        create_model(name, num_classes=4, image_size=16)
    assert str(caught.value).startswith(f"{name}: ") or str(caught.value).startswith(f"{name} ")
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=typo"], "'Outputs' object has no attribute 'logit' (failing_methods.py, line 12); traceback"),
        (["method=late"], "error: student: TypeError: unsupported operand type(s) for +"),
    ],
)
def test_a_failure_in_training_names_the_line_and_keeps_its_traceback(project, kdrun, outputs, words, line):
    code, _, err = kdrun("train", *TINY, "epochs=1", *words, "--config-dir", "conf")
    assert code == 1 and len(err.strip().splitlines()) == 1, err
    assert line in err and "(failing_methods.py, line " in err
    (failed,) = (outputs / "runs").glob("*/*/*/*/failed.txt")
    assert err.rstrip().endswith(f"traceback in {failed}")
    assert "failing_methods.py, line" in failed.read_text().splitlines()[0]
    assert "Traceback (most recent call last)" in failed.read_text()
    assert not list((outputs / "teachers").glob("*/*/*/teacher.safetensors"))  # it fails before one is trained


def test_what_numpy_and_python_draw_repeats(project, kdrun, tmp_path):
    """The user's code draws by other generators than PyTorch's; the same run gave other weights each time."""
    found = []
    for state in (1, 2):
        np.random.seed(state)
        random.seed(state)
        words = ["student=failing_nets:drawn", "method=mixed", f"output_root={tmp_path / str(state)}"]
        code, _, err = kdrun("train", *TINY, "epochs=1", *words, "--config-dir", "conf")
        assert (code, err) == (0, "")
        (weights,) = (tmp_path / str(state) / "runs").glob("*/*/*/*/student.safetensors")
        found.append(weights.read_bytes())
    assert found[0] == found[1]


def test_the_innermost_own_line_is_named():
    """Of the error itself, else of its cause; lines of kdrun and of libraries are not the user's."""

    def inner() -> None:
        raise ValueError("no")

    try:
        try:
            inner()
        except ValueError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        found = located(error)
    assert "RuntimeError: wrapped (" in found and "test_own_methods.py, line " in found
    assert located(ConfigError("said")) == "said"
    assert located(ValueError("never raised")) == "ValueError: never raised"
