"""`kdrun eval` on trained runs, stored teachers and files of weights."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from kdrun.config.options import RunConfig
from kdrun.data.splits import ArraySet, Dataset
from kdrun.evaluation.measure import chosen_split, shuffled
from kdrun.models.zoo import create_model
from kdrun.reporting.measured import read_measured
from kdrun.training.build import Data
from tests.conftest import TINY
from tests.ready import train

PICTURES = ("reliability", "confusion", "cka")


def runs(outputs: Path) -> list[Path]:
    return sorted(path.parent for path in (outputs / "runs").glob("*/*/*/*/result.json"))


def teacher_of(outputs: Path) -> Path:
    (found,) = (outputs / "teachers").glob("*/*/*")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def evaluate(kdrun, *words: str) -> str:
    code, out, err = kdrun("eval", *map(str, words))
    assert (code, err) == (0, "")
    return out


@pytest.mark.pictures
def test_a_run_beside_its_teacher(kdrun, outputs):
    """Everything that is printed and written; the finished run's own files stay unchanged."""
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    before = contents(run)
    out = evaluate(kdrun, run)
    assert contents(run) == before
    result = json.loads((run / "result.json").read_text())
    found = json.loads((run / "evals" / "test.json").read_text())
    assert found["top1"] == pytest.approx(result["top1_last"])
    assert found["teacher_top1"] == pytest.approx(result["teacher_top1"])
    assert (found["params"], found["flops"]) == (result["params"], result["flops"])
    assert (found["network"], found["teacher"]) == ("resnet8", "resnet8")
    assert found["images_per_second"] > 0
    for text in (
        f"top-1 {found['top1']:.2f} %",
        f"ECE {found['ece']:.2f} %",
        f"{found['kl_teacher']:.4f} nats",
        f"agreement {found['agreement']:.2f} %",
        "77,652 parameters",
        "CKA",
        "macro average",
        "class 3",
        "test_cka.png",
    ):
        assert text in out, text
    assert [entry["class"] for entry in found["per_class"]] == [f"class {label}" for label in range(4)]
    assert sum(entry["support"] for entry in found["per_class"]) == 40
    assert found["cka"]["student"] == ["f1", "f2", "f3", "pooled"]
    assert sum(found["calibration"]["count"]) == 40
    with (run / "evals" / "test_confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "class 0", "class 1", "class 2", "class 3"]
    assert sum(int(rows[label + 1][label + 1]) for label in range(4)) == round(found["top1"] * 40 / 100)
    for kind in PICTURES:
        assert min(Image.open(run / "evals" / f"test_{kind}.png").size) > 300


def test_a_teacher_evaluated_as_such_and_through_its_run(kdrun, outputs):
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    evaluate(kdrun, teacher_of(outputs))
    out = evaluate(kdrun, run, "model=teacher")
    alone = json.loads((teacher_of(outputs) / "evals" / "test.json").read_text())
    through = json.loads((run / "evals" / "test_teacher.json").read_text())
    for key in ("top1", "nll", "ece", "f1_macro", "per_class", "calibration"):
        assert alone[key] == through[key]
    assert alone["top1"] == pytest.approx(json.loads((run / "result.json").read_text())["teacher_top1"])
    assert "teacher  resnet8 on fake/test" in out
    assert "kl_teacher" not in alone
    assert not (run / "evals" / "test.json").exists()
    evaluate(kdrun, run, "model=teacher", "weights=best")
    assert (run / "evals" / "test_best_teacher.json").is_file()


def test_a_student_with_its_teachers_weights_is_nearest(kdrun, outputs):
    """Of three students, one is the teacher itself: KL 0, agreement 100 %, CKA 1, and first in both ranks."""
    train(kdrun, "method=kd")
    train(kdrun, "method=kd", "method.temperature=1", "seed=1")
    train(kdrun, "method=none")
    alone, first, second = runs(outputs)
    save_file(load_file(teacher_of(outputs) / "teacher.safetensors"), second / "student.safetensors")
    (second / "checksums.json").unlink()  # else they are refused: not those that the run wrote
    for rank in ("kl", "agreement"):
        out = evaluate(kdrun, outputs / "runs/*/*/*/*", f"rank={rank}")
        table = out[out.index("rank KL") :].splitlines()
        placed = [line.split() for line in table if "/s0-" in line or "/s1-" in line][:3]
        names = [next(run for run in (alone, first, second) if line[0].endswith(run.name)) for line in placed]
        assert (names[0], names[2]) == (second, alone)  # what has no teacher comes last
        assert placed[0][1:3] == ["1", "1"]
        assert placed[1][1:3] == ["2", "2"]
        assert placed[2][1:3] == ["–", "–"]
        assert "teacher resnet8; top-1" in out
    evaluate(kdrun, outputs / "runs/*/*/*/*", "rank=kl", f"save={outputs / 'ranks.csv'}")
    rows = list(csv.DictReader((outputs / "ranks.csv").open()))
    assert [row["run"].endswith(run.name) for row, run in zip(rows, (second, first, alone), strict=True)] == [True] * 3
    assert [row["rank_kl"] for row in rows] == ["1", "2", ""]
    stored = json.loads((first / "evals" / "test.json").read_text())
    for key in ("top1", "top5", "nll", "kl_teacher", "agreement", "params"):
        assert float(rows[1][key]) == stored[key]
    found = json.loads((second / "evals" / "test.json").read_text())
    assert found["kl_teacher"] == 0
    assert found["agreement"] == 100
    values = found["cka"]["values"]
    assert [values[stage][stage] for stage in range(len(values))] == pytest.approx([1] * len(values))
    assert json.loads((first / "evals" / "test.json").read_text())["kl_teacher"] > 0
    assert json.loads((alone / "evals" / "test.json").read_text())["teacher"] is None
    assert not (alone / "evals" / "test_cka.png").exists()


def test_every_kind_of_teacher(kdrun, outputs, tmp_path):
    """An untrained control, a checkpoint, and one that learned along, which nobody stored."""
    train(kdrun, "method=kd")
    checkpoint = tmp_path / "teacher.safetensors"
    checkpoint.write_bytes((teacher_of(outputs) / "teacher.safetensors").read_bytes())
    train(kdrun, "method=kd", "teacher.random=true")
    train(kdrun, "method=kd", f"teacher.checkpoint={checkpoint}")
    for run in runs(outputs):
        evaluate(kdrun, run)
        found, result = (json.loads((run / name).read_text()) for name in ("evals/test.json", "result.json"))
        assert found["teacher_top1"] == pytest.approx(result["teacher_top1"])
    save_file({key: value + 1 for key, value in load_file(checkpoint).items()}, checkpoint)
    changed = [
        out for run in runs(outputs) if "is not the file that the run was trained with" in (out := evaluate(kdrun, run))
    ]
    assert len(changed) == 1
    assert "KL, agreement and CKA are left out" in changed[0]
    assert "vs teacher" not in changed[0]
    train(kdrun, "method=dml")
    (run,) = [run for run in runs(outputs) if run.parent.name == "dml"]
    out = evaluate(kdrun, run)
    assert (
        "trained its teacher together with the student (dml) and keeps only the student; KL, agreement and CKA" in out
    )
    assert "macro average" in out


def test_a_teacher_that_is_gone(kdrun, outputs):
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    weights = teacher_of(outputs) / "teacher.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "has a teacher that cannot be loaded" in evaluate(kdrun, run)
    weights.unlink()
    out = evaluate(kdrun, run)
    assert "was trained with a resnet8 that is no longer in the store of teachers; KL, agreement and CKA" in out
    code, _, err = kdrun("eval", str(run), "rank=kl")
    assert code == 2
    assert "none of these has a teacher" in err


def test_outputs_that_were_moved(kdrun, outputs, tmp_path, monkeypatch):
    train(kdrun, "method=kd")
    outputs.rename(tmp_path / "elsewhere")
    (run,) = runs(tmp_path / "elsewhere")
    assert "vs teacher resnet8" in evaluate(kdrun, run)


def test_networks_that_keep_more_than_the_student(kdrun, outputs):
    """SimKD's logits are those of the teacher's classifier; the stages are the student's own."""
    train(kdrun, "method=simkd", "teacher=resnet14")
    (run,) = runs(outputs)
    out = evaluate(kdrun, run)
    found, result = (json.loads((run / name).read_text()) for name in ("evals/test.json", "result.json"))
    assert found["top1"] == pytest.approx(result["top1_last"])
    assert (found["params"], found["flops"]) == (result["params"], result["flops"])
    assert found["cka"]["student"] == ["f1", "f2", "f3", "pooled"]
    assert "vs teacher resnet14" in out


def test_a_file_of_weights(kdrun, outputs, tmp_path):
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    words = [
        run / "student.safetensors",
        "student=resnet8",
        *(word for word in TINY if not word.startswith("student=")),
    ]
    before = contents(run)
    out = evaluate(kdrun, *words)
    assert "save=FOLDER writes all results" in out
    assert not (run / "evals").exists()
    teacher = f"teacher.checkpoint={teacher_of(outputs) / 'teacher.safetensors'}"
    out = evaluate(kdrun, *words, teacher, f"save={tmp_path / 'found'}")
    evaluate(kdrun, run)
    named = json.loads((tmp_path / "found" / "test.json").read_text())
    assert named["kl_teacher"] == json.loads((run / "evals" / "test.json").read_text())["kl_teacher"]
    assert contents(run) == before
    both = tmp_path / "both.pt"
    torch.save(
        {"model": load_file(words[0]), "model_ema": load_file(teacher_of(outputs) / "teacher.safetensors")}, both
    )
    for setting, same in (("raw", "student"), ("ema", "teacher")):
        evaluate_file = (both, *words[1:], f"student.checkpoint_weights={setting}", f"save={tmp_path / setting}")
        assert kdrun("eval", *map(str, evaluate_file))[0] == 0
        nll = json.loads((tmp_path / setting / "test.json").read_text())["nll"]
        evaluate(kdrun, run, f"model={same}")
        name = "test" if same == "student" else "test_teacher"
        assert nll == json.loads((run / "evals" / f"{name}.json").read_text())["nll"]


def test_other_images_are_seen_as_in_training(kdrun, outputs, image_folder, tmp_path):
    """The same test images beside a brighter train/ gave another accuracy: they were normalised by that folder's mean."""
    root, other = tmp_path / "own", tmp_path / "other"
    image_folder("own/train", count=20)
    image_folder("own/val", count=20, seed=1)
    shutil.copytree(root, other)
    for path in (other / "train").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 128).save(path)
    words = ["dataset=folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.normalize=measure"]
    code, _, err = kdrun(
        "train", *words, "student=resnet8", "method=none", "epochs=1", "batch_size=10", "precision=fp32"
    )
    assert (code, err) == (0, "")
    (run,) = runs(outputs)
    for place in (root, other):
        assert kdrun("eval", str(run), f"dataset.root={place}")[0] == 0
    (own,), (foreign,) = (run / "evals").glob("test.json"), (run / "evals").glob("test_????????.json")
    assert json.loads(own.read_text())["nll"] == json.loads(foreign.read_text())["nll"]
    (other / "val" / "class_1").rename(other / "val" / "cow")
    (other / "train" / "class_1").rename(other / "train" / "cow")
    code, _, err = kdrun("eval", str(run), f"dataset.root={other}")
    assert code == 2 and "was trained on other classes: class_1 missing here, cow unknown to it." in err
    words[1] = f"dataset.root={other}"
    code, _, err = kdrun(
        "train", *words, "student=resnet8", "teacher=resnet8", f"teacher.checkpoint={run}", "method=kd", "epochs=1"
    )
    assert code == 0 and err.count("was trained on other classes: class_1 missing here, cow unknown to it") == 1


