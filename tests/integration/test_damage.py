"""Messages about damaged, edited and replaced files, and the repair of a run by the same command."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from kdrun.config.compose import load
from kdrun.display import PlainDisplay
from kdrun.errors import CheckpointError, ConfigError
from kdrun.evaluation.stored import check_stored
from kdrun.files import read_json, sha256_of
from kdrun.runs.directory import RunDirectory
from kdrun.runs.plan import make_plan
from kdrun.runs.recorded import read_run
from kdrun.training.checkpoint import load_state, save_state
from kdrun.training.session import Session
from kdrun.training.signals import Stop
from kdrun.training.training_run import TrainingRun
from tests.integration.conftest import WORDS


@pytest.fixture
def ready(home, outputs) -> Path:
    shutil.copytree(home, outputs, ignore=shutil.ignore_patterns("curves.png", "*_cka.png", "*_confusion.*"))
    return outputs


def run_of(outputs: Path, seed: int) -> RunDirectory:
    return RunDirectory(next(outputs.glob(f"runs/*/*/*/s{seed}-*")))


@pytest.fixture(scope="session")
def lane(home) -> TrainingRun:
    """The student of the killed run, as a session makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRUN_CACHE", str(home / "cache"))
        plan = make_plan(load([*WORDS, "seed=2", f"output_root={home}"]), [])
        session = Session([plan], Stop(), PlainDisplay(), lambda *_: None)
        trainings, _ = session.make_students(*session.obtain_teacher())
    return trainings[0]


@pytest.fixture
def training(lane, ready) -> TrainingRun:
    return replace(lane, run=run_of(ready, 2), notes=[])


def flip(file: Path, at: int = -5) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 4
    file.write_bytes(data)


