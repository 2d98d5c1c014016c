"""Losses against the values (and gradients) of public implementations, stored in tests/fixtures/methods.npz."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdrun.config.compose import load
from kdrun.structures import Batch, Outputs, Progress
from kdrun.training.loop import Lane
from kdrun.training.method_trial import Subject
from kdrun.training.teacher import Teacher
from tests.conftest import FIXTURES

Definitions = dict[str, Callable[[dict[str, Tensor], dict], Tensor]]  # prefix of a case's id -> the loss that meets it
CASES = {case["id"]: case for case in json.loads((FIXTURES / "methods.json").read_text())["cases"]}
ARRAYS = np.load(FIXTURES / "methods.npz")


@cache
def settings(name: str) -> dict[str, Any]:
    """The method's node, composed once."""
    return load([f"method={name}"]).method


def make_lane(name: str, pair: str, settings_of: dict[str, Any] | None = None) -> tuple[Lane, Teacher | None]:
    trial = Subject(settings(name)).trial(pair, settings=settings_of)
    return trial.lane, trial.teacher


def tensor(key: str) -> Tensor:
    return torch.from_numpy(np.asarray(ARRAYS[key]).copy())


def batch_of(label: Tensor) -> Batch:
    empty = torch.zeros(len(label), 3, 2, 2)
    return Batch(empty, label, torch.arange(len(label)), empty)


def logits(n: int = 8, k: int = 10, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(student's [n, k], teacher's [n, k], labels [n]), float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(n, k, generator=generator),
        3 * torch.randn(n, k, generator=generator),
        torch.randint(0, k, (n,), generator=generator),
    )


def total(method, inputs: dict[str, Tensor], epoch: int = 0) -> Tensor:
    """The sum of a method's terms on given logits."""
    terms = method.losses(batch_of(inputs["y"]), Outputs(inputs["s"]), Outputs(inputs["t"]), Progress(epoch, 240, 0, 1))
    return torch.stack(list(terms.values())).sum()


def check_value_and_gradient(definitions: Definitions, name: str) -> None:
    """`name` within its tolerance in float32, its gradients too."""
    case = CASES[name]
    inputs = {key: tensor(array) for key, array in case["inputs"].items()}
    for key in case["grads"]:
        inputs[key].requires_grad_()
    loss = definition_of(definitions, name)(inputs, case["params"])
    expected = case["expected_f64"]
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected) <= case["atol"] + case["rtol"] * abs(expected)
    if case["grads"]:
        loss.backward()
    for key, facts in case["grads"].items():
        found = inputs[key].grad
        if facts is None:
            assert found is None or not found.any()
            continue
        assert found is not None
        assert torch.allclose(found[: facts["rows"]], tensor(facts["key"]), rtol=1e-3, atol=1e-6)
        assert found.norm().item() == pytest.approx(facts["l2"], rel=1e-3)


def check_finite_at_fifty_times(definitions: Definitions, name: str) -> None:
    """Logits times 50 give a finite loss with finite gradients."""
    case = CASES[name]
    inputs = {key: tensor(array) for key, array in case["inputs"].items()}
    inputs |= {key: (50 * inputs[key]).requires_grad_() for key in ("s", "t") if key in inputs}
    loss = definition_of(definitions, name)(inputs, case["params"])
    loss.backward()
    assert torch.isfinite(loss)
    assert any(inputs[key].grad is not None for key in ("s", "t") if key in inputs)
    assert all(torch.isfinite(x.grad).all() for x in inputs.values() if x.grad is not None)


def definition_of(definitions: Definitions, name: str) -> Callable[[dict[str, Tensor], dict], Tensor]:
    """The one with the longest matching prefix."""
    return definitions[max((prefix for prefix in definitions if name.startswith(prefix)), key=len)]


def covered(definitions: Definitions) -> list[str]:
    return [name for name in CASES if any(name.startswith(prefix) for prefix in definitions)]
