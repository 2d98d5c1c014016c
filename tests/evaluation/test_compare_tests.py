"""The simulation that the choice of kdrun's test rests on: scripts/compare_tests.py, coarser."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_tests.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("compare_tests", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["compare_tests"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 5])
def test_errors_and_power_of_seven_methods_and_three_seeds(script, columns):
    """Per column, with three standard errors of this simulation for its own noise."""
    tables, setting = 800 // columns, script.Setting("", columns=columns)

    def rate(**changes):
        return script.rates(script.moderated, replace(setting, **changes), tables)

    equal, mixed = rate(), rate(sds=script.MIXED)
    assert equal.columns <= 5 + 3 * equal.error
    assert mixed.columns <= 9 + 3 * mixed.error
    assert rate(sds=script.MIXED, t4=True).columns <= 9 + 3
    assert rate(sds=script.MIXED, missing=0.3).columns <= 10 + 3
    assert rate(effect=1.0).found >= 90 - 3


@pytest.mark.slow
def test_it_finds_what_the_others_do_not(script):
    setting = script.Setting("", effect=1.0)
    found = {name: script.rates(script.TESTS[name], setting, 150).found for name in ("moderated", "welch", "paired")}
    assert found["moderated"] > 80 > 50 > found["welch"] > found["paired"] > 0


def test_every_test_runs_on_what_is_drawn(script):
    setting = script.Setting("", columns=2, rows=3, missing=0.3, alike=0.5)
    for test in script.TESTS.values():
        done = script.rates(test, setting, 2)
        assert 0 <= done.columns <= done.tables <= 100
