"""Whole runs through the command line: contents, identity, resume, teachers, faults."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

from kdrun import files
from kdrun.runs.result import RESULT_KEYS
from kdrun.training.checkpoint import load_state
from kdrun.training.loop import Lane
from tests.conftest import TINY
from tests.training.test_signals import held_elsewhere

UNSTEADY = {
    "finished_at",
    "train_seconds",
    "images_per_second",
    "peak_memory",
    "overrides",
}  # times, and what was typed


class Killed(BaseException):
    """Ends the process as far as the code under test can tell: nothing catches it."""


def only_run(outputs: Path) -> Path:
    (found,) = (outputs / "runs").glob("*/*/*/*")
    return found


def only_teacher(outputs: Path) -> Path:
    (found,) = (outputs / "teachers").glob("*/*/*")
    return found


def numbers(run: Path) -> dict[str, object]:
    """Everything in a run directory that must repeat: weights byte for byte, metrics and result without times and the
    words that were typed."""
    rows = [line for line in (run / "metrics.csv").read_text().splitlines() if "images_per_second" not in line]
    return {
        "weights": (run / "student.safetensors").read_bytes(),
        "best": (run / "student_best.safetensors").read_bytes(),
        "metrics": rows,
        "result": steady_result(run),
    }


def steady_result(folder: Path) -> dict[str, object]:
    result = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in result.items() if key not in UNSTEADY}


def train(kdrun, *words: str) -> tuple[int, str, str]:
    return kdrun("train", *TINY, *words)


@pytest.mark.pictures
def test_contents_of_a_run(kdrun, outputs):
    code, out, err = train(kdrun, "epochs=2", "seed=3")
    assert (code, err) == (0, "")
    run = only_run(outputs)
    assert run.relative_to(outputs).parts[:4] == ("runs", "fake", "resnet8-resnet8", "kd")
    assert run.name.startswith("s3-")
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        "config.yaml",
        "provenance.json",
        "signature.json",
        "metrics.csv",
        "last.pt",
        "student.safetensors",
        "student_best.safetensors",
        "curves.png",
        "result.json",
        "checksums.json",
    }
    result = json.loads((run / "result.json").read_text())
    assert list(result) == RESULT_KEYS
    assert (result["dataset"], result["teacher"], result["student"], result["method"]) == (
        "fake",
        "resnet8",
        "resnet8",
        "kd",
    )
    assert (result["seed"], result["epochs"], result["precision"], result["compile"]) == (3, 2, "fp32", False)
    assert result["top1_best"] >= result["top1_last"]
    assert result["params"] == 77652
    assert result["extra_params"] == 0
    assert result["flops"] > 1e6
    assert result["peak_memory"] > 2**26
    assert "seed=3" in result["overrides"]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "test"}
    assert {row["metric"] for row in rows} == {
        *("loss", "loss/ce", "loss/kd", "top1", "images_per_second", "lr", "top5", "nll")
    }
    assert {int(row["epoch"]) for row in rows} == {1, 2}
    by = {(row["epoch"], row["split"], row["metric"]): float(row["value"]) for row in rows}
    assert by["2", "test", "top1"] == result["top1_last"]
    assert by["1", "train", "loss"] == pytest.approx(by["1", "train", "loss/ce"] + by["1", "train", "loss/kd"])
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["resolved"] == {
        "device": "cpu",
        "precision": "fp32",
        "compile": False,
        "graphs": False,
        "threads": torch.get_num_threads(),
        "deterministic": False,
        "processes": 1,
    }
    provenance = json.loads((run / "provenance.json").read_text())
    assert len(provenance["teacher"]["sha256"]) == 64
    assert provenance["hardware"]["cpu_kind"]
    assert provenance["libraries"]["torch"]
    teacher = json.loads((only_teacher(outputs) / "result.json").read_text())
    assert teacher["top1_last"] == result["teacher_top1"]
    assert (teacher["teacher"], teacher["method"], teacher["seed"]) == (None, "none", 0)
    with (outputs / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == RESULT_KEYS
    assert [row["seed"] for row in table] == ["3"]
    assert "teacher resnet8 (trained)" in out
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_command_finds_its_run(kdrun, outputs):
    train(kdrun, "epochs=1")
    before = {path: path.stat().st_mtime_ns for path in only_run(outputs).iterdir()}
    code, out, _ = train(kdrun, "epochs=1")
    assert code == 0
    assert "already done" in out
    assert before == {path: path.stat().st_mtime_ns for path in only_run(outputs).iterdir()}


def test_identity(tmp_path, image_folder):
    """A setting that changes numbers changes the digest; locations, and settings that a method ignores, do not."""
    from kdrun.config.compose import load
    from kdrun.runs.plan import make_plan

    def digest(*words: str) -> str:
        return make_plan(load([*TINY, *words]), []).digest

    base = digest()
    same = ["output_root=/tmp/elsewhere", "save_every_minutes=1", "dataset.workers=3"]
    assert all(digest(word) == base for word in same)
    other = [
        "seed=1",
        "epochs=7",
        "batch_size=8",
        "optimizer.lr=0.2",
        "method.temperature=2",
        "method=dkd",
        "student=resnet14",
        "teacher=resnet14",
        "teacher.recipe.epochs=2",
        "teacher.seed=1",
        "teacher.precision=auto",
        "precision=auto",
        "device=cpu",
        "threads=2",
        "compile=auto",
        "dataset.val_fraction=0.2",
        "dataset.augment.flip=0",
        "dataset.augment.erasing=0.1",
        "teacher_view=clean",
        "eval_every=2",
        "teacher.random=true",
        "optimizer.ema_decay=0.9",
        "teacher.preact_last_map=true",
    ]
    digests = [digest(word) for word in other]
    assert len({base, *digests}) == len(other) + 1
    # An independent student is one run for all teachers, benchmarks and views.
    alone = digest("method=none")
    assert digest("method=none", "teacher=vgg16", "teacher_view=clean", "student.preact_last_map=true") == alone
    # Paths enter as content.
    one, two = image_folder("one"), image_folder("two")
    folder = ["dataset=folder", "dataset.image_size=16"]
    assert digest(*folder, f"dataset.root={one}") == digest(*folder, f"dataset.root={two}")
    (two / "class_0" / "0000.png").unlink()
    assert digest(*folder, f"dataset.root={one}") != digest(*folder, f"dataset.root={two}")
    for name, content in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest(f"teacher.checkpoint={tmp_path / name}") for name in ("a.pth", "b.pth", "c.pth"))
    assert a == b != c


def interrupted_at(monkeypatch, step: int, action) -> None:
    """Call `action` when the run takes its `step`-th training step (teacher's steps included)."""
    taken = {"steps": 0}
    original = Lane.step

    def counted(self, *arguments):
        taken["steps"] += 1
        original(self, *arguments)
        if taken["steps"] == step:
            action()

    monkeypatch.setattr(Lane, "step", counted)


def killed() -> None:
    raise Killed


INTERRUPTED = ["epochs=3", "method=kd", "optimizer.ema_decay=0.9", "save_every_minutes=1e-9"]  # a save after every step


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, object]:
    """The numbers of a run that nothing disturbed."""
    from kdrun.cli import main

    place = tmp_path_factory.mktemp("uninterrupted")
    assert main(["train", *TINY, *INTERRUPTED, f"output_root={place}"]) == 0
    return numbers(only_run(place))


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 9, 12])
def test_killed_runs_end_as_if_never_killed(step, kdrun, outputs, uninterrupted, monkeypatch):
    """Steps 1-3 train the teacher, 4-12 the student's three epochs."""
    words = INTERRUPTED
    with monkeypatch.context() as patch:
        interrupted_at(patch, step, killed)
        with pytest.raises(Killed):
            train(kdrun, *words)
    code, out, err = train(kdrun, *words)
    assert code == 0, err
    assert numbers(only_run(outputs)) == uninterrupted
    if step > 5:
        assert "resuming student" in out


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_killed_inside_a_save(place, kdrun, outputs, uninterrupted, monkeypatch):
    words = INTERRUPTED
    original = getattr(os, place)
    for call in (2, 3, 5, 6):
        calls = {"count": 0}

        def dying(*arguments, limit=call, calls=calls, **named):
            calls["count"] += 1
            if calls["count"] == limit:
                raise Killed
            return original(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, place, dying)
            with pytest.raises(Killed):
                train(kdrun, *words)
    assert train(kdrun, *words)[0] == 0
    assert numbers(only_run(outputs)) == uninterrupted
    assert not list(outputs.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 5), (signal.SIGUSR1, 6), (signal.SIGINT, 8)])
