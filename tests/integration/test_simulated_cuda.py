"""GPU code on the simulated device: the bits of the CPU, no device mixed up, nothing that the host waits for,
and steps that a CUDA graph can play."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdrun.cli import main
from kdrun.config.groups import choices
from kdrun.training import loop, trainer
from kdrun.training.meters import TrainMeter
from tests.conftest import TINY
from tests.integration.test_runs import only_run
from tests.simulated_cuda import GPU, Kernel, simulated_cuda, storage

# Three whole batches and a small one in each epoch, another rate in every step.
SMALL = [word for word in TINY if not word.startswith("dataset.fake_train")]
SMALL += ["dataset.fake_train=104", "epochs=2", "teacher.random=true", "optimizer.schedule=cosine", "eval_every=2"]
VIT = "+{0}.kwargs.img_size=16 +{0}.kwargs.patch_size=4 +{0}.kwargs.embed_dim=16 +{0}.kwargs.depth=2 +{0}.kwargs.num_heads=2"
TRANSFORMER = ["student=timm:vit_tiny_patch16_224", *VIT.format("student").split(), "optimizer.lr=0.001"]
DISTILLED = ["student=timm:deit_tiny_distilled_patch16_224", *VIT.format("student").split(), "optimizer.lr=0.01"]
WORDS = {
    "capd": ["teacher=timm:vit_tiny_patch16_224", *VIT.format("teacher").split()],
    "cskd": DISTILLED,
    "deit": DISTILLED,
    "vlfkd": TRANSFORMER,
    "combine": ["method.parts=[kd,{method: crd, weight: 0.8},dkd]"],
    "sskd": ["method.prepare_epochs=1"],
    "fitnet": ["method.hint_epochs=1"],
}
# Kernels of one step, the loader's among them, resnet8 to resnet8. They may only become fewer.
LAUNCHES: dict[str, int] = {
    "at": 259,
    "capd": 572,
    "cc": 167,
    "combine": 450,
    "cosine": 197,
    "crd": 353,
    "crd_inbatch": 197,
    "cskd": 187,
    "ctkd": 197,
    "deit": 160,
    "dist": 221,
    "dkd": 204,
    "dml": 234,
    "fitnet": 162,
    "fitnet_joint": 174,
    "hint_regressor": 151,
    "kd": 162,
    "ls": 127,
    "lskd": 191,
    "mlkd": 1267,
    "nkd": 202,
    "none": 110,
    "nst": 300,
    "ofa": 316,
    "pkt": 197,
    "reviewkd": 360,
    "rkd": 230,
    "simkd": 153,
    "sp": 180,
    "srd": 164,
    "srd_dist": 226,
    "srd_kl": 178,
    "srd_pmse": 167,
    "sskd": 290,
    "vid": 252,
    "vlfkd": 285,
}
# Where more than two gradients meet, autograd adds them up in place, but those of tensor subclasses, and under a dispatch
# mode all, in fresh memory, so in another memory order: the CPU's run is made under such a mode.
IN_FRESH_MEMORY = {"reviewkd"}
SAMPLE = ("kd", "crd", "mlkd")
METHODS = [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in choices("method")]

COLOURS = [f"dataset.augment.{name}" for name in ("brightness=0.4", "contrast=0.2", "saturation=0.2", "hue=0.1")]
SETTINGS = {
    "average": ["optimizer.ema_decay=0.9"],
    "clipping": ["optimizer.clip_norm=1.0"],
    # A GPU takes the rate as float32, which rounds AdamW's steps unless the rate is a power of two.
    "adamw": ["optimizer.name=adamw", "optimizer.schedule=constant", "optimizer.lr=0.0009765625"],
    "teacher cache": ["dataset.augment.flip=0", "dataset.augment.crop=none"],
    "clean view": ["teacher_view=clean"],
    "colours": [*COLOURS, "dataset.augment.rotation=15", "teacher_view=independent"],
    "areas": ["dataset.augment.crop=resized"],
    "dropout": ["student=vgg8", "student.head=dropout_linear", "student.head_dropout=0.2"],
    "bf16": ["precision=bf16"],
}


@dataclass
class Watch:
    """Return what each training step did, by (epoch, step): waits and copies, launches, and what `Lane.compute` launched."""

    gpu: GPU
    waits: dict[tuple[int, int], Counter[str]] = field(default_factory=dict)
    launches: dict[tuple[int, int], int] = field(default_factory=dict)
    kernels: dict[tuple[int, int], list[Kernel]] = field(default_factory=dict)
    inputs: dict[tuple[int, int], set[int]] = field(default_factory=dict)

    def epochs(self, usual):
        def watched(lanes, teacher, loader, epoch, *rest):
            gpu, before = self.gpu, None
            for step in usual(lanes, teacher, loader, epoch, *rest):
                now = gpu.syncs + gpu.copies, gpu.launches
                if before is not None:
                    self.waits[epoch, step], self.launches[epoch, step] = now[0] - before[0], now[1] - before[1]
                before = now
                yield step

        return watched

    def steps(self, usual):
        def compute(lane, batch, teacher, progress):
            if self.gpu.graph is not None:
                return usual(lane, batch, teacher, progress)
            at = (lane.progress.epoch, lane.progress.step)
            self.gpu.kernels = self.kernels[at] = []  # of the training, not of a preparation before it
            given = (batch.image, batch.label, batch.index, batch.teacher_image, batch.strong)
            self.inputs[at] = {storage(x.held) for x in given if x is not None}
            try:
                return usual(lane, batch, teacher, progress)
            finally:
                self.gpu.kernels = None

        return compute


def train(root: Path, *words: str) -> dict[str, Tensor]:
    assert main(["train", *words, f"output_root={root}"]) == 0
    return load_file(only_run(root) / "student.safetensors")


def train_on_gpu(root: Path, *words: str) -> tuple[dict[str, Tensor], Watch]:
    with simulated_cuda() as gpu, pytest.MonkeyPatch.context() as patch:
        watch = Watch(gpu)
        patch.setattr(trainer, "train_epoch", watch.epochs(trainer.train_epoch))
        patch.setattr(loop.Lane, "compute", watch.steps(loop.Lane.compute))
        return train(root, *words, "device=cuda"), watch


class Through(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def convolutions_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the CPU too with PyTorch's own convolutions, as on a GPU; in bf16 some would be products."""
    monkeypatch.setattr("kdrun.training.network.choose_convolutions", lambda model, numerics: None)


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


