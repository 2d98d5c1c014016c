"""precision=auto asks the machine rather than its flags, once."""

from __future__ import annotations

import json

import pytest
import torch

from kdrun.training import bf16_probe, precision
from kdrun.training.precision import resolve_precision


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Speedups as they are asked for; the cache folder is tmp_path/kdrun."""
    asked: list[float] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bf16_probe, "measured_speedup", lambda: asked.append(1.5) or 1.5)
    bf16_probe.bf16_speedup.cache_clear()
    yield asked
    bf16_probe.bf16_speedup.cache_clear()


def again(machine: str) -> float:
    bf16_probe.bf16_speedup.cache_clear()
    return bf16_probe.bf16_speedup(machine)


def test_it_is_measured_once_for_a_machine(measured, tmp_path, monkeypatch):
    assert [again("one"), again("one"), again("two")] == [1.5, 1.5, 1.5]
    assert len(measured) == 2
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # another machine, as far as arithmetic goes
    again("one")
    assert len(measured) == len(list((tmp_path / "kdrun").glob("bf16-*.json"))) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"speedup": "fast"}', "{}"])
def test_a_damaged_record_is_measured_anew(measured, tmp_path, content):
    again("one")
    place = next((tmp_path / "kdrun").glob("bf16-*.json"))
    place.write_text(content)
    assert again("one") == 1.5
    assert len(measured) == 2
    assert json.loads(place.read_text())["speedup"] == 1.5


def test_without_a_home_it_is_measured_every_time(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    assert [again("one"), again("one")] == [1.5, 1.5]
    assert len(measured) == 2


@pytest.mark.parametrize(("speedup", "expected"), [(1.8, "bf16"), (1.04, "bf16"), (1.02, "fp32"), (0.7, "fp32")])
def test_auto_takes_what_is_faster(monkeypatch, speedup, expected):
    monkeypatch.setattr(precision, "cpu_bf16_speedup", lambda: speedup)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"


def test_the_probe_leaves_no_trace():
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    assert bf16_probe.measured_speedup() > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