def test_signals_save_and_ask_to_be_requeued(number, step, kdrun, outputs, uninterrupted, monkeypatch):
    words = INTERRUPTED[:3]  # nothing else saves inside an epoch
    with monkeypatch.context() as patch:
        interrupted_at(patch, step, lambda: os.kill(os.getpid(), number))
        code, _, err = train(kdrun, *words)
    assert code == 75
    assert f"stopped by {number.name}" in err
    assert "The same command resumes" in err
    run = only_run(outputs)
    state = load_state(run / "last.pt")
    assert (state["epoch"], state["step"]) == divmod(step - 3, 3)
    assert not (run / "failed.txt").exists()
    assert train(kdrun, *words)[0] == 0
    assert numbers(run) == uninterrupted


def test_gradient_accumulation_resumes_inside_a_group(kdrun, outputs, tmp_path, monkeypatch):
    """A checkpoint between two halves of an update must not lose the first half."""
    words = ["epochs=2", "method=none", "optimizer.accumulate_steps=2", "save_every_minutes=1e-9"]
    train(kdrun, *words)
    expected = numbers(only_run(outputs))
    monkeypatch.setenv("KDRUN_OUTPUTS", str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        interrupted_at(patch, 2, killed)
        with pytest.raises(Killed):
            train(kdrun, *words)
    train(kdrun, *words)
    assert numbers(only_run(tmp_path / "again")) == expected


def test_validation_split_selects(kdrun, outputs):
    code, out, _ = train(kdrun, "epochs=3", "method=none", "dataset.val_fraction=0.25")
    assert code == 0
    run = only_run(outputs)
    result = json.loads((run / "result.json").read_text())
    with (run / "metrics.csv").open() as file:
        rows = [
            (int(row["epoch"]), row["split"], float(row["value"]))
            for row in csv.DictReader(file)
            if row["metric"] == "top1"
        ]
    val = {epoch: value for epoch, split, value in rows if split == "val"}
    test = {epoch: value for epoch, split, value in rows if split == "test"}
    chosen = max(val, key=lambda epoch: (val[epoch], -epoch))
    assert result["top1_val_selected"] == test[chosen]
    assert result["top1_best"] == max(test.values())
    assert "validation-selected" in out


def test_evaluation_interval(kdrun, outputs):
    train(kdrun, "epochs=3", "method=none", "eval_every=2")
    with (only_run(outputs) / "metrics.csv").open() as file:
        epochs = {row["epoch"] for row in csv.DictReader(file) if row["split"] == "test"}
    assert epochs == {"2", "3"}


def test_numerics_are_pinned(kdrun, outputs, monkeypatch):
    """A run that was started with one thread resumes with one thread, whatever the machine offers later."""
    words = ["epochs=2", "method=none", "save_every_minutes=1e-9"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 4, killed)
        with pytest.raises(Killed):
            train(kdrun, *words)
    monkeypatch.undo()
    monkeypatch.setenv("KDRUN_OUTPUTS", str(outputs))
    assert train(kdrun, *words)[0] == 0
    assert json.loads((only_run(outputs) / "result.json").read_text())["threads"] == 1


def test_numerics_that_cannot_be_honoured(kdrun, outputs, monkeypatch):
    words = ["epochs=2", "method=none"]
    with monkeypatch.context() as patch:
        interrupted_at(patch, 4, killed)
        with pytest.raises(Killed):
            train(kdrun, *words)
    run = only_run(outputs)
    config = (run / "config.yaml").read_text().replace("device: cpu\n  precision", "device: cuda:0\n  precision")
    (run / "config.yaml").write_text(config)
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    code, _, err = train(kdrun, *words)
    assert code == 2
    assert "was started on cuda, but this machine offers cpu" in err
    assert kept == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_lowest_level_faults_of_a_run(kdrun, outputs, diverging):
    """A loss that is not finite ends the run, names term and step, and keeps the last good checkpoint."""
    code, _, err = train(kdrun, "epochs=2", "method=none", "optimizer.lr=77")
    assert code == 1
    assert "loss/ce is nan at step" in err or "loss/ce is inf at step" in err
    run = only_run(outputs)
    assert "loss/ce" in (run / "failed.txt").read_text()
    assert not (run / "result.json").exists()
    # A run that failed is tried again by the same command, and forgets its failure when it ends well.
    code, _, _ = train(kdrun, "epochs=2", "method=none")
    assert code == 0


def test_out_of_memory_says_what_to_change(kdrun, outputs, monkeypatch):
    def exhausted(self, *arguments):
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    monkeypatch.setattr(Lane, "forward", exhausted)
    code, _, err = train(kdrun, "epochs=1", "method=none")
    assert code == 1
    assert "out of memory at batch_size=32" in err
    assert "accumulate_steps=2" in err
    assert "out of memory" in (only_run(outputs) / "failed.txt").read_text()


def test_full_disk(kdrun, outputs, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        code, _, err = train(kdrun, "epochs=1", "method=none")
    assert code == 1
    assert "disk full while writing" in err
    assert "it resumes" in err
    assert not list(outputs.rglob("*.tmp"))
    assert train(kdrun, "epochs=1", "method=none")[0] == 0


def test_read_only_outputs(kdrun, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = train(kdrun, "epochs=1", f"output_root={tmp_path / 'file' / 'below'}")
    assert code in (1, 2)
    assert len(err.strip().splitlines()) == 1
    assert "cannot be written" in err


def test_two_processes_on_one_run(kdrun, outputs):
    from kdrun.config.compose import load
    from kdrun.runs.plan import make_plan

    words = ["epochs=1", "method=none"]
    run = make_plan(load([*TINY, *words]), []).run.path
    run.mkdir(parents=True)
    (run / ".owner").write_text("process 123 on somewhere since now")
    with held_elsewhere(run / ".lock"):
        code, _, err = train(kdrun, *words)
    assert code == 1
    assert "is being trained by process 123 on somewhere" in err
    assert train(kdrun, *words)[0] == 0


def test_damaged_state_says_what_to_do(kdrun, outputs, monkeypatch):
    words = ["epochs=2", "method=none", "save_every_minutes=1e-9"]
    with monkeypatch.context() as patch:
        interrupted_at(patch, 4, killed)
        with pytest.raises(Killed):
            train(kdrun, *words)
    (only_run(outputs) / "last.pt").write_bytes(b"damaged")
    code, _, err = train(kdrun, *words)
    assert code == 2
    assert "last.pt cannot be read" in err
    assert "delete it" in err


def test_damaged_results_are_passed_over(kdrun, outputs):
    train(kdrun, "epochs=1", "method=none")
    foreign = outputs / "runs" / "fake" / "none-resnet8" / "none" / "s9-deadbeef"
    foreign.mkdir()
    (foreign / "result.json").write_text("{")
    train(kdrun, "epochs=1", "method=none", "seed=1")
    with (outputs / "results.csv").open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0", "1"]
    code, out, _ = kdrun("list", "runs")
    assert code == 0
    assert "damaged" in out
    assert "s9-deadbeef" in out


def test_multirun_goes_on_after_a_failure(kdrun, outputs, diverging):
    code, out, err = train(
        kdrun, "-m", "epochs=1", "method=none", "optimizer.lr=77,0.1", "seed=0,1", "launcher.processes=0"
    )
    assert code == 1
    assert out.count("loss/ce is") == 2
    assert "2 runs failed" in err
    assert len(list((outputs / "runs").glob("*/*/*/*/result.json"))) == 2
    assert out.count("done  none") == 2


def test_multirun_with_typed_names(kdrun, outputs):
    words = ["epochs=1", "method=none", "student=resnet8,timm:resnet10t", "launcher.processes=0"]
    code, _, err = train(kdrun, "-m", *words)
    assert (code, err) == (0, "")
    assert {path.name for path in (outputs / "runs" / "fake").iterdir()} == {"none-resnet8", "none-timm-resnet10t"}


# teachers


def test_teachers_are_trained_once_and_shared(kdrun, outputs):
    train(kdrun, "epochs=1")
    stamp = (only_teacher(outputs) / "teacher.safetensors").stat().st_mtime_ns
    code, out, _ = train(kdrun, "epochs=1", "method=dkd", "seed=1", "batch_size=16")
    assert code == 0
    assert "is not trained yet" not in out
    assert (only_teacher(outputs) / "teacher.safetensors").stat().st_mtime_ns == stamp


def test_changed_teacher_is_noticed(kdrun, outputs):
    train(kdrun, "epochs=1")
    place = only_teacher(outputs) / "teacher.safetensors"
    data = bytearray(place.read_bytes())
    data[-1] ^= 1
    place.write_bytes(data)
    code, _, err = train(kdrun, "epochs=1", "seed=1")
    assert code == 2
    assert "is not the file that was trained" in err
    place.unlink()
    code, _, err = train(kdrun, "epochs=1", "seed=1")
    assert code == 2
    assert "is missing; delete" in err


def test_teacher_from_a_checkpoint(kdrun, outputs):
    train(kdrun, "epochs=1")
    place = only_teacher(outputs) / "teacher.safetensors"
    code, out, _ = train(kdrun, "epochs=1", f"teacher.checkpoint={place}")
    assert code == 0
    assert "(checkpoint)" in out
    stored = {
        path.name: json.loads((path / "result.json").read_text())
        for path in (outputs / "runs/fake/resnet8-resnet8/kd").iterdir()
    }
    assert len(stored) == 2
    assert len({result["teacher_top1"] for result in stored.values()}) == 1


def test_teacher_checkpoint_of_another_architecture(kdrun, outputs):
    train(kdrun, "epochs=1")
    place = only_teacher(outputs) / "teacher.safetensors"
    code, _, err = train(kdrun, "epochs=1", "teacher=wrn_16_1", f"teacher.checkpoint={place}")
    assert code == 2
    assert "does not fit wrn_16_1" in err


def test_random_teacher_is_a_control(kdrun, outputs):
    code, out, _ = train(kdrun, "epochs=1", "teacher.random=true")
    assert code == 0
    assert "untrained control" in out
    assert not (outputs / "teachers").exists()


def test_teacher_of_no_epochs_is_taken_as_it_comes(kdrun, outputs, tmp_path):
    from safetensors.torch import load_file

    from kdrun.models.zoo import create_model

    torch.manual_seed(5)
    source = create_model("resnet8", num_classes=4)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    code, _, err = train(kdrun, "epochs=1", f"teacher.pretrained={tmp_path / 'weights.pth'}", "teacher.recipe.epochs=0")
    assert (code, err) == (0, "")
    stored = load_file(only_teacher(outputs) / "teacher.safetensors")
    assert torch.equal(stored["conv1.weight"], source.conv1.weight)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["teacher.pretrained={folder}/seven.pth"], "leaves fc of"),
        (["teacher.pretrained={folder}/four.pth", "teacher.head=dropout_linear"], "leaves fc.1 of"),
        ([], "leaves conv1, layer1.0.conv1, layer1.0.conv2 and "),
    ],
)
def test_teacher_of_no_epochs_has_no_random_weights(words, parts, kdrun, outputs, tmp_path):
    from kdrun.models.zoo import create_model

    for name, classes in (("four", 4), ("seven", 7)):
        torch.save(create_model("resnet8", num_classes=classes).state_dict(), tmp_path / f"{name}.pth")
    words = [word.format(folder=tmp_path) for word in words]
    code, _, err = train(kdrun, "epochs=1", "teacher.recipe.epochs=0", *words)
    assert code == 2
    assert parts in err and "teacher.checkpoint=FILE with weights for 4 classes" in err
    assert not list(outputs.glob("**/*.safetensors"))
    assert train(kdrun, "epochs=1", "teacher.recipe.epochs=1", *words)[0] == 0
    assert train(kdrun, "epochs=1", "teacher.recipe.epochs=0", *words, "teacher.random=true")[0] == 0


