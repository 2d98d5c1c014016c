"""Property checks of methods, run on tiny networks with random weights. kdrun's own methods are tested by this code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.method_schema import method_of
from kdrun.config.options import OptimizerOptions
from kdrun.errors import KdrunError, PairingError, RunError, one_line
from kdrun.methods.base import Method, stages_read
from kdrun.methods.factory import make_method
from kdrun.models.features import Tap, measure
from kdrun.models.layers import NOTHING, ZooModel, conv3x3, pool_flatten
from kdrun.streams import Streams
from kdrun.structures import Batch, DataSpec, Outputs
from kdrun.training.loop import Lane, Preparation
from kdrun.training.meters import TrainMeter
from kdrun.training.network import Network, Peer, Teacher
from kdrun.training.precision import Numerics

CLASSES, SIDE = 5, 16
CPU, STREAMS = torch.device("cpu"), Streams("student", 0)

# What a method may declare untrue of itself, in `Method.exceptions`; each check demands exactly the opposite then.
EXCEPTIONS = ("ce", "reload", "frozen teacher", "first step moves all")


class CheckFailed(KdrunError):
    """Raised when a property does not hold; the message says what was observed."""

    exit_code = 1


def need(condition: bool, sentence: str) -> None:
    """Raise CheckFailed with `sentence` unless `condition` holds."""
    if not condition:
        raise CheckFailed(sentence)


class TinyCNN(ZooModel):
    """A stem and two stages: [N, 3, 16, 16] -> maps 6x16x16, 8x8x8, 12x4x4 (times `width`)."""

    def __init__(self, num_classes: int = CLASSES, width: int = 1):
        super().__init__()
        self.conv1 = conv3x3(3, 6 * width)
        self.bn1 = nn.BatchNorm2d(6 * width)
        self.conv2 = conv3x3(6 * width, 8 * width, 2)
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.conv3 = conv3x3(8 * width, 12 * width, 2)
        self.bn3 = nn.BatchNorm2d(12 * width)
        self.fc = nn.Linear(12 * width, num_classes)

    def outputs(self, image: Tensor, needs: frozenset[str] = NOTHING) -> Outputs:
        x, maps, preact = image, [], []
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            before = bn(conv(x))
            x = torch.relu(before)
            maps.append(x)
            preact.append(before)
        pooled = pool_flatten(x)
        return Outputs(self.fc(pooled), tuple(maps), tuple(preact), pooled)


def tiny_vit() -> nn.Module:
    """Return a distilled ViT of four blocks on patches of 4 pixels."""
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=SIDE, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=CLASSES
    )


# name -> (teacher, student)
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "CNN to CNN": (lambda: TinyCNN(width=2), TinyCNN),
    "CNN to ViT": (lambda: TinyCNN(width=2), tiny_vit),
    "ViT to CNN": (tiny_vit, TinyCNN),
}


def batch_of(count: int, seed: int = 0) -> Batch:
    """Return `count` random images with labels 0, 1, 2, … and a second view."""
    generator = torch.Generator().manual_seed(seed)
    image, strong = (
        torch.randn(count, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    return Batch(image, torch.arange(count) % CLASSES, torch.arange(count), image, strong)


@dataclass
class Trial:
    """A student of the method on a tiny pair, ready to step. trained: the parameters that its preparation moved."""

    lane: Lane
    teacher: Teacher | None
    trained: set[str] = field(default_factory=set)

    def steps(self, count: int, epoch: int = 0, first: int = 0, seed: int | None = None) -> None:
        """Train `count` steps on batches of six."""
        for step in range(first, first + count):
            self.lane.step(batch_of(6, step if seed is None else seed + step), self.teacher, epoch, step, 10)

    @property
    def losses(self) -> dict[str, float]:
        return self.lane.meter.result()

    def state(self) -> dict[str, Tensor]:
        """Return the weights and buffers of student and method."""
        return {**self.lane.model.state_dict(), **self.lane.method.state_dict(prefix="method.")}


@dataclass
class Subject:
    """The method under test. node: its configuration, `_target_` included."""

    node: dict[str, Any]

    @cached_property
    def needs_teacher(self) -> bool:
        return method_of(self.node).needs_teacher

    @cached_property
    def exceptions(self) -> dict[str, str]:
        declared = make_method(self.node).exceptions
        unknown = set(declared) - set(EXCEPTIONS)
        need(not unknown, f"exceptions: {', '.join(sorted(unknown))}: there are {', '.join(EXCEPTIONS)}")
        return declared

    @cached_property
    def pair(self) -> str:
        """The first pair that the method accepts."""
        return self.first_pair()

    def first_pair(self) -> str:
        """Return the first pair that the method accepts. Raise CheckFailed if it refuses all of them."""
        refused = []
        for pair in PAIRS:
            try:
                self.trial(pair)
            except PairingError as error:
                refused.append(str(error))
            else:
                return pair
        raise CheckFailed(f"it refuses every pair: {'; '.join(refused)}")

    def trial(self, pair: str | None = None, precision: str = "fp32", settings: dict | None = None) -> Trial:
        """Return a fresh student from fixed seeds. Raise PairingError where the method refuses the pair."""
        network, taught = self.networks(pair or self.pair, precision)
        method = make_method({**self.node, **(settings or {})})
        torch.manual_seed(3)
        spec = None if taught is None else measure(taught.tap, CLASSES)
        method.build(measure(network.tap, CLASSES), spec, DataSpec(60, torch.arange(60) % CLASSES, CLASSES, SIDE))
        network.tap.needs = method.student_needs
        teacher = None if taught is None else teach(taught, method)
        options = OptimizerOptions(name="sgd", epochs=30, batch_size=6, lr=0.05, weight_decay=5e-4, schedule="constant")
        peer = teacher if isinstance(teacher, Peer) else None
        trial = Trial(Lane(network, method, options, 30, STREAMS, CPU, peer=peer), teacher)
        before = copy.deepcopy(method.state_dict())
        prepare(trial)
        trial.trained = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
        train_mode(trial.lane)
        return trial

    def networks(self, pair: str, precision: str) -> tuple[Network, Network | None]:
        """Return (student, teacher); the teacher's statistics are as of a trained network, so that no feature is
        degenerate."""
        numerics = Numerics("cpu", precision, False, torch.get_num_threads(), False)
        make_teacher, make_student = PAIRS[pair]
        torch.manual_seed(1)
        teacher = None
        if self.needs_teacher:
            teacher = Network(Tap(make_teacher(), SIDE), numerics, 6)
            for module in teacher.tap.modules():
                if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                    module.running_mean.normal_(0, 0.1)
        torch.manual_seed(2)
        return Network(Tap(make_student(), SIDE), numerics, 6), teacher


def teach(network: Network, method: Method) -> Teacher:
    """Return the teacher that a method reads, or the peer that it trains along."""
    network.tap.needs = method.teacher_needs
    network.tap.stages = stages_read([method])  # a map that the method reads and does not declare is None
    if not method.trains_teacher:
        return Teacher(network)
    method.peer = network.tap
    return Peer(network)


def prepare(trial: Trial) -> None:
    """Train two steps of the method's preparation, where it has one."""
    lane = trial.lane
    options = lane.method.preparation()
    if options is None:
        return
    own = Lane(lane.student, Preparation(lane.method), options, options.epochs, STREAMS, CPU)
    train_mode(own)
    Trial(own, trial.teacher).steps(2)


