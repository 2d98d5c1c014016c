"""What holds for every method, discovered from conf/method: a new YAML is a tested method."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdrun.assemble import make_method
from kdrun.batch import Batch, DataSpec
from kdrun.compose import choices, load
from kdrun.engine import Lane, Network, Teacher
from kdrun.methods.source import read_method
from kdrun.metrics import TrainMeter
from kdrun.models.taps import Tap, measure
from kdrun.numerics import Numerics
from kdrun.options import OptimizerOptions
from tests.conftest import TinyCNN

CLASSES, SIDE = 5, 16
CPU = torch.device("cpu")
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
    image = torch.randn(count, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    return Batch(image, torch.arange(count) % CLASSES, torch.arange(count), image)


def make_lane(
    name: str, pair: str, precision: str = "fp32", settings: dict | None = None
) -> tuple[Lane, Teacher | None]:
    """A lane of `name` on a tiny pair, its parts drawn from fixed seeds, ready to step."""
    node = {**load([f"method={name}"]).method, **(settings or {})}
    numerics = Numerics("cpu", precision, False, torch.get_num_threads(), False)
    make_teacher, make_student = PAIRS[pair]
    torch.manual_seed(1)
    teacher = Network(Tap(make_teacher(), SIDE), numerics, 6) if read_method(node["_target_"]).needs_teacher else None
    torch.manual_seed(2)
    student = Network(Tap(make_student(), SIDE), numerics, 6)
    method = make_method(node)
    torch.manual_seed(3)
    taught = None if teacher is None else measure(teacher.tap, CLASSES)
    method.build(measure(student.tap, CLASSES), taught, DataSpec(60, torch.arange(60) % CLASSES, CLASSES, SIDE))
    student.tap.needs = method.student_needs
    if teacher is not None:
        teacher.tap.needs = method.teacher_needs
        for module in teacher.tap.modules():  # statistics as of a trained network, so that nothing is degenerate
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
    options = OptimizerOptions(name="sgd", epochs=30, batch_size=6, lr=0.05, weight_decay=5e-4, schedule="constant")
    lane = Lane(student, method, options, 30, 0, CPU)
    lane.meter = TrainMeter(CPU, 100)
    lane.student.tap.train()
    return lane, None if teacher is None else Teacher(teacher)


every = pytest.mark.parametrize("name", METHODS)
on_every_pair = pytest.mark.parametrize("pair", PAIRS)


@every
@on_every_pair
def test_one_step(name, pair):
    """Finite loss; gradients reach the student and every extra part, never the teacher; its statistics stand still."""
    lane, teacher = make_lane(name, pair)
    frozen = None if teacher is None else copy.deepcopy(teacher.network.tap.state_dict())
    before = copy.deepcopy(lane.model.state_dict())
    extra = copy.deepcopy(lane.method.state_dict())
    lane.step(batch_of(6), teacher, 0, 0, 10)
    assert all(torch.isfinite(value) for value in lane.meter.result().values() if isinstance(value, torch.Tensor))
    assert lane.meter.result()["loss"] == lane.meter.result()["loss"]
    after = lane.model.state_dict()
    moved = [key for key in before if before[key].is_floating_point() and not torch.equal(before[key], after[key])]
    assert len(moved) > len(before) / 2
    for key, value in lane.method.named_parameters():
        assert not torch.equal(extra[key], value), f"{key} is in no optimizer"
    if teacher is not None:
        assert not any(parameter.requires_grad for parameter in teacher.network.tap.parameters())
        assert all(torch.equal(frozen[key], value) for key, value in teacher.network.tap.state_dict().items())
        assert not teacher.network.tap.training


@every
def test_hard_label_term_is_called_ce(name):
    lane, teacher = make_lane(name, "CNN to CNN")
    lane.step(batch_of(6), teacher, 0, 0, 10)
    assert "ce" in lane.meter.names


@every
@on_every_pair
def test_batch_of_one_and_last_small_batch(name, pair):
    lane, teacher = make_lane(name, pair)
    for step, count in enumerate((6, 1, 2)):
        lane.step(batch_of(count, seed=step), teacher, 0, step, 10)


@every
def test_bf16_is_close_to_fp32(name):
    losses = {}
    for precision in ("fp32", "bf16"):
        lane, teacher = make_lane(name, "CNN to CNN", precision)
        lane.step(batch_of(6), teacher, 0, 0, 10)
        losses[precision] = lane.meter.result()["loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


@every
def test_same_step_twice_is_the_same(name):
    states = []
    for _ in range(2):
        lane, teacher = make_lane(name, "CNN to CNN")
        for step in range(3):
            lane.step(batch_of(6, seed=step), teacher, 0, step, 10)
        states.append(lane.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@every
def test_every_hyperparameter_changes_the_loss(name):
    node = load([f"method={name}"]).method

    def loss(settings: dict) -> float:
        lane, teacher = make_lane(name, "CNN to CNN", settings=settings)
        lane.step(batch_of(6), teacher, 3, 0, 10)
        return lane.meter.result()["loss"]

    usual = loss({})
    for key, value in node.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        assert loss({key: value * 2 if value else 1}) != usual, f"{key} changes nothing"


@every
def test_student_reloads_without_the_method(name):
    lane, teacher = make_lane(name, "CNN to CNN")
    lane.step(batch_of(6), teacher, 0, 0, 10)
    fresh = TinyCNN(CLASSES)
    fresh.load_state_dict(lane.model.state_dict(), strict=True)
    image = batch_of(2).image
    assert torch.equal(fresh.eval()(image), lane.model.eval()(image))