def test_teacher_survives_a_kill(kdrun, outputs, tmp_path, monkeypatch):
    train(kdrun, "epochs=1", "teacher.recipe.epochs=3")
    expected = (only_teacher(outputs) / "teacher.safetensors").read_bytes()
    monkeypatch.setenv("KDRUN_OUTPUTS", str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5, killed)
        with pytest.raises(Killed):
            train(kdrun, "epochs=1", "teacher.recipe.epochs=3", "save_every_minutes=1e-9")
    code, out, _ = train(kdrun, "epochs=1", "teacher.recipe.epochs=3")
    assert code == 0
    assert "resuming teacher" in out
    assert (only_teacher(tmp_path / "again") / "teacher.safetensors").read_bytes() == expected


# evaluation


def test_eval_measures_what_training_recorded(kdrun, outputs):
    train(kdrun, "epochs=2")
    run = only_run(outputs)
    result = json.loads((run / "result.json").read_text())
    digest = run.name.partition("-")[2]
    for word in (str(run), digest, str(outputs / "runs/*/*/*/*")):
        code, out, _ = kdrun("eval", word)
        assert code == 0
        assert f"top-1 {result['top1_last']:.2f} %" in out
    written = json.loads((run / "evals" / "test.json").read_text())
    assert written["top1"] == result["top1_last"]
    assert written["samples"] == 40
    _, out, _ = kdrun("eval", str(run), "weights=best")
    assert f"top-1 {result['top1_best']:.2f} %" in out
    _, out, _ = kdrun("eval", str(run), "split=train")
    assert "fake/train (72 images" in out
    _, out, _ = kdrun("eval", str(only_teacher(outputs)))
    assert f"top-1 {result['teacher_top1']:.2f} %" in out
    words = [word for word in TINY if word.startswith(("dataset", "precision"))]
    _, out, _ = kdrun("eval", str(run / "student.safetensors"), "student=resnet8", *words)
    assert f"top-1 {result['top1_last']:.2f} %" in out