def test_a_split_of_other_images_is_no_test(kdrun, outputs, image_folder, tmp_path):
    """kdrun splits a flat folder by what is in it: with one image more, training images became test images."""
    root = image_folder("flat", count=10)
    train(kdrun, "method=kd", "dataset=folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.workers=0")
    (run,) = runs(outputs)
    evaluate(kdrun, run)
    own = (run / "evals" / "test.json").read_bytes()
    new = image_folder("new", count=4, seed=7)
    for place in (new / "class_0").iterdir():
        shutil.copy(place, root / "class_0" / f"new_{place.name}")
    for command in ("eval", "gradcam", "diagnose"):
        code, out, err = kdrun(command, str(run))
        assert (code, out) == (2, "")
        assert "training images could become test images" in err
        assert len(err.strip().splitlines()) == 1
    code, out, err = kdrun("eval", str(run), f"dataset.root={new}", "split=all")
    assert code == 0
    assert f"folder/all ({3 * 4} images" in out
    assert "was trained on other images" in err + out
    (found,) = (run / "evals").glob("all_????????.json")
    assert json.loads(found.read_text())["images"]["root"] == str(new)
    assert (run / "evals" / "test.json").read_bytes() == own
    code, _, err = kdrun("eval", str(run), f"dataset.root={new}")
    assert code == 2
    assert "split=all" in err


