"""Every stored case is met by some definition, or named here with the reason why it is not."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.methods.cases import CASES, covered

NOT_MET = {"srd_nameclash/torchdistill": "torchdistill's SRDLoss is another paper's"}


def test_every_case_is_met():
    met: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        module = importlib.import_module(f"tests.methods.{path.stem}")
        met |= set(covered(getattr(module, "DEFINITIONS", {})))
    assert set(CASES) - met == set(NOT_MET)