def test_eval_mistakes(kdrun, outputs):
    train(kdrun, "epochs=1", "method=none")
    run = str(only_run(outputs))
    for words, part in (
        ([], "eval needs a run directory"),
        (["nothing"], "RUN nothing: no run directory"),
        ([run, "split=val"], "had no validation split"),
        ([run, "split=every"], "split=every: choose test or val or train or all"),
        ([run, "epochs=3"], "epochs: for a finished run, set only"),
        ([run, "tesset=noise"], "Did you mean testset?"),
    ):
        code, _, err = kdrun("eval", *words)
        assert code == 2
        assert part in err
        assert len(err.strip().splitlines()) == 1


def test_taps(kdrun):
    code, out, _ = kdrun("taps", "teacher=wrn_40_2", "student=mobilenet_v2", "dataset=cifar100")
    assert code == 0
    assert "2,255,156 parameters, 100 classes" in out
    assert "pairs, shallow to deep" in out


def test_doctor(kdrun, tmp_path):
    code, out, err = kdrun("doctor")
    assert (code, err) == (0, "")
    assert "precision=auto" in out
    assert "weights of timm" in out
    assert "HF_HOME or HF_HUB_CACHE changes it" in out
    assert "TORCH_HOME changes it" in out
    (tmp_path / "file").write_text("")
    code, _, err = kdrun("doctor", f"output_root={tmp_path / 'file' / 'below'}")
    assert code == 1
    assert "cannot be written" in err


