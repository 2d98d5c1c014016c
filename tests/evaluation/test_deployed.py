"""`kdrun predict`, `kdrun export` and the Python interface, on tiny trained runs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdrun as package
from kdrun.data.decode import read_image
from kdrun.data.inference import Preparation, find_images, read_batches
from kdrun.errors import ConfigError
from tests.conftest import TINY
from tests.evaluation.test_measure import contents, evaluate, runs, teacher_of
from tests.ready import train

FOLDER = ("dataset=folder", "dataset.image_size=16", "dataset.workers=0")


def folder_run(kdrun, outputs: Path, root: Path, *words: str) -> Path:
    train(kdrun, *FOLDER, f"dataset.root={root}", *words)
    (run,) = runs(outputs)
    return run


def predict(kdrun, *words: object) -> str:
    code, out, err = kdrun("predict", *map(str, words))
    assert (code, err) == (0, ""), (out, err)
    return out


def test_import_stays_light():
    """`import kdrun` brings neither torch nor pandas; the interface is there all the same."""
    code = "import kdrun, sys; kdrun.load, kdrun.results; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("resize", ["stretch", "fit", "crop"])
def test_predictions_are_those_of_evaluation(kdrun, outputs, image_folder, tmp_path, resize):
    """Over the test files themselves: the confusion matrix of `kdrun eval`, image for image."""
    root = image_folder("images/train", classes=3, count=8, size=(22, 30))
    image_folder("images/test", classes=3, count=8, size=(26, 19), seed=1)
    run = folder_run(
        kdrun, outputs, root.parent, "method=none", f"dataset.resize={resize}", "dataset.normalize=measure"
    )
    before = contents(run)
    evaluate(kdrun, run)
    with (run / "evals" / "test_confusion.csv").open() as file:
        expected = [list(map(int, row[1:])) for row in list(csv.reader(file))[1:]]
    out = predict(
        kdrun, run, f"path={root.parent / 'test'}", f"save={tmp_path / 'p.csv'},{tmp_path / 'p.json'}", "top=all"
    )
    assert contents(run) == before
    names = [f"class_{label}" for label in range(3)]
    found = [[0] * 3 for _ in range(3)]
    records = json.loads((tmp_path / "p.json").read_text())
    for record in records:
        found[names.index(record["image"].split("/")[0])][names.index(record["predicted_class"])] += 1
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert record["probability"] == max(record["probabilities"].values())
    assert found == expected
    accuracy = 100 * sum(found[label][label] for label in range(3)) / 24
    assert f"{accuracy:.2f} % of 24 predictions agree" in out
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [record["image"] for record in records]
    assert json.loads(rows[5]["probabilities"]) == records[5]["probabilities"]


def test_the_data_set_may_be_gone(kdrun, outputs, image_folder, tmp_path):
    """After the first time, class names and normalisation are known; a directory of teachers/ is a RUN too."""
    root = image_folder("images", classes=3, count=6)
    run = folder_run(kdrun, outputs, root, "method=kd")
    one = root / "class_1" / "0002.png"
    picture = tmp_path / "one.png"
    picture.write_bytes(one.read_bytes())
    first = predict(kdrun, run, f"path={picture}", "model=teacher")
    stored = predict(kdrun, teacher_of(outputs), f"path={picture}")
    assert first.splitlines()[2:] == stored.splitlines()[2:]
    student = predict(kdrun, run, f"path={picture}")
    root.rename(tmp_path / "gone")
    assert predict(kdrun, run, f"path={picture}") == student
    assert predict(kdrun, teacher_of(outputs), f"path={picture}") == stored


def test_images_of_every_kind(kdrun, outputs, image_folder, tmp_path):
    """Grey, RGBA, palette, 16-bit, turned by EXIF, large: read; damaged: named, left out, exit code 1."""
    root = image_folder("images", classes=3, count=6)
    run = folder_run(kdrun, outputs, root, "method=none")
    place = tmp_path / "odd"
    place.mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(place / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(place / "sixteen.png")
    Image.fromarray(np.stack([grey] * 3 + [grey], axis=-1)).save(place / "rgba.png")
    Image.fromarray(grey).convert("P").save(place / "palette.gif")
    Image.fromarray(np.repeat(np.repeat(grey, 300, 0), 300, 1)).save(place / "huge.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(grey)).save(place / "turned.png", exif=turned)
    (place / "damaged.png").write_bytes((place / "grey.png").read_bytes()[:60])
    (place / "text.jpg").write_text("not an image")
    code, out, err = kdrun("predict", str(run), f"path={place}", f"save={tmp_path / 'p.json'}")
    assert (code, err) == (1, "")
    assert "2 of 8 images could not be read" in out
    assert all(f"unreadable  {place / name}: " in out for name in ("damaged.png", "text.jpg"))
    found = {record["image"]: record["probabilities"] for record in json.loads((tmp_path / "p.json").read_text())}
    assert len(found) == 6
    for same in ("sixteen.png", "rgba.png", "palette.gif", "turned.png"):
        assert found[same] == pytest.approx(found["grey.png"], abs=1e-6), same


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", None) == 40_000 >> 8).all()


def test_images_come_in_batches(image_folder):
    paths = find_images(image_folder("images", classes=2, count=5))
    found = list(read_batches(paths, Preparation(16, "stretch", False), 4))
    assert [len(batch.paths) for batch in found] == [4, 4, 2]
    assert [path for batch in found for path in batch.paths] == paths
    assert found[2].pixels.shape == (2, 16, 16, 3)


def test_mistakes_in_predict(kdrun, outputs, image_folder, tmp_path):
    train(kdrun, "method=none")
    (run,) = map(str, runs(outputs))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing")
    root = image_folder("images")
    (tmp_path / "text.onnx").write_text("no model")
    for words, part in (
        ([run], "path is not set: give path=FOLDER"),
        ([run, f"pth={root}"], "pth: no such setting. Did you mean path?"),
        ([run, f"path={root}", "tops=3"], "Did you mean top?"),
        ([f"path={root}"], "predict needs one run, checkpoint or ONNX file, and path=FOLDER"),
        ([run, f"path={empty}"], "contains no images"),
        ([run, f"path={tmp_path / 'none'}"], "no such file or folder"),
        ([run, f"path={root}", "top=0"], "top=0: must be at least 1"),
        ([run, f"path={root}", "batch_size=many"], "batch_size=many"),
        ([run, f"path={root}", "save=p.txt"], "give a file that ends in .csv or .json"),
        ([run, f"path={root}", "model=pupil"], "model=pupil: choose student or teacher"),
        ([run, f"path={root}", "model=teacher"], "has no teacher (method=none)"),
        ([run, f"path={root}", "epochs=3"], "epochs: for a finished run, set only"),
        ([f"{tmp_path}/missing.onnx", f"path={root}"], "no such file; kdrun export RUN creates one"),
        ([f"{run}/student.safetensors", f"path={root}", *TINY, "dataset.fake_classes=7"], "does not fit resnet8"),
    ):
        code, _, err = kdrun("predict", *words)
        assert code == 2, words
        assert part in err
        assert len(err.strip().splitlines()) == 1


def test_the_python_interface(kdrun, outputs):
    """A loaded network computes what evaluation measured, from its transform on."""
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    evaluate(kdrun, run)
    from kdrun.data import fake

    held = fake.load(40, 4, 16, 2)
    for model, key in (("student", "top1_last"), ("teacher", "teacher_top1")):
        loaded = package.load(run, model=model)
        assert not loaded.model.training
        with torch.inference_mode():
            logits = loaded.model(loaded.transform([Image.fromarray(image) for image in held.images]))
        top1 = 100 * (logits.argmax(1).numpy() == held.labels).mean()
        result = json.loads((run / "result.json").read_text())
        assert top1 == pytest.approx(result[key])
        assert loaded.class_names == [f"class {label}" for label in range(4)]
        assert loaded.config.dataset.name == "fake"
        last = loaded.metrics.query("split == 'test' and metric == 'top1'").value.iloc[-1]
        assert last == pytest.approx(top1)
        assert loaded.result["top1_last"] == pytest.approx(top1)
    alone = loaded.transform(Image.fromarray(held.images[0]))
    assert alone.shape == (1, 3, 16, 16)
    assert torch.equal(loaded.transform(np.asarray(held.images[0])), alone)
    for image, kind in ((b"bytes", "bytes"), (alone[0], "Tensor"), (np.zeros((4, 4, 3)), "array of float64")):
        with pytest.raises(TypeError, match=f"not {kind}"):
            loaded.transform(image)
    frame = package.results(outputs)
    assert list(frame.run) == [str(run)]
    assert frame.top1_last.iloc[0] == pytest.approx(result["top1_last"])
    assert (str(frame.seed.dtype), str(frame.compile.dtype)) == ("Int64", "boolean")
    assert frame.finished_at.dt.tz is not None
    with pytest.raises(ConfigError, match="model=techer: choose student or teacher"):
        package.load(run, model="techer")
    with pytest.raises(ConfigError, match="weights=bst: choose last or best"):
        package.load(run, weights="bst")
    assert package.results(outputs / "runs").empty
    with pytest.raises(ConfigError, match="no such folder"):
        package.results(outputs / "nowhere")
