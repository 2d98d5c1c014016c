"""Published weights: read from this machine without a network connection, and an immediate error if both are missing."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrun.errors import ConfigError
from kdrun.models import hub
from kdrun.models.weights import Wanted
from kdrun.models.zoo import create_model

TIMM, TORCHVISION = "timm:test_resnet", "torchvision:resnet18"


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches, and a network that does not answer; what was connected to."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    asked: list[tuple[str, int]] = []

    def refuse(address, timeout=None):
        asked.append(address)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    return asked


def test_the_answer_names_the_place_the_file_and_the_setting_after_one_attempt(caches, tmp_path, capfd):
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        create_model(TIMM, num_classes=3, pretrained="true", wanted=Wanted("teacher"))
    line = str(caught.value)
    assert f"are not in {tmp_path}/hf/models--timm--test_resnet.r160_in1k (HF_HOME or HF_HUB_CACHE changes" in line
    assert "could not be downloaded (huggingface.co: Name or service not known)" in line
    assert "https://huggingface.co/timm/test_resnet.r160_in1k/resolve/main/model.safetensors" in line
    assert "set teacher.pretrained=FILE" in line
    assert "teacher.pretrained=false" in line
    with pytest.raises(ConfigError, match=r"torch/hub/checkpoints/resnet18-\w+.pth \(TORCH_HOME.*student.pretrained="):
        create_model(TORCHVISION, num_classes=3, pretrained="true")
    assert caches == [("huggingface.co", 443), ("download.pytorch.org", 443)]
    assert time.monotonic() - begun < 30
    assert capfd.readouterr().err == ""


def test_what_was_downloaded_is_found_without_a_network(caches, tmp_path):
    torch.manual_seed(1)
    source = create_model(TIMM, num_classes=1000, image_size=160)
    revision = tmp_path / "hf" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
    revision.mkdir(parents=True)
    (revision.parents[1] / "refs").mkdir()
    (revision.parents[1] / "refs" / "main").write_text("abc")
    save_file(source.state_dict(), revision / "model.safetensors")
    model = create_model(TIMM, num_classes=3, image_size=160, pretrained="true")
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight)
    assert not caches


def test_torchvision_finds_its_file_without_a_network(caches):
    source = create_model(TORCHVISION, num_classes=1000)
    weights = hub.Weights(url="https://download.pytorch.org/models/resnet18-f37072fd.pth")
    weights.place.parent.mkdir(parents=True)
    torch.save(source.state_dict(), weights.place)
    assert torch.equal(create_model(TORCHVISION, num_classes=3, pretrained="true").conv1.weight, source.conv1.weight)
    assert not caches


def test_offline_is_respected_and_asks_nobody(caches, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE forbids it"):
        create_model(TIMM, num_classes=3, pretrained="true")
    assert not caches


def test_a_mirror_and_a_proxy_are_asked_in_the_place_of_the_hub(caches, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example:8080")
    with pytest.raises(ConfigError, match=r"mirror.example: .*Download http://mirror.example:8080/timm/test_resnet"):
        create_model(TIMM, num_classes=3, pretrained="true")
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    with pytest.raises(ConfigError, match=r"the proxy proxy.example"):
        create_model(TIMM, num_classes=3, pretrained="true")
    assert caches == [("mirror.example", 8080), ("proxy.example", 3128)]


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    released = threading.Event()

    def silent(address, timeout=None):
        released.wait(20)
        raise TimeoutError

    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    monkeypatch.setattr(hub.socket, "create_connection", silent)
    begun = time.monotonic()
    assert hub.connection_problem("example.org", 443) == "no answer in 0 s"
    assert time.monotonic() - begun < 10
    released.set()


def test_a_network_without_published_weights_says_so():
    with (
        pytest.raises(ConfigError, match=r"has no published weights: set teacher.pretrained=FILE"),
        hub.reached("timm:x", None, "teacher"),
    ):
        pass
    with pytest.raises(ConfigError, match=r"resnet8 has no published weights here; set teacher.pretrained=FILE"):
        create_model("resnet8", num_classes=3, pretrained="true", wanted=Wanted("teacher"))


def test_the_cache_that_is_listed_is_what_is_there(caches, tmp_path):
    assert hub.cached_names() == ([], [])
    (tmp_path / "hf" / "models--timm--a" / "snapshots" / "x").mkdir(parents=True)
    (tmp_path / "hf" / "models--timm--a" / "snapshots" / "x" / "model.safetensors").write_bytes(b"x")
    (tmp_path / "hf" / "models--timm--broken").mkdir()
    Path(hub.hub_folder()).mkdir(parents=True)
    (hub.hub_folder() / "resnet18-f37072fd.pth").write_bytes(b"x")
    assert hub.cached_names() == (["timm/a"], ["resnet18-f37072fd.pth"])
