"""Every stored case is met by some definition, or named here with the reason why it is not."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.methods.cases import CASES, Definitions, check_finite_at_fifty_times, check_value_and_gradient, covered

NOT_MET = {
    "srd_nameclash/torchdistill": "torchdistill's SRDLoss is another paper's",
    **{
        name: "the published double softmax; ours is one"
        for name in CASES
        if name.startswith("srdwithkl/") and name.endswith("/peer")
    },
}

DEFINITIONS: Definitions = {}
for path in Path(__file__).parent.glob("test_*.py"):
    if path != Path(__file__):
        DEFINITIONS |= getattr(importlib.import_module(f"tests.methods.{path.stem}"), "DEFINITIONS", {})
MET = [name for name in covered(DEFINITIONS) if name not in NOT_MET]


def test_every_case_is_met_and_every_definition_used():
    assert set(CASES) - set(MET) == set(NOT_MET)
    assert all(any(name.startswith(prefix) for name in MET) for prefix in DEFINITIONS)


@pytest.mark.parametrize("name", MET)
def test_value_and_gradient(name):
    check_value_and_gradient(DEFINITIONS, name)


@pytest.mark.parametrize("name", [name for name in MET if {"s", "y"} <= set(CASES[name]["inputs"])])
def test_finite_at_fifty_times_the_logits(name):
    check_finite_at_fifty_times(DEFINITIONS, name)
