"""Derived sets that a pretrained network makes, with random weights in a file of the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdrun.data.splits import ArraySet
from kdrun.errors import CheckpointError, ConfigError, DataError
from kdrun.evaluation.testsets.base import DerivedSet, Draw
from kdrun.evaluation.testsets.cache import derive
from kdrun.evaluation.testsets.gatys import (
    CONTENT,
    STYLE,
    Recipe,
    activations,
    content_loss,
    gram,
    load_vgg,
    style_loss,
    stylised,
)
from kdrun.evaluation.testsets.pretrained import batch_size, in_unit_range, normalised
from kdrun.evaluation.testsets.registry import parse
from kdrun.evaluation.testsets.silhouette import load_fcn
from kdrun.evaluation.testsets.style import Style

SMALL = "side=32,steps=2"


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """VGG-19's layers up to conv5_1 under torchvision's names."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    layers = make_layers(cfgs["E"])[:30]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    place = tmp_path_factory.mktemp("weights") / "vgg19-dcbb9e9d.pth"
    torch.save({f"features.{name}": value for name, value in layers.state_dict().items()}, place)
    return place


@pytest.fixture(scope="module")
def fcn(tmp_path_factory) -> Path:
    """FCN-ResNet101 whose background wins at about half of the positions of a noisy image."""
    from torchvision.models.segmentation import fcn_resnet101

    torch.manual_seed(0)
    network = fcn_resnet101(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    noise = torch.from_numpy(noisy(1)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = network(normalised(noise))["out"]
        margin = logits[:, 1:].amax(dim=1) - logits[:, 0]
        network.classifier[4].bias[0] += margin.median()
    place = tmp_path_factory.mktemp("weights") / "fcn.pth"
    torch.save(network.state_dict(), place)
    return place


def noisy(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clean() -> ArraySet:
    return ArraySet(noisy(4), np.array([0, 1, 2, 0]))


# The style transfer.


def test_the_losses_look_at_the_published_layers(vgg):
    network, found, block, layer = load_vgg(vgg, "cpu"), {}, 1, 0
    for position, module in enumerate(network):
        if isinstance(module, nn.MaxPool2d):
            block, layer = block + 1, 0
        elif isinstance(module, nn.ReLU):
            layer += 1
            found[position] = f"conv{block}_{layer}"
    assert [found[position] for position in STYLE] == ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
    assert found[CONTENT] == "conv4_2" and list(STYLE.values()) == [1.0, 0.8, 0.5, 0.3, 0.1]
    image = torch.rand(2, 3, 32, 32)
    maps = activations(network, image)
    assert torch.allclose(maps[1], torch.relu(network[0](image)))
    assert maps[CONTENT].shape == (2, 512, 4, 4) and maps[29].shape == (2, 512, 2, 2) and maps[29].min() >= 0


def test_gram_and_the_style_loss_against_loops():
    generator = np.random.default_rng(0)
    maps = {p: torch.from_numpy(generator.normal(size=(2, 3, 4, 5))) for p in STYLE}
    wanted = {p: torch.from_numpy(generator.normal(size=(1, 3, 3))) for p in STYLE}
    expected = np.zeros(2)
    for position, weight in STYLE.items():
        for image in range(2):
            each = maps[position][image].numpy()
            for i in range(3):
                for j in range(3):
                    inner = (each[i] * each[j]).sum()
                    assert np.isclose(gram(maps[position])[image, i, j], inner)
                    expected[image] += weight * (inner - wanted[position][0, i, j].item()) ** 2 / 9 / (3 * 4 * 5)
    assert np.allclose(style_loss(maps, wanted), expected)


def test_the_style_gradient_is_the_papers():
    """d/dF of |F F^T - A|^2 is 4 (F F^T - A) F for a symmetric A (Gatys et al., their equation 6 up to its constant)."""
    maps = {p: torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True) for p in STYLE}
    wanted = {p: gram(torch.randn(1, 3, 4, 5, dtype=torch.float64)) for p in STYLE}
    style_loss(maps, wanted).sum().backward()
    for position, weight in STYLE.items():
        flat = maps[position].detach()[0].flatten(1)
        by_hand = 4 * (flat @ flat.T - wanted[position][0]) @ flat * weight / 9 / 60
        assert maps[position].grad is not None
        assert torch.allclose(maps[position].grad[0].flatten(1), by_hand)


def test_content_loss_is_zero_for_the_content_alone():
    maps = torch.randn(2, 4, 3, 3)
    assert content_loss({CONTENT: maps}, maps).tolist() == [0, 0]
    assert torch.allclose(content_loss({CONTENT: maps + 2}, maps), torch.tensor([4.0, 4.0]))


def test_no_image_sees_another_and_the_loss_falls(vgg):
    network = load_vgg(vgg, "cpu").double()
    try:
        content, style = torch.rand(3, 3, 32, 32, dtype=torch.float64), torch.rand(1, 3, 32, 32, dtype=torch.float64)
        recipe = Recipe(content_weight=0.8, style_weight=0.2, steps=5, lr=0.02)
        together = stylised(network, content, style, recipe)
        for number in range(3):
            alone = stylised(network, content[number : number + 1], style, recipe)
            assert torch.allclose(together[number], alone[0], atol=1e-9)
        wanted = {position: gram(maps) for position, maps in activations(network, normalised(style)).items()}
        before, after = (style_loss(activations(network, normalised(images)), wanted) for images in (content, together))
        assert (after < 0.9 * before).all() and together.min() >= 0 and together.max() <= 1
        still = stylised(network, content, style, Recipe(1.0, 0.0, 3, 0.02))
        assert torch.allclose(still, content)  # nothing but the content wanted, and it starts there
    finally:
        network.float()


def test_normalisation_is_inverted():
    images = torch.rand(2, 3, 4, 4)
    assert torch.allclose(in_unit_range(normalised(images)), images, atol=1e-6)


def test_same_bytes_in_any_number_of_processes(clean, vgg, tmp_path):
    wished = parse(f"cue_conflict:method=gatys,weights={vgg},{SMALL}")
    one = derive(wished, clean, tmp_path / "one", processes=1, device="cpu")
    two = derive(wished, clean, tmp_path / "two", processes=2, device="cpu")
    assert not two.cached and np.array_equal(one.data.images, two.data.images) and one.folder.name == two.folder.name
    assert (one.data.images != clean.images).mean() > 0.5
    assert one.texture_labels is not None and (one.texture_labels != clean.labels).all()


@pytest.mark.parametrize("way", ["style:method=gatys,steps=2", "silhouette:mask=fcn"])
def test_same_bytes_alone_and_in_any_place(way, clean, vgg, fcn, tmp_path):
    wished = parse(f"{way},side=32,weights={vgg if 'gatys' in way else fcn}")
    assert isinstance(wished, DerivedSet)
    made = derive(wished, clean, tmp_path, processes=1, device="cpu")
    alone = [wished.image(image, Draw(wished.key(0), 9)) for image in clean.images[::-1]]
    assert np.array_equal(alone[::-1], made.data.images) and made.texture_labels is None


def test_one_image_at_a_time_on_the_cpu_and_a_fixed_batch_on_a_gpu():
    assert batch_size("cpu", 128, 128) == 1 and batch_size("cuda:1", 128, 128) == 64
    assert batch_size("cuda:0", 224, 224) == 20 and batch_size("cuda:0", 2000, 2000) == 1


# What the manifest says.


def test_the_manifest_names_recipe_weights_and_painting(clean, vgg, tmp_path):
    from PIL import Image

    painting, again = tmp_path / "a.png", tmp_path / "b.png"
    for place in (painting, again):
        Image.fromarray(noisy(1)[0]).resize((50, 40)).save(place)
    text = f"style:method=gatys,weights={vgg},side=32,steps=1,painting="
    found = derive(parse(text + str(painting)), clean, tmp_path, processes=1, device="cpu")
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["recipe"] == "Gatys with VGG-19 and a painting" and manifest["device"] == "cpu"
    assert len(manifest["weights_sha256"]) == len(manifest["painting_sha256"]) == 64
    assert "torchvision" in manifest["versions"] and "patch" not in manifest["parameters"]
    assert str(tmp_path) not in json.dumps(manifest)  # files enter by what they hold
    assert derive(parse(text + str(again)), clean, tmp_path, device="cpu").cached
    Image.fromarray(noisy(2)[1]).save(again)
    other = derive(parse(text + str(again)), clean, tmp_path, processes=1, device="cpu")
    assert not other.cached and not np.array_equal(other.data.images, found.data.images)


@pytest.mark.parametrize(
    ("name", "key"), [("style", "0720943bb9b2"), ("silhouette", "d662b159565e"), ("cue_conflict", "839af22c9561")]
)
def test_the_offline_sets_keep_their_draws(name, key):
    """A set made in another way changes neither their pixels nor their caches."""
    assert f"{parse(name).key(0):032x}".startswith(key)


def test_recipes_follow_the_parameters():
    assert parse("style").recipe == Style.usual != parse("style:method=gatys").recipe
    assert parse("silhouette:mask=fcn").recipe == "FCN-ResNet101 mask" != parse("silhouette").recipe
    assert "Gatys" in parse("cue_conflict:method=gatys").recipe


# The segmentation network.


def test_the_mask_is_whatever_is_not_background(clean, fcn):
    wished = parse(f"silhouette:mask=fcn,weights={fcn},side=32,ink=10,paper=200")
    assert isinstance(wished, DerivedSet)
    made = wished.image(clean.images[0], Draw(0, 0))
    pixels = torch.from_numpy(clean.images[:1]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = load_fcn(fcn, "cpu")((pixels - mean[:, None, None]) / std[:, None, None])["out"][0]
    expected = torch.where(logits.argmax(dim=0) > 0, 10, 200).numpy()
    assert np.array_equal(made, np.repeat(expected[..., None], 3, axis=2)) and 0.2 < (made == 10).mean() < 0.8


# Bad input.


@pytest.mark.parametrize(
    ("text", "file", "instead"),
    [
        ("style:method=gatys", "vgg19-dcbb9e9d.pth", "style method=quilting"),
        ("cue_conflict:method=gatys", "vgg19-dcbb9e9d.pth", "cue_conflict method=quilting"),
        ("silhouette:mask=fcn", "fcn_resnet101_coco-7ecb50ca.pth", "silhouette mask=offline"),
    ],
)
def test_absent_weights_are_one_line(text, file, instead, clean, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(DataError) as error:
        derive(parse(text), clean, tmp_path)
    says = str(error.value)
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / file) in says and "weights=FILE" in says
    assert instead in says and "\n" not in says and not (tmp_path / "testsets").exists()
    with pytest.raises(DataError, match="weights=/nowhere: no such file"):
        derive(parse(f"{text},weights=/nowhere"), clean, tmp_path)


def test_weights_are_found_where_torch_hub_keeps_them(vgg, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = Path(torch.hub.get_dir()) / "checkpoints" / vgg.name
    place.parent.mkdir(parents=True)
    place.symlink_to(vgg)
    found = parse("style:method=gatys").needed_files()
    assert found == {"weights": place}
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=str(Path(torch.hub.get_dir()))):
        parse("style:method=gatys").needed_files()


@pytest.mark.parametrize("text", ["style:method=gatys,side=32", "silhouette:mask=fcn"])
def test_weights_of_another_network_are_one_line(text, clean, tmp_path):
    torch.save({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        derive(parse(f"{text},weights={tmp_path / 'other.pth'}"), clean, tmp_path, processes=1, device="cpu")
    assert "other.pth" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "style:weights=a.pth",
        "style:steps=3",
        "style:painting=a.png",
        "style:method=gatys,patch=0.2",
        "style:method=gatys,painting=a.png,texture=brick",
        "cue_conflict:lr=1",
        "silhouette:weights=a.pth",
        "silhouette:mask=fcn,segments=50",
    ],
)
def test_a_parameter_of_another_way_is_one_line(text):
    with pytest.raises(ConfigError, match=r"only .* has this parameter"):
        parse(text)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_painting_that_is_none(content, clean, vgg, tmp_path):
    place = tmp_path / "painting.jpg"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(DataError, match=r"painting\.jpg"):
        derive(parse(f"style:method=gatys,weights={vgg},painting={place}"), clean, tmp_path, processes=1, device="cpu")


def test_the_command_says_how_fast(kdrun, vgg, tmp_path):
    words = ["dataset=fake", "dataset.fake_train=8", "dataset.fake_test=4", "dataset.fake_classes=2", "device=cpu"]
    code, out, err = kdrun(
        "testset", "style", "method=gatys", f"weights={vgg}", "side=32", "steps=1", "processes=1", *words
    )
    assert code == 0 and not err and "images/s" in out and "Gatys with VGG-19" in out
