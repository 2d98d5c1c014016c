"""Property checks of methods, run on tiny networks with random weights. kdrun's own methods are tested by this code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError, RunError, one_line
from kdrun.methods.factory import make_method
from kdrun.structures import Mixed
from kdrun.training.method_ranks import differences
from kdrun.training.method_trial import CLASSES, PAIRS, Subject, Trial, batch_of

# Properties that a method may declare not to hold, in `Method.exceptions`; the check then demands the exact opposite.
EXCEPTIONS = ("ce", "reload", "frozen teacher", "first step moves all")


class CheckFailed(KdrunError):
    """Property that does not hold; the message says what was observed."""

    exit_code = 1


def need(condition: bool, sentence: str) -> None:
    """Raise CheckFailed with `sentence` unless `condition` holds."""
    if not condition:
        raise CheckFailed(sentence)


def exceptions_of(subject: Subject) -> dict[str, str]:
    """Return the properties that the method declares not to hold, with its reasons."""
    declared = make_method(subject.node).exceptions
    unknown = set(declared) - set(EXCEPTIONS)
    need(not unknown, f"exceptions: {', '.join(sorted(unknown))}: known are {', '.join(EXCEPTIONS)}")
    return declared


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def finite(trial: Trial) -> None:
    broken = [name for name, value in trial.losses.items() if not math.isfinite(value)]
    need(not broken, f"{', '.join(broken)}: not finite")


def one_step(subject: Subject, pair: str) -> None:
    """Check that a step has a finite loss and trains the student and every part of the method, and never the
    teacher."""
    trial = subject.trial(pair)
    lane, teacher = trial.lane, trial.teacher
    taught = None if teacher is None else copy.deepcopy(teacher.network.tap.state_dict())
    before = copy.deepcopy(lane.model.state_dict())
    parts = {key: value.detach().clone() for key, value in lane.method.named_parameters()}
    trial.steps(1)
    finite(trial)
    after = lane.model.state_dict()
    moved = [key for key in before if before[key].is_floating_point() and not torch.equal(before[key], after[key])]
    need(len(moved) > len(before) / 2, f"a step moves {len(moved)} of the student's {len(before)} tensors")
    still = {
        key
        for key, value in lane.method.named_parameters()
        if torch.equal(parts[key], value) and key not in trial.trained
    }
    if "first step moves all" in exceptions_of(subject):
        need(bool(still), "the first step moves all parameters, which `exceptions` denies")
        trial.steps(1, epoch=15, first=1)
        still = {key for key in still if torch.equal(parts[key], lane.method.get_parameter(key))}
    need(not still, f"{', '.join(sorted(still))}: a step does not change them (no gradient, or in no optimizer)")
    if teacher is not None and taught is not None:
        kept = same(taught, teacher.network.tap.state_dict())
        if "frozen teacher" in exceptions_of(subject):
            need(not kept, "a step does not change the teacher, which `exceptions` denies")
        else:
            frozen = not any(parameter.requires_grad for parameter in teacher.network.tap.parameters())
            need(kept and frozen and not teacher.network.tap.training, "a step changes the teacher")


def small_batches(subject: Subject, pair: str) -> None:
    """Check that batches of one and two images give finite losses and weights: the last batch of an epoch may be that
    small."""
    trial = subject.trial(pair)
    for step, count in enumerate((6, 1, 2)):
        try:
            trial.step(batch_of(count, step), 0, step)
        except RunError as error:
            raise CheckFailed(f"a batch of {count}: {one_line(error).partition(': ')[0]}") from error
    finite(trial)
    broken = [key for key, value in trial.lane.model.state_dict().items() if not value.isfinite().all()]
    need(not broken, f"{', '.join(broken)}: not finite after a small batch")


def hard_label_term(subject: Subject) -> None:
    """Check that the hard-label term is called `ce`, and accuracy in training is shown if the classifier is trained."""
    trial = subject.trial()
    trial.steps(1)
    named, absent = "ce" in trial.lane.meter.names, "ce" in exceptions_of(subject)
    need(named != absent, f"terms: {', '.join(trial.lane.meter.names)}; `exceptions` {'has' if absent else 'lacks'} ce")
    shown = "top1" in trial.losses
    need(shown == trial.lane.method.trains_classifier, "`trains_classifier` and the accuracy in training disagree")


def mixed_labels(subject: Subject) -> None:
    """Check that a method that sets `takes_mixed` uses labels only in `hard_label_loss`."""
    if make_method(subject.node).takes_mixed:
        need(
            mixes_labels(subject), "an image replaced completely by another one is not trained on the other one's label"
        )


def mixes_labels(subject: Subject) -> bool:
    """Return True if images mixed with nothing of their own label are trained like images of the other label."""
    batch = batch_of(6)
    other, nothing = (batch.label + 1) % CLASSES, torch.zeros(6)
    found = []
    for one in (replace(batch, label=other), replace(batch, mixed=Mixed(other, nothing))):
        trial = subject.trial()
        trial.step(one)
        found.append({name: value for name, value in trial.losses.items() if name.startswith("loss")})
    return all(math.isclose(found[0][name], value, rel_tol=1e-5) for name, value in found[1].items())


def bf16(subject: Subject) -> None:
    """Check that the loss in bf16 is within 5 % of the one in fp32."""
    found = {}
    for precision in ("fp32", "bf16"):
        trial = subject.trial(precision=precision)
        trial.steps(1)
        found[precision] = trial.losses["loss"]
    near = math.isclose(found["bf16"], found["fp32"], rel_tol=0.05)
    need(near, f"loss {found['fp32']:.4g} in fp32, {found['bf16']:.4g} in bf16")


def repeats(subject: Subject) -> None:
    """Check that the same three steps twice give the same bits: every random number comes from `progress.draws`."""
    states = []
    for _ in range(2):
        trial = subject.trial()
        trial.steps(3)
        states.append(trial.state())
    need(same(*states), "three steps from the same start end in different weights")


def resumes(subject: Subject) -> None:
    """Check that the state dictionaries of student, method and optimizer are all that a checkpoint needs."""
    trial, fresh = subject.trial(), subject.trial()
    trial.steps(2)
    fresh.steps(3, epoch=1, seed=7)  # a different state, so that nothing agrees by chance
    for part in ("model", "method", "optimizer"):
        getattr(fresh.lane, part).load_state_dict(copy.deepcopy(getattr(trial.lane, part).state_dict()))
    for one in (trial, fresh):
        one.steps(2, first=2)
    need(same(trial.state(), fresh.state()), "a resumed run ends in other weights: some state is not in a buffer")


def hyperparameters(subject: Subject) -> None:
    """Check that every number among the settings changes the loss or the preparation."""

    def outcome(settings: dict[str, Any]) -> tuple[object, ...]:
        trial = subject.trial(settings=settings)
        trial.steps(3, epoch=3)
        return trial.losses["loss"], trial.lane.method.preparation()

    usual = outcome({})
    numbers = {key: value for key, value in subject.node.items() if type(value) in (int, float)}
    idle = [key for key, value in numbers.items() if outcome({key: value * 2 if value else 1}) == usual]
    need(not idle, f"{', '.join(idle)}: twice the value changes nothing")


def reloads(subject: Subject) -> None:
    """Check that the trained student loads into a fresh network, without the method, and gives the same outputs."""
    trial = subject.trial()
    trial.steps(1)
    fresh = PAIRS[subject.pair][1]()
    deployed, image = trial.lane.deployed, batch_of(2).image
    deployed.eval()
    if "reload" in exceptions_of(subject):
        need(not fits(fresh, deployed), "the student loads into a fresh network, which `exceptions` denies")
        return
    need(fits(fresh, deployed), "the student's weights do not fit a fresh network of its kind")
    need(
        torch.equal(fresh.eval()(image), deployed(image)),
        "the student's weights give other outputs in a fresh network",
    )


def fits(fresh: nn.Module, trained: nn.Module) -> bool:
    """Load the weights of one network into another. Return False if they do not fit."""
    try:
        fresh.load_state_dict(trained.state_dict(), strict=True)
    except RuntimeError:
        return False
    return True


def averages(subject: Subject) -> None:
    """Check that a copy of the deployed network, such as a moving average of its weights, is independent of the
    original."""
    trial = subject.trial()
    image = batch_of(4, seed=9).image
    average = copy.deepcopy(trial.lane.deployed)
    average.eval()
    with torch.no_grad():
        before = average(image)
    trial.steps(3)
    trial.lane.deployed.eval()
    with torch.no_grad():
        need(torch.equal(average(image), before), "training changes a copy of the deployed network")
        need(not torch.equal(trial.lane.deployed(image), before), "training does not change the deployed network")


def two_processes(subject: Subject) -> None:
    """Check that two processes that share a batch get the same loss and gradient as one: see `Method.batch_terms`."""
    (difference,) = differences([subject.node])
    need(not difference, difference)


PAIR_CHECKS: dict[str, Callable[[Subject, str], None]] = {"one step": one_step, "small batches": small_batches}
CHECKS: dict[str, Callable[[Subject], None]] = {
    "hard-label term": hard_label_term,
    "mixed labels": mixed_labels,
    "bf16": bf16,
    "repeats": repeats,
    "resumes": resumes,
    "hyperparameters": hyperparameters,
    "reloads": reloads,
    "averages": averages,
}


def all_checks(subject: Subject) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield (name, what must hold, the check): those of every pair first."""
    for name, check in PAIR_CHECKS.items():
        for pair in PAIRS:
            yield f"{name}, {pair}", first_sentence(check), lambda check=check, pair=pair: check(subject, pair)
    for name, check in CHECKS.items():
        yield name, first_sentence(check), lambda check=check: check(subject)
    yield "two processes", first_sentence(two_processes), lambda: two_processes(subject)


def first_sentence(check: Callable[..., None]) -> str:
    return " ".join((check.__doc__ or "").split()).removeprefix("Check that ")
