"""launcher.processes=auto: a process for each core, which together are faster than one that has them all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kdrun.sweeps import scheduler
from kdrun.sweeps.scheduler import make_slots


@pytest.mark.parametrize(
    ("threads", "requested", "runs", "expected"),
    [
        (None, "auto", 9, ["1", "1", "1", "1"]),
        (None, "auto", 2, ["2", "2"]),  # fewer runs than cores: each has its share
        (2, "auto", 9, ["2", "2"]),
        (None, "1", 9, ["4"]),
        (None, "0", 9, []),
    ],
)
def test_cores_are_shared_out(threads, requested, runs, expected, monkeypatch):
    monkeypatch.setattr(scheduler, "available_cores", lambda: 4)
    monkeypatch.setattr(scheduler, "gpu_numbers", list)
    plan: Any = SimpleNamespace(config=SimpleNamespace(device="auto", threads=threads))
    slots = make_slots([plan], requested, runs)
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == expected
