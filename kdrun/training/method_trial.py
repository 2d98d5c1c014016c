"""Trials of a method on tiny networks with random weights, ready for a few steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.method_schema import method_of
from kdrun.config.options import OptimizerOptions
from kdrun.errors import PairingError
from kdrun.methods.base import stages_read
from kdrun.methods.factory import make_method
from kdrun.models.features import Tap
from kdrun.models.layers import NOTHING, ZooModel, conv3x3, pool_flatten
from kdrun.streams import Streams
from kdrun.structures import Batch, DataSpec, Outputs
from kdrun.training.build import make_lane
from kdrun.training.loop import Lane, Preparation
from kdrun.training.meters import TrainMeter
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from kdrun.training.teacher import Teacher

CLASSES, SIDE = 5, 16
CPU, STREAMS = torch.device("cpu"), Streams("student", 0)


class TinyCNN(ZooModel):
    """Tiny CNN with a stem and two stages: [N, 3, 16, 16] -> maps 6x16x16, 8x8x8, 12x4x4 (times `width`)."""

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
    """Student of the method on a tiny pair, ready to step. trained: the parameters that its preparation changed."""

    lane: Lane
    teacher: Teacher | None
    trained: set[str] = field(default_factory=set)

    def steps(self, count: int, epoch: int = 0, first: int = 0, seed: int | None = None) -> None:
        """Train `count` steps on batches of six."""
        for step in range(first, first + count):
            self.step(batch_of(6, step if seed is None else seed + step), epoch, step)

    def step(self, batch: Batch, epoch: int = 0, step: int = 0) -> None:
        """Train one of ten steps of an epoch."""
        self.lane.step(batch, None if self.teacher is None else self.teacher.for_batch(batch), epoch, step, 10)

    @property
    def losses(self) -> dict[str, float]:
        return self.lane.meter.result()

    def state(self) -> dict[str, Tensor]:
        """Return the weights and buffers of student and method."""
        return {**self.lane.model.state_dict(), **self.lane.method.state_dict(prefix="method.")}


@dataclass
class Subject:
    """Method under test. node: its configuration, including `_target_`."""

    node: dict[str, Any]

    @cached_property
    def needs_teacher(self) -> bool:
        return method_of(self.node).needs_teacher

    @cached_property
    def pair(self) -> str:
        """Return the first pair that the method accepts. Raises PairingError if it rejects all of them."""
        refused = []
        for pair in PAIRS:
            try:
                self.trial(pair)
            except PairingError as error:
                refused.append(str(error))
            else:
                return pair
        raise PairingError(f"it rejects every pair: {'; '.join(refused)}")

    def trial(self, pair: str | None = None, precision: str = "fp32", settings: dict | None = None) -> Trial:
        """Return a fresh student from fixed seeds. Raises PairingError if the method rejects the pair."""
        network, taught = self.networks(pair or self.pair, precision)
        method = make_method({**self.node, **(settings or {})})
        lane = make_lane(
            student=network,
            teacher=taught,
            method=method,
            optimizer=OptimizerOptions(
                name="sgd", epochs=30, batch_size=6, lr=0.05, weight_decay=5e-4, schedule="constant"
            ),
            epochs=30,
            streams=STREAMS,
            spec=DataSpec(60, torch.arange(60) % CLASSES, CLASSES, SIDE),
        )
        if taught is not None:
            taught.tap.stages = stages_read([method])  # a map that the method reads without declaring it is None
        trial = Trial(lane, lane.peer or (None if taught is None else Teacher(taught)))
        before = copy.deepcopy(method.state_dict())
        prepare(trial)
        trial.trained = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
        train_mode(trial.lane)
        return trial

    def networks(self, pair: str, precision: str) -> tuple[Network, Network | None]:
        """Return (student, teacher). The teacher's statistics are as in a trained network, so that no feature is
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


def prepare(trial: Trial) -> None:
    """Train two steps of the method's preparation, if it has one."""
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