def signature(kernels: list[Kernel], inputs: set[int]) -> list[tuple]:
    """Return what a graph would record of a step: operations, shapes, plain numbers, and the addresses of what was there
    before; its inputs have other addresses in every step, and a graph is given copies of them."""
    own: set[int] = set()
    found = []
    for kernel in kernels:
        places = [
            "input" if storage(x) in inputs else "own" if storage(x) in own else x.data_ptr() for x in kernel.tensors()
        ]
        shapes = [tuple(x.shape) for x in kernel.tensors()]
        found.append((kernel.name, shapes, kernel.numbers(), places, kernel.where))
        given = {storage(x) for x in kernel.tensors()}
        own |= {storage(x) for x in kernel.out} - (given - own)
    return found


def check_steps(watch: Watch, name: str) -> None:
    """Nothing waits; two steps with other rates are the same to a graph."""
    assert {at: dict(waits) for at, waits in watch.waits.items() if waits and at[1] == 2} == {}
    one, other = (signature(watch.kernels[at], watch.inputs[at]) for at in ((0, 1), (0, 2)))
    differing = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    assert not differing, (name, differing[:3])
    assert len(one) == len(other)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_a_gpu(name, tmp_path):
    """Three steps kernel by kernel, of which none waits for the host and two are alike, then a graph of them, with
    other epochs and rates: the bits of the CPU."""
    words = [*SMALL, f"method={name}", *WORDS.get(name, [])]
    with Through() if name in IN_FRESH_MEMORY else nullcontext():
        expected = train(tmp_path / "cpu", *words)
    found, watch = train_on_gpu(tmp_path / "gpu", *words, "graphs=true")
    assert watch.gpu.replays == 3
    check_equal(found, expected)
    check_steps(watch, name)
    assert watch.launches[0, 2] <= LAUNCHES[name], watch.launches[0, 2]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "average" else pytest.mark.slow) for name in SETTINGS]
)
def test_a_setting_on_a_gpu(name, tmp_path):
    words = [*SMALL, "method=kd", *SETTINGS[name]]
    found, watch = train_on_gpu(tmp_path / "gpu", *words, "graphs=true")
    assert watch.gpu.replays == 3
    check_steps(watch, name)
    check_equal(found, train(tmp_path / "cpu", *words))


