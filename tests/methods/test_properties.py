"""What holds for every method, discovered from conf/method: a new YAML is a tested method."""

from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
from torch import nn

from kdrun.batch import Batch, DataSpec
from kdrun.compose import load
from kdrun.conf_groups import choices
from kdrun.engine import Lane, Preparation
from kdrun.errors import PairingError
from kdrun.methods.base import stages_read
from kdrun.methods.build import make_method
from kdrun.methods.source import read_method
from kdrun.metrics import TrainMeter
from kdrun.models.taps import Tap, measure
from kdrun.network import Network, Peer, Teacher
from kdrun.numerics import Numerics
from kdrun.options import OptimizerOptions
from kdrun.streams import Streams
from tests.conftest import TinyCNN

CLASSES, SIDE = 5, 16
CPU, STREAMS = torch.device("cpu"), Streams("student", 0)
METHODS = choices("method")


def tiny_vit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=SIDE, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=CLASSES
    )


PAIRS = {
    "CNN to CNN": (lambda: TinyCNN(CLASSES, width=2), lambda: TinyCNN(CLASSES)),
    "CNN to ViT": (lambda: TinyCNN(CLASSES, width=2), tiny_vit),
    "ViT to CNN": (tiny_vit, lambda: TinyCNN(CLASSES)),
}


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image, strong = (torch.randn(count, 3, SIDE, SIDE, generator=generator).contiguous(
        memory_format=torch.channels_last) for _ in range(2))  # fmt: skip
    return Batch(image, torch.arange(count) % CLASSES, torch.arange(count), image, strong)


def make_networks(name: str, pair: str, precision: str) -> tuple[Network, Network | None]:
    """(student, teacher) from fixed seeds; the teacher's statistics as of a trained network, so that nothing is
    degenerate."""
    numerics = Numerics("cpu", precision, False, torch.get_num_threads(), False)
    make_teacher, make_student = PAIRS[pair]
    torch.manual_seed(1)
    teacher = None
    if read_method(load([f"method={name}"]).method["_target_"]).needs_teacher:
        teacher = Network(Tap(make_teacher(), SIDE), numerics, 6)
        for module in teacher.tap.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
    torch.manual_seed(2)
    return Network(Tap(make_student(), SIDE), numerics, 6), teacher


def make_lane(
    name: str, pair: str, precision: str = "fp32", settings: dict | None = None
) -> tuple[Lane, Teacher | None]:
    """A lane of `name` on a tiny pair, prepared and ready to step. Raises PairingError where the method cannot run."""
    node = {**load([f"method={name}"]).method, **(settings or {})}
    student, network = make_networks(name, pair, precision)
    method = make_method(node)
    torch.manual_seed(3)
    taught = None if network is None else measure(network.tap, CLASSES)
    method.build(measure(student.tap, CLASSES), taught, DataSpec(60, torch.arange(60) % CLASSES, CLASSES, SIDE))
    student.tap.needs = method.student_needs
    teacher, peer = None, None
    if network is not None:
        network.tap.needs = method.teacher_needs
        network.tap.stages = stages_read([method])  # a map that the method reads and does not declare is None
        if method.trains_teacher:
            method.peer, peer = network.tap, Peer(network)
        teacher = peer or Teacher(network)
    options = OptimizerOptions(name="sgd", epochs=30, batch_size=6, lr=0.05, weight_decay=5e-4, schedule="constant")
    lane = Lane(student, method, options, 30, STREAMS, CPU, peer=peer)
    before = copy.deepcopy(method.state_dict())
    prepare(lane, teacher)
    lane.prepared = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    lane.meter = TrainMeter(CPU, 100)
    lane.student.tap.train()
    lane.method.train()
    return lane, teacher


def prepare(lane: Lane, teacher: Teacher | None) -> None:
    """Two steps of the method's preparation, where it has one."""
    options = lane.method.preparation()
    if options is None:
        return
    own = Lane(lane.student, Preparation(lane.method), options, options.epochs, STREAMS, CPU)
    own.meter = TrainMeter(CPU, 100)
    own.student.tap.train()
    own.method.train()
    for step in range(2):
        own.step(batch_of(6, seed=step), teacher, 0, step, 2)


def lane_or_skip(name: str, pair: str) -> tuple[Lane, Teacher | None]:
    """As `make_lane`; a pair that the method refuses is a skipped test whose reason is the method's own line."""
    try:
        return make_lane(name, pair)
    except PairingError as error:
        reason = str(error)
    assert "\n" not in reason
    assert f"method {name}" in reason
    pytest.skip(reason)


def exceptions(name: str) -> dict[str, str]:
    target = load([f"method={name}"]).method["_target_"]
    module, _, kind = target.rpartition(".")
    found = getattr(importlib.import_module(module), kind).exceptions
    assert set(found) <= EXCEPTIONS, f"{name} declares an exception that no test knows"
    return found


