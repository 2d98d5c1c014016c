"""`kdrun export`: files that compute what the network does, and a gate that keeps wrong ones out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdrun.evaluation.deployed import Card
from kdrun.evaluation.export.gate import TOLERANCE, Form, deployable, judge, module_forward
from kdrun.files import sha256_of, write_json
from kdrun.models.zoo import create_model
from tests.conftest import TINY
from tests.evaluation.test_deployed import folder_run, predict
from tests.evaluation.test_measure import contents, runs, teacher_of
from tests.ready import train

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from kdrun.evaluation.export.onnx_format import OnnxNetwork, write_onnx  # noqa: E402

FAST = ("resnet8", "vit_cifar_tiny_distilled")
# One network of each kind of block in the zoo, with two blocks a stage; the others differ in depth and width alone.
BLOCKS = (
    "deepnn",
    "lightnn",
    "mobilenet_v2",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet8x4",
    "shufflenet_v1",
    "shufflenet_v2",
    "vgg8",
    "vit_cifar_tiny",
    "wrn_16_2",
)
OTHERS = (("timm:vit_tiny_patch16_224", 64, {"img_size": 64}), ("torchvision:resnet18", 64, {}))


def check_parity(name: str, side: int, tmp_path: Path, kwargs: dict | None = None) -> None:
    torch.manual_seed(0)
    check_file(shortened(create_model(name, num_classes=7, image_size=side, kwargs=kwargs)), name, side, tmp_path)


def shortened(model: nn.Module) -> nn.Module:
    """Of a stage's blocks that are all alike, the first two: the first may be another one, for its stride."""
    for parent in list(model.modules()):
        for name, stage in parent.named_children():
            if isinstance(stage, nn.Sequential | nn.ModuleList) and len({str(block) for block in stage[1:]}) == 1:
                setattr(parent, name, stage[:2])
    return model