@pytest.mark.slow
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_an_accumulated_update_is_made_kernel_by_kernel(graphs, tmp_path, capsys):
    words = [*SMALL, "method=kd", "optimizer.accumulate_steps=2"]
    found, watch = train_on_gpu(tmp_path / "gpu", *words, f"graphs={graphs}")
    told = "graphs=true: optimizer.accumulate_steps spreads an update over several batches" in capsys.readouterr().out
    assert (watch.gpu.replays, told) == (0, graphs == "true")
    check_equal(found, train(tmp_path / "cpu", *words))


def test_a_trained_teacher_and_a_method_that_prepares_on_a_gpu(tmp_path):
    """Without graphs, the teacher's training and its evaluation among it."""
    words = [*SMALL, "teacher.random=false", "method=sskd", "method.prepare_epochs=1"]
    found, watch = train_on_gpu(tmp_path / "gpu", *words)
    assert watch.gpu.replays == 0
    check_equal(found, train(tmp_path / "cpu", *words))
    stored = [load_file(next((tmp_path / place / "teachers").rglob("*.safetensors"))) for place in ("gpu", "cpu")]
    check_equal(*stored)


def test_images_from_files_on_a_gpu(tmp_path, image_folder):
    """They are copied to the device in every step, and from there into what the graph reads."""
    root = image_folder("set", classes=4, count=29, size=(16, 16))
    words = [word for word in SMALL if not word.startswith("dataset")]
    words += ["dataset=folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.workers=0", "method=kd"]
    words += ["dataset.train_fraction=0.9", "optimizer.name=sgd"]  # not AdamW, whose rate a GPU takes as float32
    found, watch = train_on_gpu(tmp_path / "gpu", *words, "graphs=true")
    assert watch.gpu.replays > 0
    check_equal(found, train(tmp_path / "cpu", *words))


@pytest.mark.parametrize("graphs", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_run_resumes_on_a_gpu_after_a_signal(graphs, tmp_path, monkeypatch):
    """Stopped between two steps that a graph plays, and gone on with in another session: the bits of a run that never
    stopped, on the CPU."""
    words = [*SMALL, "method=crd", "optimizer.ema_decay=0.9", "epochs=3"]
    usual = trainer.train_epoch

    def interrupted(lanes, teacher, loader, epoch, *rest):
        for step in usual(lanes, teacher, loader, epoch, *rest):
            if (epoch, step) == (1, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    with simulated_cuda() as gpu:
        command = ["train", *words, f"output_root={tmp_path / 'gpu'}", "device=cuda", f"graphs={graphs}"]
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "train_epoch", interrupted)
            assert main(command) == 75
        assert main(command) == 0
        assert (gpu.replays > 0) == (graphs == "true")
    found = load_file(only_run(tmp_path / "gpu") / "student.safetensors")
    check_equal(found, train(tmp_path / "cpu", *words))


def weights_of(root: Path) -> dict[str, dict[str, Tensor]]:
    return {path.parent.parent.name: load_file(path) for path in root.glob("runs/*/*/*/*/student.safetensors")}


@pytest.mark.parametrize("fails", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_lanes_are_streams_of_one_graph(fails, tmp_path, monkeypatch):
    """The bits of the same lanes on a CPU. Where one fails, the others are recorded again without it."""
    words = [*SMALL, "-m", "launcher.processes=0", "epochs=2", "dataset.fake_train=232"]
    cells = ["method=kd,dkd,none"] if not fails else ["method=kd,crd", "optimizer.lr=0.05,77"]
    monkeypatch.setattr(TrainMeter, "CHECK_EVERY", 3)
    usual = loop.learning_rate

    def diverging(options, epochs, epoch, step, steps):
        return 1e30 if options.lr == 77 and step == 4 else usual(options, epochs, epoch, step, steps)

    monkeypatch.setattr(loop, "learning_rate", diverging)
    with simulated_cuda() as gpu:
        code = main(["train", *words, *cells, f"output_root={tmp_path / 'gpu'}", "device=cuda", "graphs=true"])
    assert code == int(fails)
    assert gpu.replays >= 4
    main(["train", *words, *cells, f"output_root={tmp_path / 'cpu'}", "device=cpu"])
    found, expected = weights_of(tmp_path / "gpu"), weights_of(tmp_path / "cpu")
    assert found.keys() == expected.keys() and len(found) == (2 if fails else 3)
    for name in expected:
        check_equal(found[name], expected[name])
