"""Class activation maps: our own core, its layers, the overlap of two networks, and the command."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdrun.evaluation.cam import View, grad_cam
from kdrun.evaluation.cam_images import spread
from kdrun.evaluation.cam_overlap import iou, overlap, pearson, spearman
from kdrun.evaluation.cam_runs import KINDS
from kdrun.models.features import Tap
from kdrun.models.zoo import create_model
from kdrun.training.method_trial import TinyCNN
from tests.conftest import TINY
from tests.evaluation.test_measure import runs
from tests.ready import train


def view_of(model: nn.Module, **settings) -> View:
    return View(Tap(model, 16), **settings)


def trained_a_little(name: str) -> nn.Module:
    """Another network than at its start, whose ViT's head would be zeros."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, image_size=16)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def test_equations_by_hand():
    activation = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[4.0, 0.0], [1.0, 1.0]]]])
    gradient = torch.tensor([[[[1.0, 1.0], [1.0, 1.0]], [[-2.0, 0.0], [0.0, 0.0]]]])  # alpha = 1, -1/2
    assert grad_cam(activation, gradient).tolist() == [[[0.0, 2.0], [0.0, 0.5]]]


def test_a_linear_head_on_pooled_maps_is_cam():
    """Behind global average pooling and a linear head, Grad-CAM is CAM up to its scale (Zhou et al. 2016)."""
    torch.manual_seed(0)
    model = TinyCNN().eval()
    image = torch.randn(4, 3, 16, 16)
    seen = view_of(model).see(image)
    with torch.no_grad():
        maps = model.outputs(image, frozenset({"maps"})).maps[-1]
    cam = torch.relu(torch.einsum("nc,nchw->nhw", model.fc.weight[seen.target], maps))
    large = nn.functional.interpolate(cam[:, None], size=16, mode="bilinear")[:, 0]
    torch.testing.assert_close(seen.maps, large / large.amax(dim=(1, 2), keepdim=True))


@pytest.mark.parametrize(
    ("name", "layer", "grid"),
    [
        ("resnet8", "f3", (4, 4)),
        ("wrn_16_1", "f3", (4, 4)),
        ("vgg8", None, None),
        ("mobilenet_v2_x0_5", None, None),
        ("vit_cifar_tiny", "blocks.5.norm1", (4, 4)),
        ("vit_cifar_tiny_distilled", "blocks.5.norm1", (4, 4)),
        ("timm:resnet10t", None, None),
        ("torchvision:resnet18", None, None),
    ],
)
def test_every_kind_of_network_shows_something(name, layer, grid):
    view = view_of(trained_a_little(name))
    seen = view.see(torch.randn(6, 3, 16, 16))
    assert seen.maps.shape == (6, 16, 16)
    assert seen.maps.min() >= 0
    assert (seen.maps.amax(dim=(1, 2)) - 1).abs().min() < 1e-5
    assert min(view.grid) > 1 or name.startswith(("timm", "torchvision"))
    if layer is not None:
        assert (view.layer, view.grid) == (layer, grid)