def one(err: str) -> str:
    """The one line of an error."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


CUT = ("student.safetensors", lambda file: file.write_bytes(file.read_bytes()[:1000]))
REPAIRED = {
    "weights flipped": ("student.safetensors", flip),
    "weights cut": CUT,
    "weights gone": ("student.safetensors", Path.unlink),
    "result empty": ("result.json", lambda file: file.write_text("")),
    "result of other types": ("result.json", lambda file: file.write_text('{"seed": "x"}')),
    "another result": (
        "result.json",
        lambda file: file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3')),
    ),
    "checksums damaged": ("checksums.json", lambda file: file.write_text("{")),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_what_is_damaged_is_named(case, ready):
    name, damage = REPAIRED[case]
    run = run_of(ready, 0)
    assert run.damage(thorough=True) == "" and not run.can_mend()
    damage(run.path / name)
    assert run.damage(thorough=True) and run.state_path.is_file()
    assert run.can_mend() is (case != "weights flipped")  # which a glance does not see


@pytest.mark.parametrize("case", ["weights flipped", "result empty", "checksums damaged"])
def test_the_same_command_repairs_a_finished_run(case, kdrun, ready):
    name, damage = REPAIRED[case]
    run = run_of(ready, 0)
    weights, result = run.weights_path.read_bytes(), run.result()
    damage(run.path / name)
    code, out, err = kdrun("train", *WORDS)
    assert (code, err) == (0, "") and "already done" not in out, err
    after = run.result()
    assert run.weights_path.read_bytes() == weights and run.damage(thorough=True) == ""
    assert {key for key in result if after[key] != result[key]} <= {"finished_at", "peak_memory", "overrides"}
    assert "already done" in kdrun("train", *WORDS)[1]


def test_a_sweep_repairs_its_runs(kdrun, ready):
    run_of(ready, 0).result_path.write_text("")
    run_of(ready, 1).weights_path.unlink()
    code, out, _ = kdrun("status", "mine")
    assert code == 0 and "failed  " in out and "delete it and repeat the command that trained this run" in out
    code, out, err = kdrun("train", "-m", *WORDS, "seed=0,1", "name=mine", "launcher.processes=0")
    assert (code, err) == (0, ""), err
    assert "2 runs done" in out
    assert not run_of(ready, 0).damage(thorough=True) and not run_of(ready, 1).damage(thorough=True)


def test_without_a_checkpoint_the_line_says_how(kdrun, ready):
    run = run_of(ready, 0)
    run.state_path.unlink()
    flip(run.weights_path)
    code, out, err = kdrun("train", *WORDS)
    assert code == 0 and "already done" in out
    assert "note: student.safetensors has changed since it was written" in err and f"delete {run.path}" in err
    run.result_path.write_text("{}")
    code, _, err = kdrun("train", *WORDS)
    assert code == 2 and "result.json is damaged (no seed" in one(err) and "delete it and repeat the command" in err


def test_changed_weights_are_never_measured_or_trained_on(kdrun, ready):
    run = run_of(ready, 0)
    for name, words in (
        ("student.safetensors", ["eval", str(run.path)]),
        ("student_best.safetensors", ["eval", str(run.path), "weights=best"]),
        ("student.safetensors", ["train", *WORDS, f"student.checkpoint={run.path}", "method=none"]),
        ("student.safetensors", ["train", *WORDS, f"teacher.pretrained={run.path}", "seed=5"]),
        ("last.pt", ["train", *WORDS, f"student.checkpoint={run.state_path}", "method=none"]),
    ):
        whole = (run.path / name).read_bytes()
        flip(run.path / name, len(whole) // 2)
        code, _, err = kdrun(*words)
        (run.path / name).write_bytes(whole)
        assert code == 2 and name in one(err) and "has changed since it was written" in err, (name, err)


EDITS = {
    "image_size": ("  image_size: 16\n", "  image_size: 32\n", "dataset.image_size=32 (16 when it was trained)"),
    "threads": ("  threads: 1\n", "  threads: 2\n", "resolved.threads=2 (1 when it was trained)"),
    "lr": ("  lr: 0.05\n", "  lr: 0.5\n", "optimizer.lr=0.5 (0.05 when it was trained)"),
}


def edit(run: RunDirectory, before: str, after: str) -> None:
    text = (run.path / "config.yaml").read_text()
    assert before in text
    (run.path / "config.yaml").write_text(text.replace(before, after))


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_configuration_is_named(case, ready):
    before, after, line = EDITS[case]
    run = run_of(ready, 2)
    edit(run, before, after)
    with pytest.raises(ConfigError, match=r"config\.yaml was edited: ") as found:
        read_run(run.path)
    assert line in str(found.value)
    content = yaml.safe_load((run.path / "config.yaml").read_text())
    (run.path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=True))  # in another order and style
    with pytest.raises(ConfigError, match=re.escape(line)):
        read_run(run.path)


def test_commands_refuse_an_edited_configuration(kdrun, ready):
    for seed, words in ((0, ["eval", str(run_of(ready, 0).path)]), (2, ["train", *WORDS, "seed=2"])):
        edit(run_of(ready, seed), "  image_size: 16\n", "  image_size: 32\n")
        code, _, err = kdrun(*words)
        assert code == 2 and f"{run_of(ready, seed).path}/config.yaml was edited: dataset.image_size=32" in one(err)
    out = kdrun("compare", str(run_of(ready, 0).path), str(run_of(ready, 1).path))[1]
    assert "config.yaml was edited since: dataset.image_size" in " ".join(out.split())


def test_settings_that_are_no_numbers_may_be_edited(ready):
    run = run_of(ready, 2)
    edit(run, "save_every_minutes: 1.0e-09", "save_every_minutes: 5")
    assert read_run(run.path)[0].save_every_minutes == 5


def test_numerics_are_those_of_the_checkpoint(kdrun, ready):
    """Both files that say them were replaced."""
    run = run_of(ready, 2)
    text = (run.path / "config.yaml").read_text().replace("  threads: 1\n", "  threads: 2\n")
    (run.path / "config.yaml").write_text(text)
    (run.path / "provenance.json").unlink()
    code, _, err = kdrun("train", *WORDS, "seed=2")
    assert code == 2 and "was trained with threads=1 so far and would continue with threads=2" in one(err)


def replaced_teacher(outputs: Path, known: bool) -> RunDirectory:
    """Another teacher in the place of the stored one, with its SHA-256. known: to checksums.json."""
    stored = RunDirectory(next(outputs.glob("teachers/*/*/*")), "teacher")
    weights = load_file(stored.weights_path)
    save_file(
        {key: value + 0.01 if value.is_floating_point() else value for key, value in weights.items()},
        stored.weights_path,
    )
    stored.sha256_path.write_text(sha256_of(stored.weights_path))
    if known:
        (stored.path / "checksums.json").unlink()
    return stored


def test_a_replaced_teacher_is_noticed(kdrun, ready):
    stored = replaced_teacher(ready, known=False)
    code, _, err = kdrun("train", *WORDS, "seed=9")
    assert code == 2 and f"{stored.weights_path} has changed since it was written" in one(err)
    assert f"delete {stored.path} to train the teacher again" in err
    (stored.path / "checksums.json").unlink()
    code, _, err = kdrun("train", *WORDS, "seed=2")
    assert code == 2 and "the teacher's weights differ from those with which" in one(err)


STATES = {
    "a list": (lambda state: [1, 2], "does not contain a run's state"),
    "other tensors": (lambda state: {"weight": torch.zeros(3)}, "belongs to another run, or to none"),
    "no score": (lambda state: {key: value for key, value in state.items() if key != "score"}, "KeyError: 'score'"),
    "no optimizer": (lambda state: {**state, "optimizer": {}}, "does not fit this run"),
    "another network": (lambda state: {**state, "model": {"conv.weight": torch.zeros(3)}}, "does not fit this run"),
    "an epoch to come": (lambda state: {**state, "epoch": 99}, "epoch 99"),
    "an epoch that is none": (lambda state: {**state, "epoch": "two"}, "does not fit this run"),
    "a score of nobody's": (lambda state: {**state, "score": {"evil": 1}}, "does not fit this run"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_does_not_fit_is_one_line(case, training):
    change, line = STATES[case]
    place = training.state_path
    save_state(place, change(load_state(place)))
    with pytest.raises(CheckpointError, match=re.escape(line)) as found:
        training.resume(3)
    said = str(found.value)
    assert str(place) in said and "\n" not in said
    assert "delete it to start the run again" in said or "move it away to start the run again" in said


def test_a_run_whose_state_was_deleted_starts_again(kdrun, ready):
    run_of(ready, 2).state_path.write_bytes(b"PK")
    code, _, err = kdrun("train", *WORDS, "seed=2")
    assert code == 2 and "delete it to start the run again from the beginning" in one(err)
    run_of(ready, 2).state_path.unlink()
    assert kdrun("train", *WORDS, "seed=2")[0] == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_flipped_bit_of_a_state_is_named(share, training):
    flip(training.state_path, int(share * training.state_path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"it has changed since it was written.*delete it to start the run again"):
        training.resume(3)


LOST = {
    "gone": (lambda file: file.unlink(), "has no rows of epoch 1"),
    "an epoch less": (lambda file: file.write_text("epoch,split,metric,value\n"), "has no rows of epoch 1"),
    "binary": (lambda file: file.write_bytes(bytes(range(256)) * 4), "has no rows of epoch 1"),
    "nonsense": (
        lambda file: file.write_text(file.read_text().replace("1,test,top1,", "1,test,top1,x")),
        "has other",
    ),
    "a digit": (
        lambda file: file.write_text(file.read_text().replace("test,top1,", "test,top1,1")),
        "has other rows",
    ),
    "a row less": (lambda file: file.write_text("".join(file.read_text().splitlines(True)[:-1])), "has other rows"),
}


@pytest.mark.parametrize("case", LOST)
def test_lost_metric_rows_are_noticed(case, training):
    damage, line = LOST[case]
    training.run.truncate_metrics(1)
    damage(training.run.metrics_path)
    assert training.resume(3) and len(training.notes) == 1 and f"metrics.csv {line}" in training.notes[0]
    if "no rows" in line:
        assert not training.run.read_metrics()


def test_an_undamaged_run_goes_on_and_a_damaged_one_says_so(kdrun, ready, training):
    assert training.resume(3) and (training.epoch, training.notes) == (1, [])
    training.run.metrics_path.unlink()
    code, out, err = kdrun("train", *WORDS, "seed=2")
    assert (code, err) == (0, "") and "resuming student after epoch 1" in out
    assert "metrics.csv has no rows of epoch 1; training goes on with incomplete curves" in " ".join(out.split())


@pytest.mark.parametrize("words", [["epochs=1"], ["epochs=2", "eval_every=2"]])
def test_a_test_loss_that_is_not_finite_stops_a_run(words, kdrun, ready, diverging):
    """The last update ruins the network, and no training loss shows it."""
    code, _, err = kdrun("train", *WORDS, *words, "method=none", "batch_size=72", "optimizer.lr=77")
    assert code == 1 and ("the loss on the test images is nan" in one(err) or "loss/ce is" in one(err)), err
    (failed,) = ready.glob("runs/*/none-resnet8/none/*/failed.txt")
    assert not (failed.parent / "result.json").exists() and "Lower optimizer.lr" in failed.read_text()
    assert (
        "nan" not in (failed.parent / "metrics.csv").read_text() if (failed.parent / "metrics.csv").exists() else True
    )


def test_every_list_goes_on_past_damaged_runs_and_names_them(kdrun, ready):
    bad, good = run_of(ready, 0), run_of(ready, 1)
    for text in ("", "{}", '{"seed": []}', "[1]"):
        bad.result_path.write_text(text)
        for words in (["list", "runs"], ["table", "mine"], ["status", "mine"], ["report", "mine"]):
            code, out, err = kdrun(*words)
            assert code == 0 and "Traceback" not in err, (words, err)
            shown = (ready / "tables" / "mine.html").read_text() if words[0] == "report" else out
            assert bad.path.name in shown and "result.json" in "".join(shown.split()), (words, shown)
            assert words[0] != "list" or good.path.name in shown
        code, out, err = kdrun("compare", str(bad.path), str(good.path), str(run_of(ready, 2).path))
        assert code == 0 and "skipped: " in out and str(bad.path) in "".join(out.split()), err


def test_doctor_reads_everything(kdrun, ready):
    assert check_stored(ready) == (len_of(ready), [])
    run, stored = run_of(ready, 0), RunDirectory(next(ready.glob("teachers/*/*/*")), "teacher")
    flip(run.best_weights_path)
    flip(stored.weights_path)
    flip(run.metrics_path)
    flip(run_of(ready, 2).state_path, 3000)
    told = read_json(run.path / "provenance.json")
    (run.path / "provenance.json").write_text(json.dumps({**told, "streams": 7, "checksum": "0" * 16}))
    code, out, err = kdrun("doctor", f"output_root={ready}")
    assert code == 1 and "5 damaged" in out
    for file in (run.best_weights_path, stored.weights_path, run.metrics_path, run_of(ready, 2).state_path):
        assert f"error: {file} " in err, err
    assert "provenance.json has changed since it was written" in err
    assert "checksums" not in kdrun("doctor")[1]


def len_of(outputs: Path) -> int:
    """Config, result, two weights, metrics, last.pt and provenance of three finished ones; less of the fourth; what was
    measured, the ledger, the moments of the images."""
    return 3 * 7 + 3 + 3
