"""Probe of whether compiling the networks pays on this machine: timed on the run's own steps, then undone."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch

from kdrun.errors import one_line
from kdrun.training.loop import batches
from kdrun.training.meters import TrainMeter
from kdrun.training.network import Network
from kdrun.training.optimizer import load_optimizer
from kdrun.training.teacher import Teacher
from kdrun.training.training_run import Loaders, TrainingRun

LONG_RUN_SECONDS = 600  # compiling costs about a minute, which shorter runs do not save
WARM_STEPS, TIMED_STEPS = 3, 12


def choose_compile(training: TrainingRun, teacher: Teacher | None, loaders: Loaders, epochs: int) -> tuple[bool, str]:
    """Return (True to compile, the reason in one line). The run's weights, statistics and optimizer are restored."""
    steps = epochs * loaders.train.steps_per_epoch
    if loaders.train.steps_per_epoch <= WARM_STEPS + TIMED_STEPS:
        return False, ""
    before = copy.deepcopy(training.state())
    networks = [training.lane.student] + ([] if teacher is None else [teacher.network])
    plain = training.lane.student.numerics
    try:
        eager = time_steps(training, teacher, loaders)
        if eager * steps < LONG_RUN_SECONDS:
            return False, ""
        switch(networks, compiled=True)
        try:
            compiled = time_steps(training, teacher, loaders)
        except Exception as error:  # compilers fail in many ways, none of which is the user's fault
            return False, f"compile=auto: compilation failed ({one_line(error)}), so it is off."
        faster = compiled < 0.97 * eager
        verdict = "compiled" if faster else "uncompiled"
        return faster, f"compile=auto: {eager / compiled:.2f}x by compiling, so the networks run {verdict}."
    finally:
        for network in networks:
            network.use(plain)
        restore(training, before)


def switch(networks: list[Network], compiled: bool) -> None:
    for network in networks:
        network.use(replace(network.numerics, compile=compiled))


def time_steps(training: TrainingRun, teacher: Teacher | None, loaders: Loaders) -> float:
    """Return the median seconds per training step after warm-up."""
    training.lane.student.tap.train()
    training.lane.method.train()
    training.lane.meter = TrainMeter(training.lane.device, WARM_STEPS + TIMED_STEPS)
    spent = []
    for step, batch in enumerate(batches(loaders.train, WARM_STEPS + TIMED_STEPS)):
        begun = time.perf_counter()
        shared = None if teacher is None else teacher.for_batch(batch)
        training.lane.step(batch, shared, 0, step, loaders.train.steps_per_epoch)
        if training.lane.device.type == "cuda":
            torch.cuda.synchronize(training.lane.device)
        spent.append(time.perf_counter() - begun)
    return sorted(spent[WARM_STEPS:])[TIMED_STEPS // 2]


def restore(training: TrainingRun, state: dict[str, object]) -> None:
    """Restore weights, statistics and optimizer."""
    lane = training.lane
    lane.model.load_state_dict(state["model"])  # type: ignore[arg-type]
    lane.method.load_state_dict(state["method"])  # type: ignore[arg-type]
    load_optimizer(lane.optimizer, state["optimizer"])  # type: ignore[arg-type]
    if lane.ema is not None:
        lane.ema.load_state_dict(state["ema"])  # type: ignore[arg-type]