def test_other_test_images_have_results_of_their_own(kdrun, outputs, image_folder, tmp_path):
    """They replaced those on the run's own test images, from which its report is made."""
    for place, seed in (("own", 0), ("other", 5)):
        image_folder(f"{place}/train", count=6, seed=seed)
        image_folder(f"{place}/val", count=3, seed=seed + 1)
    root = tmp_path / "own"
    train(kdrun, "method=kd", "dataset=folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.workers=0")
    (run,) = runs(outputs)
    root.rename(tmp_path / "moved")
    assert kdrun("eval", str(run), f"dataset.root={tmp_path / 'moved'}")[2] == ""  # the same images
    own = (run / "evals" / "test.json").read_bytes()
    code, out, err = kdrun("eval", str(run), f"dataset.root={tmp_path / 'other'}")
    assert code == 0
    assert "was trained on other images" in err + out
    assert (run / "evals" / "test.json").read_bytes() == own
    (found,) = (run / "evals").glob("test_????????.json")
    assert json.loads(found.read_text())["split"] == "test"
    assert set(read_measured("run", run).evaluations) == {"test"}
    code, _, err = kdrun("eval", str(run), f"dataset.root={tmp_path / 'other'}", "split=all")
    assert "have folders for their splits" in err


def test_results_are_shown_before_they_are_written(kdrun, outputs, tmp_path):
    """Another's run cannot be written, and an hour of measuring was lost."""
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    (run / "evals").write_text("no folder")
    code, out, err = kdrun("eval", str(run))
    assert code == 1
    assert "top-1" in out
    assert "cannot be written" in err
    assert kdrun("eval", str(run), f"save={tmp_path / 'mine'}")[0] == 0
    assert (tmp_path / "mine" / "test.json").is_file()