def test_pairing_mistakes_cost_no_training(kdrun, outputs):
    """A pair that the method cannot train is refused before the teacher trains: by shapes, and by values."""
    for words, expected in (
        (["method=deit"], "method deit"),
        (["method=srd", "teacher=wrn_16_1", "teacher.preact_last_map=true"], "preact_last_map=false"),
    ):
        code, _, err = train(kdrun, *words)
        assert code == 2
        assert expected in err
        assert len(err.strip().splitlines()) == 1
    assert not list((outputs / "teachers").rglob("*.safetensors"))


def test_what_is_deployed_is_what_is_evaluated_and_stored(kdrun, outputs):
    """SimKD keeps its projector and the teacher's classifier: counted, stored, and rebuilt by `kdrun eval`."""
    code, _, _ = train(kdrun, "method=simkd", "teacher=resnet14", "epochs=2", "optimizer.ema_decay=0.5")
    assert code == 0
    run = only_run(outputs)
    result = json.loads((run / "result.json").read_text())
    assert result["params"] > 77_652  # the student alone
    assert result["extra_params"] == 0
    code, out, _ = kdrun("eval", str(run))
    assert code == 0
    assert f"{result['top1_last']:.2f} %" in out
    assert json.loads((run / "evals" / "test.json").read_text())["top1"] == pytest.approx(result["top1_last"])


