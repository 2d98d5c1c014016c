"""timm, torchvision and own models show the same features as the zoo, and the same logits as without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdrun.errors import ConfigError
from kdrun.models.features import Tap, measure, pair_maps
from kdrun.models.zoo import create_model
from kdrun.structures import FEATURES, Spec

EXTERNAL = [
    ("timm:resnet10t", 32, 5, 512, None, 0),
    ("timm:convnext_atto", 64, 4, 320, None, 0),
    ("timm:vit_tiny_patch16_224", 64, 4, 192, (16, 192), 1),
    ("timm:deit_tiny_distilled_patch16_224", 64, 4, 192, (16, 192), 2),
    ("timm:mixer_s32_224", 64, 4, 512, (4, 512), 0),
    ("torchvision:resnet18", 64, 5, 512, None, 0),
    ("torchvision:mobilenet_v3_small", 64, 5, 1024, None, 0),
    ("torchvision:swin_t", 64, 4, 768, None, 0),
]


@pytest.mark.parametrize(("name", "size", "stages", "pooled", "tokens", "prefix"), EXTERNAL)
def test_external_models(name, size, stages, pooled, tokens, prefix):
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, image_size=size)
    tap = Tap(model, size)
    spec = measure(tap, 7)
    assert len(spec.maps) == stages
    assert (spec.pooled, spec.tokens, spec.prefix) == (pooled, tokens, prefix)
    image = torch.randn(2, 3, size, size)
    model.eval()
    plain = model(image)
    tap.needs = FEATURES
    out = tap(image)
    assert torch.allclose(out.logits, plain, atol=1e-5)
    assert [tuple(item.shape[1:]) for item in out.maps] == list(spec.maps)
    if spec.classifier is not None:
        assert torch.allclose(spec.classifier(out.pooled), out.logits, atol=1e-5)
    tap.needs = frozenset()
    assert tap(image).maps is None


def test_measuring_changes_nothing():
    model = create_model("torchvision:resnet18", num_classes=7).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure(Tap(model, 32), 7)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_distilled_heads_apart_only_for_methods_that_read_them():
    model = create_model("vit_cifar_tiny_distilled", num_classes=5)
    image = torch.randn(2, 3, 32, 32)
    tap = Tap(model, 32, frozenset({"heads"})).train()
    out = tap(image)
    mean = (out.logits + out.heads["dist"]) / 2
    assert not torch.allclose(out.logits, mean)
    assert torch.allclose(Tap(model, 32).train()(image).logits, mean, atol=1e-6)
    tap.eval()
    assert torch.allclose(tap(image).logits, mean, atol=1e-6)


def test_attention_is_the_last_blocks():
    model = create_model("vit_cifar_tiny", num_classes=5).eval()
    tap = Tap(model, 32, frozenset({"attention"}))
    seen = []
    model.blocks[-1].attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    q, k, v = tap(torch.randn(2, 3, 32, 32)).attention
    expected = model.blocks[-1].attn.qkv(seen[0]).reshape(2, 65, 3, 4, 32).permute(2, 0, 3, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), expected, strict=True))


def own_net(num_classes: int, width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def test_own_callable():
    model = create_model("tests.models.test_adapters:own_net", num_classes=3, kwargs={"width": 5})
    spec = measure(Tap(model, 16), 3)
    assert spec.maps == ((5, 16, 16), (8, 8, 8))
    assert spec.pooled == 8


def test_own_normalisation_and_size():
    """A network with its own mean, std and input size sees the image that its training saw."""
    model = own_net(3)
    data, own = ([0.5] * 3, [0.25] * 3), ([0.4, 0.5, 0.6], [0.2, 0.2, 0.2])
    tap = Tap(model, 16, input_size=8, data_stats=data, own_stats=own)
    raw = torch.rand(2, 3, 16, 16)
    normalised = (raw - 0.5) / 0.25
    wanted = (raw - torch.tensor(own[0]).view(3, 1, 1)) / torch.tensor(own[1]).view(3, 1, 1)
    wanted = nn.functional.interpolate(wanted, size=8, mode="bilinear", antialias=True)
    assert torch.allclose(tap.prepare(normalised), wanted, atol=1e-5)


def spec(*shapes: tuple[int, int, int], stems: int = 1) -> Spec:
    return Spec(num_classes=10, image_size=32, maps=shapes, stems=stems)


RESNET = spec((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
VGG = spec((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 4, 4))
MOBILENET = spec((32, 16, 16), (24, 16, 16), (32, 8, 8), (96, 4, 4), (1280, 2, 2))
VIT = spec(*[(128, 8, 8)] * 4, stems=0)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (RESNET, RESNET, [(1, 1), (2, 2), (3, 3)]),
        (VGG, VGG, [(1, 1), (2, 2), (3, 3), (4, 4)]),
        # The published table leaves these cells empty: pairing by position would match 16 px with 32 px.
        (MOBILENET, RESNET, [(1, 2), (2, 3), (3, 3)][:2] + [(3, 3)]),
        (VIT, VIT, [(0, 0), (1, 1), (2, 2), (3, 3)]),
    ],
)
def test_pairs(student, teacher, pairs):
    found = pair_maps(student, teacher)
    if student is MOBILENET:
        assert (1, 2) in found or (1, 1) in found
        assert len(found) == 3
    else:
        assert found == pairs
    assert found == sorted(found)
    assert [(b, a) for a, b in pair_maps(teacher, student)] == found


def test_pairs_are_in_order_and_unique():
    for a in (RESNET, VGG, MOBILENET, VIT):
        for b in (RESNET, VGG, MOBILENET, VIT):
            found = pair_maps(a, b)
            assert len(found) == min(len(a.maps) - a.stems, len(b.maps) - b.stems)
            for (i, j), (k, m) in zip(found, found[1:], strict=False):
                assert i < k
                assert j < m


def test_nothing_to_pair():
    assert pair_maps(Spec(10, 32), RESNET) == []


def test_pretrained_without_a_network_says_how(monkeypatch):
    import timm

    def no_network(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(ConfigError, match=r"could not be downloaded .*pretrained=FILE"):
        create_model("timm:resnet18", num_classes=2, pretrained="true")


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Patches(nn.Module):
    """A ViT whose patch embedding is a numbered sequence (lucidrains/vit-pytorch) and whose blocks may take [L, N, D],
    PyTorch's default."""

    def __init__(self, sequence_first: bool):
        super().__init__()
        self.sequence_first = sequence_first
        self.embed = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 16), nn.LayerNorm(16))
        self.cls = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.ModuleList(nn.ModuleList([Block(16), Block(16)]) for _ in range(4))
        self.fc = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(nn.functional.unfold(image, 4, stride=4).transpose(1, 2))
        x = torch.cat([self.cls.expand(image.shape[0], -1, -1), x], 1)
        x = x.transpose(0, 1) if self.sequence_first else x
        for first, second in self.blocks:  # type: ignore[misc]
            x = second(first(x))
        return self.fc(x[0] if self.sequence_first else x[:, 0])