def train_mode(lane: Lane) -> None:
    lane.meter = TrainMeter(CPU, 100)
    lane.student.tap.train()
    lane.method.train()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def finite(trial: Trial) -> None:
    broken = [name for name, value in trial.losses.items() if not math.isfinite(value)]
    need(not broken, f"{', '.join(broken)}: not finite")


def one_step(subject: Subject, pair: str) -> None:
    """A step has a finite loss and trains the student and every part of the method, and never the teacher."""
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
    if "first step moves all" in subject.exceptions:
        need(bool(still), "the first step moves all parameters, which `exceptions` denies")
        trial.steps(1, epoch=15, first=1)
        still = {key for key in still if torch.equal(parts[key], lane.method.get_parameter(key))}
    need(not still, f"{', '.join(sorted(still))}: a step leaves them as they were (no gradient, or in no optimizer)")
    if teacher is not None and taught is not None:
        kept = same(taught, teacher.network.tap.state_dict())
        if "frozen teacher" in subject.exceptions:
            need(not kept, "a step leaves the teacher as it was, which `exceptions` denies")
        else:
            frozen = not any(parameter.requires_grad for parameter in teacher.network.tap.parameters())
            need(kept and frozen and not teacher.network.tap.training, "a step changes the teacher")


def small_batches(subject: Subject, pair: str) -> None:
    """Batches of one and two images give finite losses and weights: the last batch of an epoch may be that small."""
    trial = subject.trial(pair)
    for step, count in enumerate((6, 1, 2)):
        try:
            trial.lane.step(batch_of(count, step), trial.teacher, 0, step, 10)
        except RunError as error:
            raise CheckFailed(f"a batch of {count}: {one_line(error).partition(': ')[0]}") from error
    finite(trial)
    broken = [key for key, value in trial.lane.model.state_dict().items() if not value.isfinite().all()]
    need(not broken, f"{', '.join(broken)}: not finite after a small batch")