# What a method may declare untrue of itself; each test asserts exactly the opposite then.
EXCEPTIONS = {"ce", "reload", "frozen teacher", "first step moves all"}
every = pytest.mark.parametrize("name", METHODS)
on_every_pair = pytest.mark.parametrize("pair", PAIRS)


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@every
@on_every_pair
def test_one_step(name, pair):
    """Finite loss; gradients reach the student and every extra part, never the teacher; its statistics stand still."""
    lane, teacher = lane_or_skip(name, pair)
    frozen = None if teacher is None else copy.deepcopy(teacher.network.tap.state_dict())
    before = copy.deepcopy(lane.model.state_dict())
    extra = {key: value.detach().clone() for key, value in lane.method.named_parameters()}
    lane.step(batch_of(6), teacher, 0, 0, 10)
    assert all(math.isfinite(value) for value in lane.meter.result().values())
    after = lane.model.state_dict()
    moved = [key for key in before if before[key].is_floating_point() and not torch.equal(before[key], after[key])]
    assert len(moved) > len(before) / 2
    still = {key for key, value in lane.method.named_parameters()
             if torch.equal(extra[key], value) and key not in lane.prepared}  # fmt: skip
    if "first step moves all" in exceptions(name):
        assert still
        lane.step(batch_of(6, seed=1), teacher, 15, 1, 10)
        still = {key for key in still if torch.equal(extra[key], lane.method.get_parameter(key))}
    assert not still, f"{still} are in no optimizer or get no gradient"
    if teacher is None:
        return
    if "frozen teacher" in exceptions(name):
        assert not same(frozen, teacher.network.tap.state_dict())
        return
    assert not any(parameter.requires_grad for parameter in teacher.network.tap.parameters())
    assert same(frozen, teacher.network.tap.state_dict())
    assert not teacher.network.tap.training


@every
def test_runs_on_some_pair(name):
    """A method may refuse pairs, with its reason, but not all of them."""
    refused = []
    for pair in PAIRS:
        try:
            make_lane(name, pair)
        except PairingError as error:
            refused.append(str(error))
    assert len(refused) < len(PAIRS), refused


def pair_of(name: str) -> str:
    """The first pair on which the method runs."""
    for pair in PAIRS:
        try:
            make_lane(name, pair)
        except PairingError:
            continue
        return pair
    raise AssertionError(f"{name} runs on no pair")


@every
def test_hard_label_term_is_called_ce(name):
    lane, teacher = make_lane(name, pair_of(name))
    lane.step(batch_of(6), teacher, 0, 0, 10)
    assert ("ce" in lane.meter.names) == ("ce" not in exceptions(name))
    assert ("top1" in lane.meter.result()) == lane.method.trains_classifier


@every
@on_every_pair
def test_batch_of_one_and_last_small_batch(name, pair):
    lane, teacher = lane_or_skip(name, pair)
    for step, count in enumerate((6, 1, 2)):
        lane.step(batch_of(count, seed=step), teacher, 0, step, 10)
    assert all(math.isfinite(value) for value in lane.meter.result().values())
    assert all(value.isfinite().all() for value in lane.model.state_dict().values())


@every
def test_bf16_is_close_to_fp32(name):
    losses = {}
    for precision in ("fp32", "bf16"):
        lane, teacher = make_lane(name, pair_of(name), precision)
        lane.step(batch_of(6), teacher, 0, 0, 10)
        losses[precision] = lane.meter.result()["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


@every
def test_same_step_twice_is_the_same(name):
    states = []
    for _ in range(2):
        lane, teacher = make_lane(name, pair_of(name))
        for step in range(3):
            lane.step(batch_of(6, seed=step), teacher, 0, step, 10)
        states.append({**lane.model.state_dict(), **lane.method.state_dict(prefix="method.")})
    assert same(*states)


@every
def test_resume_is_the_same(name):
    """What a checkpoint holds of student, method and optimizer is all there is."""
    pair = pair_of(name)
    lane, teacher = make_lane(name, pair)
    for step in range(2):
        lane.step(batch_of(6, seed=step), teacher, 0, step, 10)
    fresh, other = make_lane(name, pair)
    for step in range(3):  # elsewhere, so that nothing agrees by chance
        fresh.step(batch_of(6, seed=7 + step), other, 1, step, 10)
    fresh.model.load_state_dict(copy.deepcopy(lane.model.state_dict()))
    fresh.method.load_state_dict(copy.deepcopy(lane.method.state_dict()))
    fresh.optimizer.load_state_dict(copy.deepcopy(lane.optimizer.state_dict()))
    for step in (2, 3):
        lane.step(batch_of(6, seed=step), teacher, 0, step, 10)
        fresh.step(batch_of(6, seed=step), other, 0, step, 10)
    assert same(lane.model.state_dict(), fresh.model.state_dict())
    assert same(lane.method.state_dict(), fresh.method.state_dict())


@every
def test_every_hyperparameter_changes_the_loss(name):
    node = load([f"method={name}"]).method
    pair = pair_of(name)

    def outcome(settings: dict) -> tuple:
        lane, teacher = make_lane(name, pair, settings=settings)
        for step in range(3):
            lane.step(batch_of(6, seed=step), teacher, 3, step, 10)
        return lane.meter.result()["loss"], lane.method.preparation()

    usual = outcome({})
    for key, value in node.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        assert outcome({key: value * 2 if value else 1}) != usual, f"{key} changes nothing"


@every
def test_student_reloads_without_the_method(name):
    lane, teacher = make_lane(name, pair_of(name))
    lane.step(batch_of(6), teacher, 0, 0, 10)
    fresh = PAIRS[pair_of(name)][1]()
    image = batch_of(2).image
    deployed = lane.deployed.eval()
    if "reload" in exceptions(name):
        with pytest.raises(RuntimeError):
            fresh.load_state_dict(deployed.state_dict(), strict=True)
        return
    fresh.load_state_dict(deployed.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(image), deployed(image))


@every
def test_an_average_of_what_is_deployed_is_a_network_of_its_own(name):
    """A moving average of weights is a deep copy: it must read the copied student, not the original."""
    lane, teacher = make_lane(name, pair_of(name))
    image = batch_of(4, seed=9).image
    average = copy.deepcopy(lane.deployed).eval()
    with torch.no_grad():
        before = average(image)
    for step in range(3):
        lane.step(batch_of(6, seed=step), teacher, 0, step, 10)
    lane.deployed.eval()
    with torch.no_grad():
        assert torch.equal(average(image), before)
        assert not torch.equal(lane.deployed(image), before)
