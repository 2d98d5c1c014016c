"""Shared pieces: a command line that runs in this process, tiny networks, and the real CIFAR-100 where it is present."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig

from kdrun.config.groups import conf_dir
from kdrun.hardware import cpu_kind

torch.set_num_threads(1)  # A second thread slows down networks this small, and the tests run in two processes.

# Elsewhere PyTorch emulates bf16 at a tenth of the speed: what holds in fp32 is not shown there again and again.
NATIVE_BF16 = cpu_kind() in ("AMX", "AVX512_BF16")

Compose = Callable[..., DictConfig]

FIXTURES = Path(__file__).parent / "fixtures"

# Every test of a run says how large it is; this is the smallest that still has a last small batch.
TINY = [
    "dataset=fake",
    "dataset.fake_train=72",
    "dataset.fake_test=40",
    "dataset.fake_classes=4",
    "dataset.image_size=16",
    "batch_size=32",
    "teacher.recipe.batch_size=32",
    "teacher.recipe.epochs=1",
    "teacher=resnet8",
    "student=resnet8",
    "precision=fp32",
    "teacher.precision=fp32",
    "compile=false",
    "threads=1",
]


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the repository, reads the user's data by accident, or leaves another thread count."""
    monkeypatch.setenv("KDRUN_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("KDRUN_CACHE", str(tmp_path / "cache_home"))
    monkeypatch.delenv("KDRUN_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(autouse=True)
def unpainted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are composed and written, but blank: painting its curves takes half of a tiny run's time. The tests that
    look at pictures are marked so."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save_blank)


def save_blank(figure: Figure, file: IO[bytes], *, format: str, dpi: int) -> None:
    from PIL import Image

    width, height = figure.get_size_inches() * dpi
    Image.new("1", (round(width), round(height))).save(file, format)


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """The same arguments give the same configuration; Hydra takes a fifth of a second to compose it."""
    from kdrun.config import compose as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compose", remembering(module.compose))
        yield


def remembering(compose: Compose) -> Compose:
    """`compose`, which copies what it has composed before."""
    kept: dict[tuple[str, ...], DictConfig] = {}

    def remember(overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
        if config_dir is not None:  # the user's files may have changed
            return compose(overrides, config_dir)
        words = (str(conf_dir()), *overrides)
        if words not in kept:
            kept[words] = compose(overrides)
        return deepcopy(kept[words])

    return remember


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let optimizer.lr=77 train with a rate beyond every bound, so that the loss is not finite after an update."""
    from kdrun.training import loop

    usual = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda options, *at: 1e30 if options.lr == 77 else usual(options, *at))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def kdrun(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """kdrun("train", "seed=1") -> (exit code, stdout, stderr), in this process."""

    def call(*words: str) -> tuple[int, str, str]:
        from kdrun import console
        from kdrun.cli import main

        console.out.width = 200  # it may have been imported before COLUMNS was set
        capfd.readouterr()
        code = main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def cifar100_root() -> str:
    """The real CIFAR-100, where KDRUN_TEST_DATA points to it."""
    root = os.environ.get("KDRUN_TEST_DATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the real CIFAR-100: set KDRUN_TEST_DATA to the folder that holds it")
    return root


@pytest.fixture(scope="session")
def model_facts() -> dict[str, dict]:
    """Parameter counts and tap shapes by zoo name."""
    other = {
        "shufflev1": "shufflenet_v1",
        "shufflev2": "shufflenet_v2",
        "mobilenetv2_x0_5": "mobilenet_v2_x0_5",
        "mobilenetv2_x1_0": "mobilenet_v2",
    }
    facts = json.loads((FIXTURES / "models.json").read_text())
    return {other.get(name.lower(), name.lower()): fact for name, fact in facts.items()}


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """image_folder("train", classes=3, count=4, size=(20, 24)) writes class folders of PNGs and returns their root."""
    from PIL import Image

    def make(name: str, classes: int = 3, count: int = 4, size: tuple[int, int] = (20, 24), seed: int = 0) -> Path:
        generator = np.random.default_rng(seed)
        root = tmp_path / name
        for label in range(classes):
            folder = root / f"class_{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (size[0], size[1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        return root

    return make