def test_streamed_images(kdrun, outputs, image_folder):
    """A class folder, with more classes than are printed one by one, whose names come from the folders."""
    root = image_folder("images", classes=22, count=5, size=(18, 16))
    train(kdrun, "method=kd", "dataset=folder", f"dataset.root={root}", "dataset.image_size=16", "dataset.workers=0")
    (run,) = runs(outputs)
    out = evaluate(kdrun, run, "eval_batch_size=7")
    found = json.loads((run / "evals" / "test.json").read_text())
    assert found["samples"] == 22
    assert found["top1"] == pytest.approx(json.loads((run / "result.json").read_text())["top1_last"])
    assert "the 10 of 22 classes with the lowest F1" in out
    assert found["per_class"][3]["class"] == "class_11"  # in the order of their names
    evaluate(kdrun, run, "split=train")
    assert json.loads((run / "evals" / "train.json").read_text())["samples"] == 88


def test_pretrained_networks_keep_their_normalisation(kdrun, outputs, tmp_path):
    """Weights of another normalisation are evaluated under it, as they were trained."""
    source = tmp_path / "pretrained.pth"
    torch.manual_seed(3)
    torch.save(create_model("timm:resnet10t", num_classes=4).state_dict(), source)
    train(kdrun, "method=none", "student=timm:resnet10t", f"student.pretrained={source}", "dataset.image_size=32")
    (run,) = runs(outputs)
    source.unlink()  # the run has its own weights now
    evaluate(kdrun, run)
    found, result = (json.loads((run / name).read_text()) for name in ("evals/test.json", "result.json"))
    assert found["top1"] == pytest.approx(result["top1_last"])
    recorded = [row for row in csv.reader((run / "metrics.csv").open()) if row[1:3] == ["test", "nll"]]
    assert found["nll"] == pytest.approx(float(recorded[-1][3]), abs=1e-5)


def test_images_come_in_random_order():
    """Class folders lie class by class, and minibatches of one class know nothing of what tells classes apart."""
    label = np.repeat(np.arange(4), 64)
    held = ArraySet(np.broadcast_to(label[:, None, None, None], (256, 2, 2, 3)).astype(np.uint8), label)
    data = Data(Dataset(held, held, None, ["a"] * 4, 2), ([0.0], [1.0]), RunConfig.__new__(RunConfig))
    found = shuffled(chosen_split(data, "test"))
    assert all(len(np.unique(found.labels[start : start + 64])) == 4 for start in range(0, 256, 64))
    assert (found.images[:, 0, 0, 0] == found.labels).all()
    assert sorted(found.labels) == sorted(label)


def test_mistakes(kdrun, outputs):
    train(kdrun, "method=none")
    (run,) = map(str, runs(outputs))
    for words, part in (
        ([run, "rank=nearest"], "rank=nearest: choose kl or agreement"),
        ([run, "rank=kl"], "rank=kl: none of these has a teacher to compare with"),
        ([run, "rank=kl", "model=teacher"], "leave out model=teacher"),
        ([run, "model=pupil"], "model=pupil: choose student or teacher"),
        ([run, "model=teacher"], "has no teacher (method=none)"),
        ([run, "weights=first"], "weights=first: choose last or best"),
        ([run, "eval_batch_size=many"], "eval_batch_size=many: must be a whole number, at least 1"),
        ([run, "eval_batch_size=0"], "eval_batch_size=0: must be at least 1"),
        (
            [run, run, "save=here"],
            r"2 networks cannot share one folder; give one, or a file for the table (save=NAME.csv)",
        ),
        ([f"{run}/student.safetensors", "model=teacher", "student=resnet8"], "is a file"),
        ([f"{run}/student.safetensors", *TINY, "student=resnet14"], "student.safetensors"),
    ):
        code, _, err = kdrun("eval", *words)
        assert code == 2, words
        assert part in err
        assert len(err.strip().splitlines()) == 1
    assert not (Path(run) / "evals").exists()
