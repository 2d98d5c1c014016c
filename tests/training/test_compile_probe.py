"""The timed probe behind compile=auto leaves no trace in the run that it decides for."""

from __future__ import annotations

import copy

import pytest
import torch

import kdrun.training.compile_probe
from kdrun.config.compose import load
from kdrun.methods.factory import make_method
from kdrun.runs.plan import make_plan
from kdrun.streams import Streams
from kdrun.training.build import data_spec, load_data, make_lane, make_loaders, make_network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher
from kdrun.training.training_run import TrainingRun
from tests.conftest import TINY

STREAMS = Streams("student", 0)


def ready():
    plan = make_plan(load([*TINY, "dataset.fake_train=640"]), [])
    config, numerics = plan.config, Numerics("cpu", "fp32", False, torch.get_num_threads(), False)
    data = load_data(plan)
    student = make_network(config.student, data, STREAMS, numerics, config.batch_size)
    teacher = make_network(config.teacher, data, Streams("teacher", 0), numerics, config.batch_size)
    loaders = make_loaders(data, config.batch_size, STREAMS, "same", numerics)
    lane = make_lane(
        student=student,
        teacher=teacher,
        spec=data_spec(data, loaders.train),
        method=make_method(config.method),
        optimizer=config.optimizer,
        epochs=2,
        streams=STREAMS,
    )
    return TrainingRun(plan, plan.run, plan.digest, lane), Teacher(teacher), loaders


def flat(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for item in items for tensor in flat(item)]


@pytest.mark.parametrize(
    ("limit", "seconds", "compiled"), [(1e9, [1.0], False), (0.0, [1.0, 0.5], True), (0.0, [1.0, 0.99], False)]
)
def test_choice_and_no_trace(monkeypatch, limit, seconds, compiled):
    training, teacher, loaders = ready()
    before = copy.deepcopy(training.state())
    answers = iter(seconds)
    timed = kdrun.training.compile_probe.time_steps

    def step_and_answer(training, teacher, loaders):
        for network in (training.lane.student, teacher.network):
            network.compiled = None  # the steps are real, their compilation is not this test's
        timed(training, teacher, loaders)
        return next(answers)

    monkeypatch.setattr(kdrun.training.compile_probe, "LONG_RUN_SECONDS", limit)
    monkeypatch.setattr(kdrun.training.compile_probe, "time_steps", step_and_answer)
    found, note = kdrun.training.compile_probe.choose_compile(training, teacher, loaders, 2)
    assert found is compiled
    assert ("compile=auto" in note) == (limit == 0.0)
    assert not training.lane.student.numerics.compile
    for name in ("model", "method", "optimizer"):
        old, new = flat(before[name]), flat(training.state()[name])
        assert len(old) == len(new)
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


def test_failing_compiler_is_one_line(monkeypatch):
    training, teacher, loaders = ready()
    timed = kdrun.training.compile_probe.time_steps

    def broken(training, teacher, loaders):
        if training.lane.student.numerics.compile:
            raise RuntimeError("no compiler\nsecond line")
        return timed(training, teacher, loaders)

    monkeypatch.setattr(kdrun.training.compile_probe, "LONG_RUN_SECONDS", 0.0)
    monkeypatch.setattr(kdrun.training.compile_probe, "time_steps", broken)
    found, note = kdrun.training.compile_probe.choose_compile(training, teacher, loaders, 2)
    assert not found
    assert "compilation failed" in note
    assert "\n" not in note