def check_file(model: nn.Module, name: str, side: int, tmp_path: Path) -> None:
    """Trained statistics stand in for none: batch norms are moved off their start, batches of 1 and 5 are compared."""
    with torch.no_grad():
        model.train()
        model(torch.randn(8, 3, side, side))
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    card = Card(name, list("abcdefg"), side, "stretch", False, side, [0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    whole = deployable(model, card)
    write_onnx(whole, card, tmp_path / "model.onnx", None)
    file = OnnxNetwork(tmp_path / "model.onnx", 1)
    assert file.card == card
    for count in (1, 5):
        image = np.random.default_rng(count).random((count, 3, side, side), dtype=np.float32)
        expected, found = module_forward(whole)(image), file.run(image)
        assert np.ptp(expected) > 0
        assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", FAST)
def test_parity(name, tmp_path):
    check_parity(name, 32, tmp_path)


def test_attention_in_windows_by_a_fused_kernel(tmp_path):
    """As the engine lets timm's Swin compute it; the exporter cannot lay the kernel's result out in windows again."""
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    model = SwinTransformer(16, 4, num_classes=7, embed_dim=8, depths=(1,), num_heads=(2,), window_size=2)
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = True  # type: ignore[assignment]
    check_file(model, "a small Swin", 16, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_parity_of_the_zoo(name, tmp_path):
    check_parity(name, 32, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "kwargs"), OTHERS)
def test_parity_of_others(name, side, kwargs, tmp_path):
    check_parity(name, side, tmp_path, kwargs)


def test_a_run_in_every_form(kdrun, outputs, image_folder, tmp_path):
    """Files, their metadata, the table; the run's own files stay; predictions from the file are those of the run."""
    root = image_folder("images", classes=3, count=12)
    run = folder_run(
        kdrun,
        outputs,
        root,
        "method=kd",
        "student.input_size=20",
        "student.mean=[0.4,0.5,0.6]",
        "student.std=[0.3,0.2,0.1]",
    )
    before = contents(run)
    code, out, err = kdrun("export", str(run), "quantize=all", "max_drop=100", "opset=18")
    assert (code, err) == (0, ""), (out, err)
    assert contents(run) == before
    names = ["student.json", "student.onnx", "student_dynamic.onnx", "student_static.onnx"]
    assert sorted(path.name for path in (run / "exports").iterdir()) == names
    assert all(text in out for text in ("PyTorch, fp32", "ONNX, fp32", "ONNX, INT8 static", "ONNX, INT8 dynamic"))
    told = json.loads((run / "exports" / "student.json").read_text())
    exact, static, dynamic = told["forms"][1:]
    assert exact["max_logit_difference"] < static["max_logit_difference"]
    assert static["size"] < exact["size"] > dynamic["size"]
    for name in names[1:]:
        proto = onnx.load(run / "exports" / name)
        about = {entry.key: entry.value for entry in proto.metadata_props}
        assert json.loads(about["class_names"]) == ["class_0", "class_1", "class_2"]
        assert json.loads(about["mean"]) == pytest.approx([0.4, 0.5, 0.6], abs=1e-5)
        assert json.loads(about["std"]) == pytest.approx([0.3, 0.2, 0.1], abs=1e-5)
        assert about["image_size"] == "20"
        assert proto.opset_import[0].version >= 18
        assert proto.producer_name
    kinds = {node.op_type for node in onnx.load(run / "exports" / "student_static.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    floats = {node.op_type for node in onnx.load(run / "exports" / "student_dynamic.onnx").graph.node}
    assert "Conv" in floats
    assert "ConvInteger" not in floats
    for source, name in ((run, "a"), (run / "exports" / "student.onnx", "b")):
        predict(kdrun, source, f"path={root}", f"save={tmp_path / name}.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    for ours, theirs in zip(first, second, strict=True):
        assert ours["image"] == theirs["image"]
        assert theirs["probabilities"] == pytest.approx(ours["probabilities"], abs=1e-4)


@pytest.mark.parametrize("kind", ["torchscript", "torch_export"])
def test_pytorchs_own_forms(kdrun, outputs, tmp_path, kind):
    train(kdrun, "method=none")
    (run,) = runs(outputs)
    code, out, err = kdrun("export", str(run), f"format={kind}", f"save={tmp_path / 'made'}")
    assert (code, err) == (0, ""), (out, err)
    (file,) = (path for path in (tmp_path / "made").iterdir() if path.suffix != ".json")
    told = {"kdrun.json": ""}
    if kind == "torchscript":
        network = torch.jit.load(file, _extra_files=told)
    else:
        network = torch.export.load(file, extra_files=told).module()
    assert json.loads(told["kdrun.json"])["class_names"] == [f"class {label}" for label in range(4)]
    assert network(torch.rand(3, 3, 16, 16)).shape == (3, 4)


def test_teachers(kdrun, outputs):
    """A run's teacher and the stored one give the same file, each in its own exports/."""
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    for words in ((str(run), "model=teacher"), (str(teacher_of(outputs)),)):
        code, out, err = kdrun("export", *words, "format=torchscript")
        assert (code, err) == (0, ""), (out, err)
    image = torch.rand(2, 3, 16, 16)
    one, other = (torch.jit.load(place / "exports" / "teacher.pt")(image) for place in (run, teacher_of(outputs)))
    assert torch.equal(one, other)


class Trap(nn.Module):
    """A network that is another one once it is traced: its file computes something else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.model(image)
        return logits + 0.01 if torch.compiler.is_compiling() or torch.jit.is_tracing() else logits


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_wrong_file_gets_no_name(kdrun, outputs, tmp_path, monkeypatch, kind):
    """Exit code 1, nothing under the final names, and an older file that would pass for this one is gone."""
    train(kdrun, "method=none")
    (run,) = runs(outputs)
    suffix = {"onnx": ".onnx", "torchscript": ".pt"}[kind]
    old = tmp_path / "made" / f"student{suffix}"
    old.parent.mkdir()
    old.write_text("of another time")
    monkeypatch.setattr("kdrun.evaluation.export.files.deployable", lambda model, card: Trap(deployable(model, card)))
    words = ["quantize=static"] if kind == "onnx" else []
    code, out, err = kdrun("export", str(run), f"save={old.parent}", f"format={kind}", *words)
    assert (code, err) == (1, ""), out
    assert "is above 0.0001 ·" in out
    assert list(old.parent.iterdir()) == []


CARD = Card("a linear one", list("abcd"), 16, "stretch", False, 16, [0.5, 0.4, 0.3], [0.2, 0.3, 0.25])


def test_what_the_gate_lets_through():
    def form(exact: bool, difference: float, top1: float) -> Form:
        return Form("", lambda image: image, exact, difference=difference, scale=10.0, top1=top1)

    for other, passes in (
        (form(True, 0.9e-3, 50), True),
        (form(True, 1.1e-3, 90), False),
        (form(True, float("nan"), 90), False),
        (form(False, 5, 89), True),
        (form(False, 5, 88.9), False),
        (form(False, 0, 95), True),
    ):
        judge([form(True, 0, 90), other], max_drop=1)
        assert (not other.problem) == passes


def test_files_from_elsewhere(kdrun, image_folder, tmp_path):
    """No metadata, a class count that contradicts the logits, or no ONNX at all: one line."""
    root = image_folder("images")
    write_onnx(deployable(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), CARD), CARD, tmp_path / "net.onnx", None)
    proto = onnx.load(tmp_path / "net.onnx")
    about = {entry.key: entry.value for entry in proto.metadata_props}
    fewer = about | {"kdrun": json.dumps(json.loads(about["kdrun"]) | {"class_names": ["one"]})}
    (tmp_path / "text.onnx").write_text("no model")
    for name, props in (("bare", {}), ("fewer", fewer)):
        del proto.metadata_props[:]
        onnx.helper.set_model_props(proto, props)
        onnx.save(proto, tmp_path / f"{name}.onnx")
    write_json(tmp_path / "net.json", {"forms": [{"file": "net.onnx", "sha256": sha256_of(tmp_path / "net.onnx")}]})
    changed = bytearray((tmp_path / "net.onnx").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "net.onnx").write_bytes(changed)
    for words, part in (
        (["net.onnx"], "has changed since net.json was written: export it again, or remove net.json"),
        (["bare.onnx"], "lacks class names, mean, std and image size"),
        (["fewer.onnx"], "names 1 classes but returns 4 logits"),
        (["text.onnx"], "cannot be loaded as an ONNX file"),
        (["net.onnx", "device=cpu"], "device: an ONNX file takes path, top"),
    ):
        code, _, err = kdrun("predict", str(tmp_path / words[0]), *words[1:], f"path={root}")
        assert code == 2, words
        assert part in err
        assert len(err.strip().splitlines()) == 1


def test_mistakes(kdrun, outputs, monkeypatch):
    train(kdrun, "method=none")
    (run,) = map(str, runs(outputs))
    for words, part in (
        ([], "export needs one run"),
        ([run, "quantize=int4"], "quantize=int4: choose none or static"),
        ([run, "format=tflite"], "format=tflite: choose onnx"),
        ([run, "format=torchscript", "quantize=static"], "quantize=static is for format=onnx"),
        ([run, "max_drop=much"], "max_drop=much: must be a number"),
        ([run, "max_drop=-1"], "must be at least 0"),
        ([run, "opset=7"], "opset=7: must be at least 18"),
        ([run, "images=0"], "images=0"),
        ([run, "save=net.pt"], "format=onnx needs a file *.onnx"),
        ([run, "epochs=3"], "epochs: for a finished run, set only"),
        ([run, "quantise=static"], "Did you mean quantize?"),
        ([f"{run}/student.safetensors", *TINY], "save is not set"),
    ):
        code, _, err = kdrun("export", *words)
        assert code == 2, words
        assert part in err
        assert len(err.strip().splitlines()) == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = kdrun("export", run)
    assert (code, err) == (2, "error: ONNX files need onnx, onnxruntime, onnxscript: pip install 'kdrun[export]'.\n")
