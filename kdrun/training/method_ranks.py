"""Check that a method gives the same on two processes as on one: the same loss, the same gradient of student and
method, and the same state of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.own_code import located
from kdrun.data.processes import ShieldedContext
from kdrun.errors import PairingError, RunError
from kdrun.structures import Batch
from kdrun.training import ranks
from kdrun.training.launch import start
from kdrun.training.loop import Lane, Preparation
from kdrun.training.method_trial import CPU, STREAMS, Subject, Trial, batch_of, train_mode

PAIRS = ("CNN to ViT", "ViT to CNN", "CNN to CNN")  # the first one that the method accepts is used
COUNT, PROCESSES = 13, 2  # images, chosen not to divide evenly
PATIENCE = 60  # seconds for each method, and for the start
NEAR = 1e-5  # relative to the norm: room for another order of summation


def differences(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Return, for each method, a sentence on how it differs on two processes; an empty string if it does not."""
    context = ShieldedContext()
    ours, theirs = context.Pipe(duplex=False)
    processes = start(PROCESSES, compare_all, theirs, list(nodes), context=context)
    theirs.close()
    try:
        if ours.poll(PATIENCE * (1 + len(nodes))):
            return ours.recv()
        raise RunError("the two processes of this check wait for each other: one has failed, or takes another path.")
    except EOFError as error:
        raise RunError("the two processes of this check ended without a result.") from error
    finally:
        for process in processes:
            process.kill()
            process.join()


def compare_all(answer: Connection, nodes: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    with ranks.together():
        found = [compare(node) for node in nodes]
        if ranks.now.main:
            answer.send(found)


def compare(node: dict[str, Any]) -> str:
    """Return how the method differs, in process 0; the other processes take part."""
    try:
        subject = Subject(node)
        alone, joined = (lanes_of(first_trial(subject)) for _ in range(2))
        return "; ".join(filter(None, map(compare_lanes, alone, joined)))
    except Exception as error:
        return located(error)


def first_trial(subject: Subject) -> Trial:
    """Return a trial on the first pair that the method accepts. Raises PairingError if it rejects all."""
    for pair in PAIRS[:-1]:
        try:
            return subject.trial(pair)
        except PairingError:
            continue
    return subject.trial(PAIRS[-1])


def lanes_of(trial: Trial) -> Iterator[tuple[Lane, Trial]]:
    """Yield the method's preparation, if it has one, and its training."""
    options = trial.lane.method.preparation()
    if options is not None:
        own = Lane(trial.lane.student, Preparation(trial.lane.method), options, options.epochs, STREAMS, CPU)
        yield own, trial
    yield trial.lane, trial


def compare_lanes(alone: tuple[Lane, Trial], joined: tuple[Lane, Trial]) -> str:
    alone[0].alone = True
    batch = batch_of(COUNT)
    window, share = ranks.now.part.cut(0, COUNT)
    assert batch.strong is not None
    image, strong = batch.image[window], batch.strong[window]
    part = Batch(image, batch.label[window], batch.index[window], image, strong, share=share)
    one, many = outcome(*alone, batch), outcome(*joined, part)
    said = []
    for what, expected in one.items():
        far = (many[what] - expected).norm() / expected.norm().clamp(min=1e-12)
        if not far <= NEAR:
            said.append(f"{what} by {far:.1g}")
    if not said:
        return ""
    kind = joined[0].method.batch_terms
    return f"on {PROCESSES} processes it differs from one: {', '.join(said)} of its size" + (
        '; it relates samples to each other: batch_terms = "batch"' if kind == "sample" else ""
    )


def outcome(lane: Lane, trial: Trial, batch: Batch) -> dict[str, Tensor]:
    """Return the loss, gradients and state after one backward pass, by name."""
    train_mode(lane)
    for module in (*lane.student.tap.modules(), *lane.method.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # statistics over part of a batch differ anyway
    lane.update = lambda: None  # type: ignore[method-assign]
    lane.model.zero_grad()
    lane.method.zero_grad()
    lane.step(batch, None if trial.teacher is None else trial.teacher.for_batch(batch), 10, 0, 10)
    found = {"the loss": torch.tensor(lane.meter.result()["loss"])}
    of_student, of_method = gradient_of(lane.model), gradient_of(lane.method)
    found |= {"the student's gradient": of_student, "the gradient": torch.cat([of_student, of_method])}
    found["the method's state"] = torch.cat(
        [torch.zeros(0), *(value.flatten() for value in lane.method.buffers() if value.is_floating_point())]
    )
    return found


def gradient_of(module: nn.Module) -> Tensor:
    grads = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return torch.cat([torch.zeros(0), *grads])
