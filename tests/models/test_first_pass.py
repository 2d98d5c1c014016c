"""Networks as people write them: their outputs, their memory layouts, and one line if they cannot be used."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.options import ModelOptions, TeacherOptions
from kdrun.errors import ConfigError
from kdrun.models.features import Tap, measure
from kdrun.models.first_pass import Candidate, Traits, try_out
from kdrun.models.logits import described, find_logits
from kdrun.models.zoo import ZOO
from kdrun.training import cost
from kdrun.training.average import Average
from kdrun.training.build import make_tap
from kdrun.training.network import Network
from kdrun.training.precision import Numerics
from tests.models.small_networks import CLASSES, Small, Tutorial

PLAIN = Numerics("cpu", "fp32", False, 1, False)
LAST = torch.channels_last


class Returns(Small):
    """A network that returns what `make` makes of features and logits; in training `make_training`, if given."""

    def __init__(self, make, make_training=None):
        super().__init__()
        self.make, self.make_training = make, make_training or make

    def forward(self, x: Tensor):
        features = self.features(x)
        return (self.make_training if self.training else self.make)(self.fc(features), features)


class ReadsMemory(Small):
    """A network that reads the memory of its maps as it lies."""

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        n, c, h, w = x.shape
        x = torch.as_strided(x, (n, c, h, w), (c * h * w, h * w, w, 1))
        return F.relu(self.conv2(x)).mean((2, 3))


class ViewsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(-1).view(gradient.shape)


class BackwardAlone(Small):
    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(ViewsGradient.apply(self.conv1(x)))).mean((2, 3))


class TrainingAlone(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = x.view(len(x), -1).view(x.shape) if self.training else x
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


class Deep(Small):
    def __init__(self, num_classes: int = CLASSES):
        super().__init__(num_classes)
        self.volume = nn.Conv3d(1, 1, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        return super().features(self.volume(x[:, None])[:, 0])


class Wanders(Small):
    """A network that draws what no seed fixes, with statistics of its own that training moves."""

    def __init__(self, num_classes: int = CLASSES):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def features(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += self.training
        return F.dropout(F.relu(self.conv2(self.norm(self.conv1(x)) + 0.1 * (self.calls % 7))), 0.5).mean((2, 3))


class Gray(Small):
    def __init__(self, num_classes: int = CLASSES):
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)


class Fails(Small):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("boom in my forward")


class FailsInTraining(Small):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise KeyError("no labels")
        return super().forward(x)


class TwoInputs(Small):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class CastsItself(Small):
    def __init__(self, num_classes: int = CLASSES):
        super().__init__(num_classes)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


@dataclass
class Output:
    hidden: tuple[Tensor, ...]
    logits: Tensor


Named = namedtuple("Named", "aux_logits main")
SAME = {
    "logits alone": lambda logits, features: logits,
    "(logits, features)": lambda logits, features: (logits, features),
    "[features], logits": lambda logits, features: ([features], logits),
    "a list": lambda logits, features: [features, logits],
    "a dictionary": lambda logits, features: {"features": features, "logits": logits, "count": 3},
    "out": lambda logits, features: OrderedDict(aux=logits * 2, out=logits),
    "nested": lambda logits, features: {"x": ({"deep": [features, (logits,)]}, None)},
    "a dataclass": lambda logits, features: Output((features, features), logits),
    "an object": lambda logits, features: SimpleNamespace(loss=None, logits=logits),
    "an auxiliary head first": lambda logits, features: Named(logits * 2, logits),
    "the least nested": lambda logits, features: ([logits * 2], logits),
    "[N, K, 1, 1]": lambda logits, features: logits[:, :, None, None],
    "[N, 1, K]": lambda logits, features: (features, logits[:, None]),
    "classes beside them": lambda logits, features: (logits.argmax(1), logits.argmax(1)[:, None], logits),
}


def tried(model: nn.Module, side: int = 16, own: bool = True, role: str = "student") -> Traits:
    return try_out(Candidate(model, role, "nets:Net", side, CLASSES), own)


def network_of(model: nn.Module, side: int = 16) -> Network:
    return Network(Tap(model, side, traits=tried(model, side)), PLAIN, 8)


def images(count: int = 8, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=LAST)


@pytest.mark.parametrize("shape", SAME)
def test_logits_are_found_in_what_a_network_returns(shape):
    torch.manual_seed(0)
    model = Returns(SAME[shape])
    plain = Small()
    plain.load_state_dict(model.state_dict())
    network, expected = network_of(model), Network(Tap(plain, 16), PLAIN, 8)
    spec = measure(network.tap, CLASSES)
    assert spec.pooled == 6
    assert spec.classifier is model.fc
    for training in (True, False):
        network.tap.train(training)
        assert torch.equal(network(images()).logits, expected(images()).logits)
        assert torch.equal(model(images()), plain(images()))  # as evaluation, export and kdrun.load call it
    average = copy.deepcopy(model)
    assert torch.equal(average(images()), model(images()))


@pytest.mark.parametrize(
    ("make", "label", "left"),
    [
        (lambda logits, features: (logits, logits * 2), "[0]", "[1]"),
        (lambda logits, features: {"aux": logits * 2, "pred": logits}, "['pred']", "['aux']"),
        (lambda logits, features: Named(logits * 2, logits), ".main", ".aux_logits"),
        (lambda logits, features: {"embedding": logits * 2, "cls_score": logits}, "['cls_score']", "['embedding']"),
        (lambda logits, features: {"feats": logits * 2, "head": logits}, "['head']", "['feats']"),
    ],
)
def test_several_logits_are_named_once(make, label, left):
    note = tried(Returns(make)).notes[0]
    assert f"returns several logits: {label} is used, no loss is on {left}" in note
    assert tried(Returns(make)).training_notes == []
    assert tried(Returns(lambda logits, features: logits, make)).notes == []
    assert "in training mode: " + label in tried(Returns(lambda logits, features: logits, make)).training_notes[0]


def test_no_logits_among_what_a_network_returns():
    for make, line in (
        (lambda logits, features: None, "returns None for 2 images"),
        (lambda logits, features: "text", "returns a str for 2 images"),
        (lambda logits, features: (features, 3), "returns [0] [2, 6] for 2 images; none of these are logits [2, 5]"),
        (lambda logits, features: {"a": features}, "['a'] [2, 6]"),
        (lambda logits, features: logits.argmax(1), "a tensor [2]"),
        (lambda logits, features: logits.repeat(4, 1), "a tensor [8, 5]"),
        (lambda logits, features: logits[:, :, None, None].expand(-1, -1, 4, 4), "a tensor [2, 5, 4, 4]"),
        (lambda logits, features: Small, "returns a type"),
    ):
        with pytest.raises(ConfigError) as caught:
            tried(Returns(make))
        assert line in str(caught.value)
        assert str(caught.value).startswith("student nets:Net ")
    assert described([torch.zeros(1)] * 9).endswith("[5] [1], 3 more")
    looped: list = []
    looped.append(looped)
    assert find_logits(looped, 2, 5) == (None, [])


def test_other_classes_than_the_data_set_has():
    with pytest.raises(
        ConfigError, match=r"teacher nets:Net returns 12 outputs per image, but the data set has 5 classes"
    ):
        tried(Small(12), role="teacher")
    traits = tried(Returns(lambda logits, features: logits, lambda logits, features: features))
    assert "returns 6 outputs per image in training mode, but the data set has 5 classes" in traits.untrainable


@pytest.mark.parametrize("kind", [Tutorial, ReadsMemory, BackwardAlone, TrainingAlone, Deep])
def test_a_network_that_takes_contiguous_memory_alone_gets_it(kind):
    torch.manual_seed(0)
    model = kind()
    before = copy.deepcopy(model)
    network = network_of(model)
    assert not network.tap.traits.channels_last
    (note,) = network.tap.traits.notes
    assert note.startswith("student nets:Net runs in contiguous memory, because it fails in channels-last: ")
    assert re.search(r"[(/](test_first_pass|small_networks)\.py", note) or kind in (ReadsMemory, Deep)
    for key, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
        assert model.state_dict()[key].is_contiguous()
    for training in (False, True):
        network.tap.train(training)
        before.train(training)
        assert torch.allclose(network(images()).logits, before(images().contiguous()), atol=1e-6)
    network(images()).logits.sum().backward()
    assert model.fc.weight.grad is not None
    assert measure(network.tap, CLASSES).maps


@pytest.mark.parametrize("make", [Small, Wanders, lambda: nn.DataParallel(Small())])
def test_other_networks_are_channels_last(make):
    model = make()
    traits = tried(model)
    assert traits == Traits(notes=traits.notes)
    assert [note for note in traits.notes if "is random in evaluation" not in note] == []
    assert len(traits.notes) == (make is Wanders)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_first_passes_leave_no_trace():
    torch.manual_seed(0)
    quiet, model = Small(), Wanders().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tried(quiet)
    assert torch.equal(torch.get_rng_state(), state)
    tried(model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_zoo_is_called_as_it_is():
    """No hook, no other memory: a step has no operation more."""
    for name in ("resnet8", "vit_cifar_tiny"):
        assert name in ZOO
        tap = make_tap(ModelOptions(name), CLASSES, 16, None)
        assert tap.traits == Traits()
        assert not tap.model._forward_hooks
        assert not tap.model._forward_pre_hooks


@pytest.mark.parametrize(
    ("make", "side", "parts"),
    [
        (Fails, 16, ["fails on images of 16 px: ValueError: boom in my forward (", "test_first_pass.py, line "]),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 28**2, CLASSES)), 32, ["shapes", "takes images of 28 px"]),
        (Gray, 16, ["in its Conv2d conv1", "The images are RGB: the first layer must accept 3 channels."]),
        (
            TwoInputs,
            16,
            ["missing 1 required positional argument: 'y'", "test_first_pass.py, line ", "the only argument"],
        ),
        (CastsItself, 16, ["small_networks.py, line ", "remove .half(), .double()"]),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, CLASSES)), 16, ["set student.input_size=64."]),
    ],
)
def test_a_failing_forward_is_one_line(make, side, parts):
    with pytest.raises(ConfigError) as caught:
        tried(make(), side)
    line = str(caught.value)
    assert line.startswith("student nets:Net fails on images of ")
    assert "\n" not in line
    assert all(part in line for part in parts), line


def test_a_size_that_a_network_takes_is_found_above_and_below_its_own():
    for side, wanted in ((16, 64), (128, 64)):
        with pytest.raises(ConfigError, match=f"It takes images of {wanted} px: set teacher.input_size={wanted}"):
            tried(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, CLASSES)), side, role="teacher")


def test_what_cannot_be_trained_can_be_evaluated():
    model = Small()
    model.requires_grad_(False)
    assert "all its parameters are frozen" in tried(model).untrainable
    assert "fails in training mode on images of 16 px: KeyError: 'no labels'" in tried(FailsInTraining()).untrainable
    assert tried(FailsInTraining()).channels_last
    with pytest.raises(ConfigError, match="has no parameters"):
        tried(nn.Flatten())


@pytest.mark.parametrize(("cast", "name"), [(nn.Module.half, "float16"), (nn.Module.double, "float64")])
def test_weights_become_float32(cast, name):
    model = cast(Small())
    (note,) = tried(model).notes
    assert f"its weights were {name}, now float32" in note
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_lazy_network_draws_its_weights_from_the_run():
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(CLASSES))
        assert tried(model) == Traits()
        return model

    assert torch.equal(make(0)[2].weight, make(0)[2].weight)
    assert not torch.equal(make(0)[2].weight, make(1)[2].weight)


@pytest.mark.parametrize("own", [True, False])
def test_a_batch_stays_as_it_is_where_a_network_writes_over_its_images(own):
    """Teacher, student and the other lanes see one tensor."""

    class Overwrites(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2).sub_(1))

    model, batch = Overwrites(), images()
    traits = tried(model, own=own)
    assert traits == Traits()
    model(batch)
    assert torch.equal(batch, images()) == own  # of the zoo, timm and torchvision none does


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_network_that_cannot_be_copied():
    """The old weight_norm keeps a tensor that deepcopy refuses; its statistics and gradients stay as they were."""

    class Normed(Tutorial):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.utils.weight_norm(self.conv2)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.norm(self.conv1(x)), 2)
            return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).view(-1, 8 * 2 * 2))

    model = Normed()
    model(images().contiguous())
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert not tried(model).channels_last
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_torchscript_shows_no_layers():
    scripted = torch.jit.trace(Small(), images(2))
    with pytest.raises(ConfigError, match="student nets:Net is compiled TorchScript"):
        tried(scripted)  # type: ignore[arg-type]
    within = nn.Sequential(scripted)
    assert tried(within) == Traits()
    assert Tap(within, 16)(images()).logits.shape == (8, CLASSES)


def test_hooks_travel_to_another_process():
    model = Returns(SAME["(logits, features)"])
    model.make = model.make_training = tuple_of  # a lambda would not
    Tap(model, 16, traits=tried(model))  # whose probe has hooks too
    assert torch.equal(pickle.loads(pickle.dumps(model.eval()))(images()), model(images()))


def tuple_of(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return logits, features


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_of_torchvision_rest(name):
    options = TeacherOptions(f"torchvision:{name}", input_size=75, kwargs={"init_weights": False})
    tap = make_tap(options, CLASSES, 32, None)
    (note,) = tap.traits.training_notes
    assert "auxiliary heads" in note
    assert "teacher.kwargs.aux_logits=false" in note
    tap.train()
    tap(images(2, 32)).logits.sum().backward()
    heads = {key: value.grad for key, value in tap.model.named_parameters() if key.lower().startswith("aux")}
    assert heads  # files of such networks hold their weights
    assert all(gradient is None for gradient in heads.values())


def test_torchvision_says_which_size_it_takes():
    with pytest.raises(ConfigError, match=r"MaxPool2d features.* It takes images of 64 px: set student.input_size=64"):
        make_tap(ModelOptions("torchvision:alexnet"), CLASSES, 32, None)


class Frozen(Small):
    """A network that keeps its batch norm in evaluation, as people write it: train() returns nothing."""

    def __init__(self, num_classes: int = CLASSES):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(3)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


def test_training_mode_that_returns_nothing():
    network = network_of(Frozen())
    assert network(images()).logits.shape == (8, CLASSES)
    assert cost.count_flops(network.tap.model, 16) > 0
    measure(network.tap, CLASSES)


@pytest.mark.parametrize("persistent", [True, False])
def test_expanded_buffers_can_be_written(persistent):
    """Transformers number positions so; in PyTorch nothing can be copied into elements that share memory."""
    model = Small()
    model.register_buffer("position_ids", torch.arange(4).expand(3, -1), persistent=persistent)
    assert tried(model) == Traits()
    model.load_state_dict(model.state_dict())
    assert torch.equal(model.position_ids, torch.arange(4).repeat(3, 1))
    average = Average(model, 0.9, torch.device("cpu"))
    for _ in range(2):
        average.update(model)


def test_a_state_that_no_file_of_weights_holds():
    """It came up after the first epoch, when the weights were saved."""

    class Versioned(Small):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ConfigError, match=r"entries that are no tensors \(_extra_state\)"):
        tried(Versioned())


def test_an_average_needs_a_copy():
    model = Small()
    model.last = model(images())
    with pytest.raises(ConfigError, match=r"optimizer.ema_decay=0.9: the network cannot be copied .* keep no outputs"):
        Average(model, 0.9, torch.device("cpu"))