def hard_label_term(subject: Subject) -> None:
    """The hard-label term is called `ce`, and accuracy in training is shown if the classifier is trained."""
    trial = subject.trial()
    trial.steps(1)
    named, absent = "ce" in trial.lane.meter.names, "ce" in subject.exceptions
    need(named != absent, f"terms: {', '.join(trial.lane.meter.names)}; `exceptions` {'has' if absent else 'lacks'} ce")
    shown = "top1" in trial.losses
    need(shown == trial.lane.method.trains_classifier, "`trains_classifier` and the accuracy in training disagree")


def bf16(subject: Subject) -> None:
    """The loss in bf16 is within 5 % of the one in fp32."""
    found = {}
    for precision in ("fp32", "bf16"):
        trial = subject.trial(precision=precision)
        trial.steps(1)
        found[precision] = trial.losses["loss"]
    near = math.isclose(found["bf16"], found["fp32"], rel_tol=0.05)
    need(near, f"loss {found['fp32']:.4g} in fp32, {found['bf16']:.4g} in bf16")


def repeats(subject: Subject) -> None:
    """The same three steps twice give the same bits: every random number comes from `progress.draws`."""
    states = []
    for _ in range(2):
        trial = subject.trial()
        trial.steps(3)
        states.append(trial.state())
    need(same(*states), "three steps from one start end in different weights")


def resumes(subject: Subject) -> None:
    """The state dictionaries of student, method and optimizer are all that a checkpoint needs."""
    trial, fresh = subject.trial(), subject.trial()
    trial.steps(2)
    fresh.steps(3, epoch=1, seed=7)  # elsewhere, so that nothing agrees by chance
    for part in ("model", "method", "optimizer"):
        getattr(fresh.lane, part).load_state_dict(copy.deepcopy(getattr(trial.lane, part).state_dict()))
    for one in (trial, fresh):
        one.steps(2, first=2)
    need(same(trial.state(), fresh.state()), "a resumed run ends in other weights: some state is in no buffer")


def hyperparameters(subject: Subject) -> None:
    """Every number among the settings changes the loss or the preparation."""

    def outcome(settings: dict[str, Any]) -> tuple[object, ...]:
        trial = subject.trial(settings=settings)
        trial.steps(3, epoch=3)
        return trial.losses["loss"], trial.lane.method.preparation()

    usual = outcome({})
    numbers = {key: value for key, value in subject.node.items() if type(value) in (int, float)}
    idle = [key for key, value in numbers.items() if outcome({key: value * 2 if value else 1}) == usual]
    need(not idle, f"{', '.join(idle)}: twice the value changes nothing")


def reloads(subject: Subject) -> None:
    """The trained student loads into a fresh network, without the method, and answers alike."""
    trial = subject.trial()
    trial.steps(1)
    fresh = PAIRS[subject.pair][1]()
    deployed, image = trial.lane.deployed.eval(), batch_of(2).image
    if "reload" in subject.exceptions:
        need(not fits(fresh, deployed), "the student loads into a fresh network, which `exceptions` denies")
        return
    need(fits(fresh, deployed), "the student's weights do not fit a fresh network of its kind")
    need(
        torch.equal(fresh.eval()(image), deployed(image)),
        "the student's weights answer otherwise in a fresh network",
    )


def fits(fresh: nn.Module, trained: nn.Module) -> bool:
    """Load the weights of one network into another. Return False if they do not fit."""
    try:
        fresh.load_state_dict(trained.state_dict(), strict=True)
    except RuntimeError:
        return False
    return True


def averages(subject: Subject) -> None:
    """A copy of what is deployed, as a moving average of weights is one, does not read the original."""
    trial = subject.trial()
    image = batch_of(4, seed=9).image
    average = copy.deepcopy(trial.lane.deployed).eval()
    with torch.no_grad():
        before = average(image)
    trial.steps(3)
    trial.lane.deployed.eval()
    with torch.no_grad():
        need(torch.equal(average(image), before), "training changes a copy of the deployed network")
        need(not torch.equal(trial.lane.deployed(image), before), "training leaves the deployed network as it was")


PAIR_CHECKS: dict[str, Callable[[Subject, str], None]] = {"one step": one_step, "small batches": small_batches}
CHECKS: dict[str, Callable[[Subject], None]] = {
    "hard-label term": hard_label_term,
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


def first_sentence(check: Callable[..., None]) -> str:
    return " ".join((check.__doc__ or "").split())
