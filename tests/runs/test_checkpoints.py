"""A run's directory as a checkpoint: its weights, its network, and nothing of its config.yaml but plain values."""

from __future__ import annotations

import json
import os

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kdrun.config.options import ModelOptions, TeacherOptions
from kdrun.errors import CheckpointError
from kdrun.models.zoo import create_model
from kdrun.runs.checkpoints import differences, weights_file
from kdrun.runs.identity import model_identity
from kdrun.training.build import load_checkpoint
from tests.conftest import TINY


@pytest.fixture
def run(tmp_path):
    """A finished run of resnet8, 4 classes, as train leaves it."""
    torch.manual_seed(1)
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(create_model("resnet8", num_classes=4).state_dict(), folder / "student.safetensors")
    save_file(create_model("resnet8", num_classes=4).state_dict(), folder / "student_best.safetensors")
    describe(folder)
    return folder


def describe(folder, method="kdrun.methods.none.Independent", **student):
    options = {"name": "resnet8", "kwargs": {}, "pretrained": "false", "head": "linear", "input_size": None, **student}
    content = {"student": options, "teacher": {"name": "vgg8"}, "method": {"_target_": method}, "resolved": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def test_a_run_means_the_weights_of_its_last_epoch(run):
    assert weights_file(str(run), "teacher.checkpoint") == run / "student.safetensors"
    (run / "student.safetensors").rename(run / "teacher.safetensors")
    assert weights_file(str(run), "teacher.checkpoint") == run / "teacher.safetensors"


def test_a_directory_and_its_file_are_one_identity(run):
    by_directory = model_identity(TeacherOptions(name="resnet8", checkpoint=str(run)), "teacher")
    by_file = model_identity(TeacherOptions(name="resnet8", checkpoint=str(run / "student.safetensors")), "teacher")
    assert by_directory["checkpoint"] == by_file["checkpoint"]
    best = model_identity(TeacherOptions(name="resnet8", checkpoint=str(run / "student_best.safetensors")), "teacher")
    assert best["checkpoint"] != by_file["checkpoint"]


def test_new_settings_at_their_defaults_leave_identities_as_they_were():
    assert model_identity(ModelOptions(name="resnet8"), "student") == {"name": "resnet8"}
    chosen = ModelOptions(name="resnet8", checkpoint_weights="raw", checkpoint_ignore=["x"])
    assert model_identity(chosen, "student") == {
        "name": "resnet8",
        "checkpoint_weights": "raw",
        "checkpoint_ignore": ["x"],
    }


def test_what_is_no_finished_run_has_a_way_out(run, tmp_path):
    (run / "student.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"this run is not finished \(kdrun list runs\)\.$"):
        weights_file(str(run), "teacher.checkpoint")
    (run / "last.pt").touch()
    with pytest.raises(CheckpointError, match=r"teacher.checkpoint=.*/run/last.pt uses its last saved step"):
        weights_file(str(run), "teacher.checkpoint")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CheckpointError, match=r"is not a run \(it has no config.yaml\) and contains no weights file"):
        weights_file(str(other), "student.checkpoint")
    (other / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"such as student.checkpoint=.*other/model.safetensors"):
        weights_file(str(other), "student.checkpoint")
    os.mkfifo(tmp_path / "pipe")
    for name, line in (("pipe", "is a named pipe"), ("absent", "no such file"), ("run/config.yaml/x", "no such file")):
        with pytest.raises(CheckpointError, match=f"^student.checkpoint={tmp_path}/{name}.*{line}"):
            weights_file(str(tmp_path / name), "student.checkpoint")


def test_another_network_than_the_runs_is_said(run, capsys):
    said = differences(TeacherOptions(name="resnet20"), "teacher", run / "student.safetensors")
    assert said == f"{run}/config.yaml describes this network with name resnet8 (here teacher.name=resnet20)"
    with pytest.raises(
        CheckpointError, match=r"does not fit resnet20: .*; .*name resnet8 \(here teacher.name=resnet20"
    ):
        load_checkpoint(TeacherOptions(name="resnet20", checkpoint=str(run)), create_model("resnet20", num_classes=4))
    load_checkpoint(ModelOptions(name="mine:Net", checkpoint=str(run)), create_model("resnet8", num_classes=4))
    assert "name resnet8 (here student.name=mine:Net)" in capsys.readouterr().err
    assert not differences(TeacherOptions(name="resnet8"), "teacher", run / "student.safetensors")
    assert not differences(TeacherOptions(name="resnet20"), "teacher", run / "renamed.safetensors")


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"input_size": 64}, "input_size 64 (here teacher.input_size=null)"),
        ({"head": "dropout_linear"}, "head dropout_linear (here teacher.head=linear)"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "mean [0.5, 0.5, 0.5] (here teacher.mean=null)"),
        ({"pretrained": "true"}, "mean and std those of its pretrained weights (here teacher.mean and std=null)"),
    ],
)
def test_how_a_run_saw_its_images_is_compared(run, stored, said):
    describe(run, **stored)
    assert said in differences(TeacherOptions(name="resnet8"), "teacher", run / "student.safetensors")


def test_a_run_that_deploys_more_is_no_checkpoint(run):
    describe(run, method="kdrun.methods.simkd.SimKD")
    with pytest.raises(CheckpointError, match=r"holds more than a student \(SimKD needs more at inference\)"):
        load_checkpoint(TeacherOptions(name="resnet8", checkpoint=str(run)), create_model("resnet8", num_classes=4))


def test_a_hostile_config_is_read_as_plain_values(run, tmp_path):
    proof = tmp_path / "proof"
    hostile = f"student: !!python/object/apply:os.mkdir ['{proof}']\nresolved: {{}}\n"
    for text in (hostile, "student: {name: ${oc.env:HOME}}\nresolved: {}\n", "[1, 2]", "\x00", "a: [", ""):
        (run / "config.yaml").write_text(text)
        load_checkpoint(ModelOptions(name="resnet8", checkpoint=str(run)), create_model("resnet8", num_classes=4))
    describe(run, method="evil.module.Thing")
    load_checkpoint(ModelOptions(name="resnet8", checkpoint=str(run)), create_model("resnet8", num_classes=4))
    assert not proof.exists()


def test_a_distilled_student_teaches_by_its_directory_and_its_last_state(kdrun, outputs):
    ema = ["optimizer.ema_decay=0.5"]
    assert kdrun("train", *TINY, *ema, "epochs=1", "method=none")[0] == 0
    [first] = (outputs / "runs").glob("*/none-resnet8/none/*")
    top1 = json.loads((first / "result.json").read_text())["top1_last"]
    for seed, (checkpoint, said) in enumerate(((first, ""), (first / "last.pt", "the average (ema.module) is loaded"))):
        code, _, err = kdrun(
            "train", *TINY, "epochs=1", "method=kd", f"teacher.checkpoint={checkpoint}", f"seed={seed}"
        )
        assert code == 0
        assert said in err
    students = [json.loads(place.read_text()) for place in (outputs / "runs").glob("*/*/kd/*/provenance.json")]
    assert [student["teacher"]["top1"] for student in students] == [top1, top1]
    assert {student["teacher"]["from"].rpartition("/")[2] for student in students} == {"student.safetensors", "last.pt"}