def test_preparation_survives_kills(kdrun, outputs, tmp_path, monkeypatch):
    """A method's own training before the first epoch resumes, and the result is the uninterrupted one."""
    words = ["method=fitnet", "method.hint_epochs=4", "epochs=2", "save_every_minutes=1e-9"]
    train(kdrun, *words)
    expected = numbers(only_run(outputs))
    monkeypatch.setattr("kdrun.training.trainer.SAVE_SECONDS", -1)
    monkeypatch.setenv("KDRUN_OUTPUTS", str(tmp_path / "again"))
    for step in (5, 8, 11):  # after the teacher's 3 steps: in the preparation, again in what is left of it, in epoch 1
        with monkeypatch.context() as patch:
            interrupted_at(patch, step, killed)
            with pytest.raises(Killed):
                train(kdrun, *words)
    assert train(kdrun, *words)[0] == 0
    assert numbers(only_run(tmp_path / "again")) == expected


# loggers


def test_tensorboard_gets_what_metrics_csv_has(kdrun, outputs):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(kdrun, "epochs=2", "method=none", "logger=[tensorboard]")[0] == 0
    run = only_run(outputs)
    found = events.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert {f"{split}/{name}" for _, split, name, _ in rows} == set(found.Tags()["scalars"])
    for epoch, split, name, value in rows:
        scalars = {event.step: event.value for event in found.Scalars(f"{split}/{name}")}
        assert scalars[int(epoch)] == pytest.approx(float(value), rel=1e-5)


