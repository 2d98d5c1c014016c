"""Every zoo model has exactly the published number of parameters and tap shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdrun.errors import ConfigError
from kdrun.models.features import Tap, measure
from kdrun.models.zoo import ZOO, create_model

CONVOLUTIONAL = [name for name in ZOO if not name.startswith("vit")]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_parameter_counts(name, model_facts):
    fact = model_facts[name]
    classes = fact["num_classes"]
    model = create_model(name, num_classes=classes)
    assert count(model) == fact["params"]
    if "buffers_numel" in fact:
        assert sum(buffer.numel() for buffer in model.buffers()) == fact["buffers_numel"]
    other = 110 - classes
    assert count(create_model(name, num_classes=other)) == fact[f"params_{other}_classes"]


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if not name.endswith("nn")])
def test_tap_shapes_and_signs(name, model_facts):
    fact = model_facts[name]
    torch.manual_seed(0)
    model = create_model(name, num_classes=100)
    spec = measure(Tap(model, 32), 100)
    shapes = [list(shape) for shape in spec.maps] + [[spec.pooled]]
    assert shapes == list(fact["feature_shapes"].values())
    out = model.train().outputs(torch.randn(4, 3, 32, 32))
    signed = [bool((tensor < 0).any()) for tensor in (*out.maps, out.pooled)]
    assert signed == list(fact["feature_has_negative_values"].values())


@pytest.mark.parametrize(("name", "map_shape", "flat"), [("deepnn", (32, 8, 8), 2048), ("lightnn", (16, 8, 8), 1024)])
def test_tutorial_networks(name, map_shape, flat):
    spec = measure(Tap(create_model(name, num_classes=10), 32), 10)
    assert spec.maps[-1] == map_shape
    assert spec.pooled == flat
    assert spec.stems == 0


def test_tiny_vit():
    spec = measure(Tap(create_model("vit_cifar_tiny", num_classes=10), 32), 10)
    assert spec.tokens == (64, 128)
    assert spec.prefix == 1
    assert spec.attention == (4, 65, 32)
    distilled = measure(Tap(create_model("vit_cifar_tiny_distilled", num_classes=10), 32), 10)
    assert distilled.prefix == 2
    assert distilled.heads == ("dist",)


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if not name.endswith("nn")])
def test_preactivations_are_what_the_activation_saw(name):
    """relu(preact) is the map, wherever a model shows both (WRN's first maps are raw, MobileNetV2 shows none)."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10).eval()
    image = torch.randn(2, 3, 32, 32)
    out = model.outputs(image, frozenset({"preact"}))
    assert torch.equal(out.logits, model(image))
    assert model.outputs(image).preact is None
    if out.preact is None:
        assert name.startswith("mobilenet")
        return
    assert [p.shape for p in out.preact] == [m.shape for m in out.maps]
    if name.startswith("wrn"):
        assert torch.equal(out.preact[-1].relu(), out.maps[-1])
        return
    for before, after in zip(out.preact, out.maps, strict=True):
        if not name.startswith("shufflenet_v2"):  # its map is shuffled, its preactivation is not
            assert torch.equal(before.relu(), after)


def test_last_map_conventions():
    """preact_last_map gives RepDistiller's taps: raw for WRN, before the 1280-channel convolution for MobileNetV2."""
    image = torch.randn(4, 3, 32, 32)
    torch.manual_seed(0)
    plain = create_model("wrn_16_1", num_classes=10).train()
    torch.manual_seed(0)
    raw = create_model("wrn_16_1", num_classes=10, preact_last_map=True).train()
    a, b = plain.outputs(image), raw.outputs(image)
    assert torch.equal(a.logits, b.logits)
    assert (a.maps[-1] >= 0).all()
    assert (b.maps[-1] < 0).any()
    for name, shape in (("mobilenet_v2", (320, 2, 2)), ("mobilenet_v2_x0_5", (160, 2, 2))):
        spec = measure(Tap(create_model(name, num_classes=10, preact_last_map=True), 32), 10)
        assert spec.maps[-1] == shape
    spec = measure(Tap(create_model("shufflenet_v2", num_classes=10, kwargs={"last_tap": "conv"}), 32), 10)
    assert spec.maps[-1] == (1024, 4, 4)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_x0_5", "shufflenet_v1", "shufflenet_v2", "deepnn"]
)
def test_other_image_sizes(name):
    for size in (16, 48):
        model = create_model(name, num_classes=7, image_size=size).eval()
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_logits_are_the_classifier_of_pooled():
    for name in CONVOLUTIONAL:
        torch.manual_seed(0)
        model = create_model(name, num_classes=10).eval()
        out = model.outputs(torch.randn(2, 3, 32, 32))
        assert torch.allclose(model.get_classifier()(out.pooled), out.logits)


def test_shortcuts_without_weights():
    """akamaster's option A: every second pixel, and half of the new channels of zeros on each side."""
    torch.manual_seed(0)
    model = create_model("resnet20a", num_classes=10)
    names = model.state_dict()
    assert {"conv1.weight", "bn1.running_var", "layer3.2.conv2.weight", "linear.bias"} <= names.keys()
    assert not [name for name in names if "shortcut" in name or "downsample" in name]
    image = torch.randn(2, 16, 8, 8)
    out = model.layer2[0].shortcut(image)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], image[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_dropout_head():
    model = create_model("resnet8", num_classes=10, head="dropout_linear", head_dropout=0.3)
    assert isinstance(model.fc, nn.Sequential)
    assert model.fc[0].p == 0.3
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mobilenet_v3", "Did you mean mobilenet_v2"),
        ("timm:vit_tinny_patch16_224", "Did you mean vit_tiny_patch16_224"),
        ("torchvision:resnet51", "Did you mean resnet50"),
        ("no_such_package.models:net", "cannot import no_such_package"),
        ("math:nothing", "has no nothing"),
        ("math:sqrt", "must take num_classes"),
    ],
)
def test_unknown_models_are_named(name, words):
    with pytest.raises(ConfigError, match=words):
        create_model(name, num_classes=10)


def test_unfit_arguments_are_named():
    with pytest.raises(ConfigError, match="groupes"):
        create_model("shufflenet_v1", num_classes=10, kwargs={"groupes": 2})
    with pytest.raises(ConfigError, match="no published weights"):
        create_model("resnet8", num_classes=10, pretrained="true")