def test_maps_do_not_depend_on_the_batch():
    view, image = view_of(trained_a_little("vit_cifar_tiny")), torch.randn(5, 3, 16, 16)
    whole, target = view.see(image), torch.tensor([0, 1, 2, 3, 4])
    torch.testing.assert_close(whole.maps[2:3], view.see(image[2:3]).maps, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(view.see(image, target).maps, view.see(image, target.roll(1)).maps)


def span(maps: torch.Tensor) -> torch.Tensor:
    """From the least to the largest value, as the package scales."""
    low = maps.amin(dim=(1, 2), keepdim=True)
    return (maps - low) / (maps.amax(dim=(1, 2), keepdim=True) - low).clamp(min=1e-7)


class PlainCNN(nn.Module):
    """No ReLU in place: the package's recorder would take activation and gradient from its two sides."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.hidden, self.head = nn.Linear(12 * 16, 20), nn.Linear(20, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.features(image).flatten(1))))


@pytest.mark.parametrize(("name", "layer"), [("cnn", "features"), ("vit_cifar_tiny", "blocks.5.norm1")])
def test_against_the_package(name, layer):
    """The package with its own hooks on the module that returns what we differentiate by."""
    package = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'kdrun[gradcam]'")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model = PlainCNN().eval() if name == "cnn" else trained_a_little(name)
    image, target = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 0])
    shape = (lambda x: x[:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4)) if "vit" in name else None
    with package.GradCAM(model, [model.get_submodule(layer)], reshape_transform=shape) as cam:
        theirs = torch.from_numpy(cam(image, [ClassifierOutputTarget(int(label)) for label in target]))
    ours = view_of(model).see(image, target).maps
    alive = ours.amax(dim=(1, 2)) > 0
    assert alive.sum() >= 2
    torch.testing.assert_close(span(ours)[alive], theirs[alive], atol=1e-4, rtol=0)
    again = view_of(model, kind="GradCAM").see(image, target)
    torch.testing.assert_close(again.maps[alive], theirs[alive], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind])
def test_kinds_of_the_package(kind):
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'kdrun[gradcam]'")
    torch.manual_seed(1)
    for model in (TinyCNN().eval(), trained_a_little("vit_cifar_tiny")):
        seen = view_of(model, kind=kind).see(torch.randn(3, 3, 16, 16))
        assert seen.maps.shape == (3, 16, 16)
        assert seen.maps.min() >= 0 and seen.maps.max() <= 1.001
        assert seen.maps.max() > 0.9


def test_overlap_of_known_maps():
    ramp = np.arange(100, dtype=np.float64).reshape(1, 10, 10)
    assert (iou(ramp, ramp)[0], pearson(ramp, ramp)[0], spearman(ramp, ramp**3)[0]) == pytest.approx((1, 1, 1))
    assert (iou(ramp, ramp.max() - ramp)[0], spearman(ramp, -ramp)[0]) == pytest.approx((0, -1))
    shifted = np.roll(ramp.ravel(), 10).reshape(1, 10, 10)  # the highest 20 of either share 10
    assert iou(ramp, shifted)[0] == pytest.approx(10 / 30)
    empty = np.zeros((1, 10, 10))
    assert np.isnan(iou(empty, empty)[0]) and np.isnan(pearson(ramp, empty)[0])
    found = overlap(np.concatenate([ramp, empty, ramp]), np.concatenate([ramp, ramp, ramp]))
    assert (found.undefined, found.mean["pearson"]) == (1, pytest.approx(1))


def test_one_image_of_every_class_first():
    labels = np.repeat(np.arange(5), [9, 1, 4, 20, 6])
    order = spread(labels)
    assert sorted(labels[order[:5]].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(order.tolist()) == list(range(40))


def look(kdrun, *words: object) -> str:
    code, out, err = kdrun("gradcam", *map(str, words))
    assert (code, err) == (0, "")
    return out


def test_runs_beside_their_teacher(kdrun, outputs, tmp_path):
    train(kdrun, "method=kd")
    train(kdrun, "method=simkd")
    train(kdrun, "method=none")
    none, kd, _ = runs(outputs)
    before = {path.name: path.read_bytes() for path in kd.iterdir() if path.is_file()}
    out = look(kdrun, kd, "images=3", "overlap=20")
    assert {path.name: path.read_bytes() for path in kd.iterdir() if path.is_file()} == before
    assert "3 images × 2 networks" in out
    found = json.loads((kd / "evals" / "gradcam.json").read_text())
    assert (found["images"], found["student_layer"], found["teacher_layer"]) == (20, "f3", "f3")
    rows = list(csv.DictReader((kd / "evals" / "gradcam.csv").open()))
    assert len(rows) == 20
    known = [float(row["iou"]) for row in rows if row["iou"]]
    assert found["iou"] == pytest.approx(sum(known) / len(known), abs=1e-5)
    assert rows[0]["student_predicted"] == rows[0]["student_explained"]
    every = look(kdrun, *runs(outputs), "images=2", "overlap=4", f"save={tmp_path / 'all.png'}")
    assert "2 images × 4 networks" in every  # one teacher for two students
    assert Image.open(tmp_path / "all.png").width > Image.open(kd / "evals" / "gradcam.png").width
    assert not (none / "evals").exists()
    (teacher,) = (outputs / "teachers").glob("*/*/*")
    assert "2 images × 1 network:" in look(kdrun, teacher, "images=2", "overlap=2")
    words = [word for word in TINY if not word.startswith("student=")]
    look(kdrun, kd / "student.safetensors", *words, "student=resnet8", "images=2", f"teacher.checkpoint={teacher}")
    of_file = json.loads((outputs / "pictures" / "student.safetensors" / "gradcam.json").read_text())
    look(kdrun, kd, "images=2", "overlap=200")
    of_run = json.loads((kd / "evals" / "gradcam.json").read_text())
    assert (of_file["iou"], of_file["pearson"]) == (of_run["iou"], of_run["pearson"])
    look(kdrun, kd, "model=teacher", "images=2", "overlap=2", "target=class 1", f"save={tmp_path / 't.png'}")


def test_a_student_that_is_its_teacher(kdrun, outputs):
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    (teacher,) = (outputs / "teachers").glob("*/*/*/teacher.safetensors")
    (run / "student.safetensors").write_bytes(teacher.read_bytes())
    (run / "checksums.json").unlink()  # else they are refused: not those that the run wrote
    look(kdrun, run, "overlap=8", "images=1")
    found = json.loads((run / "evals" / "gradcam.json").read_text())
    assert (found["iou"], found["pearson"], found["spearman"], found["agreement"]) == pytest.approx((1, 1, 1, 100))
    assert found["other_images"]["pearson"] < 1


def test_images_from_disk(kdrun, outputs, image_folder):
    """A folder named like a class gives the class; another gives none, and then target=true has nothing to explain."""
    root = image_folder("images", classes=3, count=6, size=(18, 16))
    train(kdrun, "method=kd", "dataset=folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.workers=0")
    (run,) = runs(outputs)
    look(kdrun, run, "images=2", "overlap=3")
    assert "3 images × 2" in look(
        kdrun,
        run,
        f"images={root / 'class_1' / '0001.png'},{root / 'class_2' / '0000.png'},{root / 'class_2' / '0003.png'}",
        "target=true",
    )
    rows = list(csv.DictReader((run / "evals" / "gradcam_files.csv").open()))
    assert [row["class"] for row in rows] == ["class_1", "class_2", "class_2"]
    assert (run / "evals" / "gradcam_files.png").is_file()
    other = root.parent / "others"
    other.mkdir()
    (other / "x.png").write_bytes((root / "class_1" / "0001.png").read_bytes())
    look(kdrun, run, f"images={other}")
    code, _, err = kdrun("gradcam", str(run), f"images={other}", "target=true")
    assert code == 2 and "is unknown" in err
    (other / "y.png").write_bytes(b"no image")
    code, out, _ = kdrun("gradcam", str(run), f"images={other}")
    assert code == 1 and "y.png: not an image format that Pillow" in out and "1 of 2 images could not be read" in out
    assert "1 image × 2 networks" in out
    (other / "x.png").unlink()
    code, _, err = kdrun("gradcam", str(run), f"images={other}")
    assert code == 2 and "y.png cannot be read" in err


def test_mistakes(kdrun, outputs, monkeypatch):
    train(kdrun, "method=none")
    train(kdrun, "method=none", "dataset.image_size=20")
    first, second = map(str, runs(outputs))
    monkeypatch.setattr("kdrun.commands.gradcam.find_spec", lambda name: None)
    for words, part in (
        ([], "gradcam needs a run directory"),
        ([first, second], "dataset.image_size: "),
        ([first, "method=gradcm"], "Did you mean gradcam?"),
        ([first, "method=layercam"], "pip install 'kdrun[gradcam]'"),
        ([first, "images=0"], "one picture shows 1 to 100"),
        ([first, "images=nowhere.png"], "no such file or folder"),
        ([first, "target=klass 1"], "Did you mean class 1?"),
        ([first, "layer=layer9"], "layer=layer9: "),
        ([first, "layer=fc"], "neither a feature map nor patch tokens"),
        ([first, "overlap=many"], "overlap=many"),
        ([first, "save=x.jpg"], "save=x.jpg"),
        ([first, "model=teacher"], "has no teacher"),
    ):
        code, _, err = kdrun("gradcam", *words)
        assert code == 2, words
        assert part in err
        assert len(err.strip().splitlines()) == 1