def test_wandb_gets_every_epoch(kdrun, outputs, monkeypatch):
    import types

    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values))

        def finish(self):
            calls.append("finished")

    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()
    fake.init = lambda **settings: calls.append(settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert train(kdrun, "epochs=2", "method=none", "logger=[wandb]")[0] == 0
    digest = json.loads((only_run(outputs) / "result.json").read_text())["digest"]
    assert calls[0]["id"] == digest[:16]
    assert calls[0]["resume"] == "allow"
    assert [call[0] for call in calls[1:3]] == [1, 2]
    assert "test/top1" in calls[1][1]
    assert calls[-1] == "finished"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("logger=[tensorbord]", "logger=tensorbord: choose tensorboard or wandb. Did you mean tensorboard?"),
        ("logger=[wandb]", "logger=wandb: the package is not installed: pip install 'kdrun[wandb]'."),
    ],
)
def test_a_logger_that_is_not_there(kdrun, monkeypatch, word, line):
    import importlib.util

    from kdrun.training import loggers

    monkeypatch.setattr(
        loggers.importlib.util,
        "find_spec",
        lambda name, real=importlib.util.find_spec: None if name == "wandb" else real(name),
    )
    code, _, err = train(kdrun, "epochs=1", "method=none", word)
    assert code == 2
    assert line in err and err.count("\n") == 1


LATE = [f"dataset.augment.{word}" for word in ("mixup=0.8", "cutmix=1", "randaugment=2", "erasing=0.5")]


def test_function_matching_on_mixed_images_survives_a_kill(kdrun, outputs, tmp_path, monkeypatch):
    """Its teacher is the one of plain images; accuracy on mixed ones is not shown."""
    words = ["epochs=2", "method.ce_weight=0", "save_every_minutes=1e-9"]
    assert train(kdrun, *words)[0] == 0
    teacher = only_teacher(outputs)
    assert train(kdrun, *words, *LATE)[0] == 0
    assert only_teacher(outputs) == teacher
    whole = next(run for run in (outputs / "runs").glob("*/*/*/*") if "mixup: 0.8" in (run / "config.yaml").read_text())
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    shown = {(row["split"], row["metric"]) for row in rows}
    assert ("train", "loss/kd") in shown
    assert ("train", "top1") not in shown
    assert ("test", "top1") in shown
    other = tmp_path / "other"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5, killed)  # after the second of three steps, and the teacher's three
        with pytest.raises(Killed):
            train(kdrun, *words, *LATE, f"output_root={other}")
    assert train(kdrun, *words, *LATE, f"output_root={other}")[0] == 0
    assert numbers(only_run(other)) == numbers(whole)