@pytest.mark.parametrize("sequence_first", [False, True])
def test_a_transformers_stages_are_its_blocks(sequence_first):
    model = Patches(sequence_first).eval()
    tap = Tap(model, 32, FEATURES & {"maps", "tokens", "pooled"})
    assert tap.adapter.maps == ["blocks.0.1", "blocks.1.1", "blocks.2.1", "blocks.3.1"]
    image = torch.randn(3, 3, 32, 32)
    outputs = tap(image)
    assert [tuple(stage.shape) for stage in outputs.maps] == [(3, 16, 8, 8)] * 4
    assert outputs.tokens.shape == (3, 64, 16) and outputs.prefix.shape == (3, 1, 16)
    alone = tap(image[1:2])
    assert torch.allclose(alone.tokens[0], outputs.tokens[1], atol=1e-5)


@pytest.mark.parametrize(("name", "side"), [("coat_tiny", 224), ("hiera_tiny_224", 224)])
def test_timm_networks_of_another_build_are_probed(name, side):
    """CoaT's intermediates are lists, Hiera's attention counts its heads elsewhere."""
    model = create_model(f"timm:{name}", num_classes=3, image_size=side).eval()
    spec = measure(Tap(model, side, frozenset({"maps", "pooled"})), 3)
    assert len(spec.maps) >= 2


@pytest.mark.parametrize(("name", "patches"), [("volo_d1_224", 196), ("pit_ti_224", None)])
def test_a_class_token_is_no_patch(name, patches):
    """Neither declares its prefix: VOLO's final tokens have one more than its map, PiT keeps only that one."""
    model = create_model(f"timm:{name}", num_classes=3, image_size=224).eval()
    spec = measure(Tap(model, 224, frozenset({"maps", "tokens"})), 3)
    assert (None if spec.tokens is None else spec.tokens[0]) == patches


def test_a_wrong_tag_of_timm_is_named():
    with pytest.raises(ConfigError, match=r"resnet18 has no weights of that name. Did you mean a1_in1k\?"):
        create_model("timm:resnet18.a1_in1k_typo", num_classes=2)
