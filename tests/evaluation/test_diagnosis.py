"""Diagnosis of distillation that does not help: prepared failures are named first, and healthy runs raise no alarm."""

from __future__ import annotations

import json
import math

import pytest
import torch

from kdrun.evaluation.diagnosis import Diagnosis, Gradients, TeacherFacts, entropy_share, temperature_of
from kdrun.evaluation.findings import findings_of, verdict_of
from tests.conftest import TINY

TEACHER = TeacherFacts("resnet20", 272_474, 81_626_368, 97.5, 100.0, 98.0, 179, 4.0, 0.67)
START = Gradients("at the start", {"ce": 0.27, "kd": 4.4}, {"ce, kd": 0.87})
END = Gradients("at the end", {"ce": 0.10, "kd": 2.4}, {"ce, kd": 0.48})


def healthy(**changes) -> Diagnosis:
    """Return the measurements of kd on the digits table."""
    values: dict = {
        "run": "runs/x",
        "method": "kd",
        "classes": 10,
        "student": "resnet8",
        "student_params": 78_042,
        "student_flops": 25_003_264,
        "test": 97.9,
        "train": 98.0,
        "epochs": 120,
        "teacher": TEACHER,
        "gradients": [START, END],
        "independent": {0: 96.5, 1: 96.7},
        "siblings": {0: 97.9, 1: 98.0},
        "independent_train": 99.0,
    }
    return Diagnosis(**(values | changes))


def taught_by(**changes) -> TeacherFacts:
    from dataclasses import replace

    return replace(TEACHER, **changes)


def test_a_healthy_run_raises_no_alarm():
    assert findings_of(healthy()) == []
    assert verdict_of(healthy()) == "kd 97.95 % (2 seeds), the independent student 96.60 % (2 seeds): +1.35 points"


@pytest.mark.parametrize(
    ("changes", "name", "figure"),
    [
        ({"teacher": taught_by(test=10.1, train=9.5)}, "untrained teacher", "correct on 10.10 % of the test images"),
        ({"teacher": taught_by(test=40.0, random=True)}, "untrained teacher", "chance is 10.00 %"),
        ({"teacher": taught_by(test=10.1, epochs=2)}, "untrained teacher", "images after 2 epochs of training; chance"),
        (
            {"teacher": taught_by(temperature=100.0, softened=0.9994)},
            "temperature too high",
            "0.9994 of that of equal ones",
        ),
        (
            {"gradients": [Gradients("at the start", {"ce": 0.27, "kd": 4_900.0}, {})], "test": 90.0},
            "weight that drowns the labels",
            "5.5e-05 of that of the other terms",
        ),
        (
            {"gradients": [Gradients("at the start", {"ce": 2.7, "kd": 4e-6}, {})]},
            "distillation without weight",
            "675,000 times that of all other terms",
        ),
        (
            {"teacher": taught_by(test=95.0)},
            "teacher no better than the student",
            "resnet20 is correct on 95.00 % of the test images, the independent student on 96.60 % (2 seeds)",
        ),
        (
            {"gradients": [Gradients(when, {"ce": 1.0, "kd": 1.0}, {"ce, kd": -0.8}) for when in ("a", "b")]},
            "terms that pull against each other",
            "cosine is -0.80 at the start",
        ),
        ({"test": 65.7, "train": 70.0}, "student that has not learned its training images yet", "30.90 points behind"),
    ],
)
def test_each_failure_is_named_first_with_its_figure(changes, name, figure):
    first, *_ = findings_of(healthy(**changes))
    assert first.name == name
    assert figure in first.figure
    assert first.settings


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": None, "gradients": []},
        {"teacher": taught_by(temperature=None, softened=None)},
        {"gradients": [Gradients("at the start", {"ce": 0.3, "at": 0.0}, {})]},
        {"gradients": [Gradients("at the start", {"kd": 4.0}, {})]},
        {"gradients": [Gradients("at the start", {"ce": math.nan, "kd": 4.0}, {})]},
        {"gradients": [START, Gradients("at the end", {"ce": 1e-9, "kd": 1.0}, {"ce, kd": -0.97})]},  # they cancel
        {"independent": {}},
        {"independent_train": None, "test": 60.0},
        {"test": 96.0, "train": 90.0},  # a little behind is no failure
        {
            "gradients": [Gradients("at the start", {"ce": 0.27, "at": 340.0}, {})]
        },  # whose student has learned all the same
    ],
)
def test_what_is_not_known_is_no_finding(changes):
    assert findings_of(healthy(**changes)) == []


def test_an_untrained_teacher_is_said_once():
    """Its outputs are alike at any temperature, and it is below any student."""
    found = healthy(teacher=taught_by(test=10.0, softened=0.9999))
    assert [finding.name for finding in findings_of(found)] == ["untrained teacher"]


def test_what_the_temperature_leaves():
    logits = torch.tensor([[8.0, 2.0, 0.0, -2.0]])
    p = torch.tensor([8.0, 2.0, 0.0, -2.0]).softmax(0)
    assert entropy_share(logits, 1.0) == pytest.approx(float(-(p * p.log()).sum()) / math.log(4), rel=1e-5)
    assert entropy_share(logits, 1000.0) > 0.9999
    assert entropy_share(torch.zeros(3, 10), 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ({"_target_": "kdrun.methods.kd.KD", "temperature": 4.0}, 4.0),
        ({"_target_": "kdrun.methods.crd.CRD", "temperature": 0.07}, None),
        ({"_target_": "kdrun.methods.srd.SRD"}, None),
        (
            {
                "_target_": "kdrun.methods.combine.Combine",
                "parts": [{"_target_": "kdrun.methods.kd.KD", "temperature": 9.0}, {"_target_": "kdrun.methods.at.AT"}],
            },
            9.0,
        ),
    ],
)
def test_whose_temperature_softens(node, found):
    assert temperature_of(node, None) == found  # type: ignore[arg-type]


def test_the_command_names_the_failure_the_figures_and_what_to_try(kdrun, outputs):
    words = [*TINY, "epochs=1", "method=kd", "teacher.random=true"]
    assert kdrun("train", *words)[0] == 0
    (run,) = (outputs / "runs").glob("*/*/kd/*")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    code, out, err = kdrun("diagnose", str(run))
    assert (code, err) == (0, "")
    assert "1. untrained teacher" in out
    tried = next(line for line in out.splitlines() if "try: kdrun train" in line)
    assert "teacher.random" not in tried and "method=kd" in tried
    for line in ("gradient at the start: ce", "gradient at the end: ce", "teacher's mean confidence", "weighted loss"):
        assert line in out
    assert "no independent student of the same settings to compare with" in out
    written = json.loads((run / "evals" / "diagnosis.json").read_text())
    assert written["findings"][0]["name"] == "untrained teacher"
    assert written["teacher"]["test"] <= 60
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["diagnose"], "error: diagnose needs a run directory or a digest (kdrun list runs)."),
        (["diagnose", "abcd"], "error: RUN abcd: no run directory, glob or digest matches"),
        (["diagnose", "abcd", "speed=1"], "error: speed: diagnose takes trust"),
    ],
)
def test_mistakes_are_one_line(words, line, kdrun):
    code, _, err = kdrun(*words)
    assert (code, err.startswith(line), err.count("\n")) == (2, True, 1)


def test_a_teacher_that_was_trained_too_briefly_is_to_train_longer():
    (finding,) = findings_of(healthy(teacher=taught_by(test=10.1, epochs=2)))[:1]
    assert finding.settings == (("teacher.recipe.epochs", "20"),)


@pytest.mark.parametrize(("now", "then"), [(100.0, "4"), (4.0, "1")])
def test_the_temperature_to_try_is_a_lower_one(now, then):
    (finding,) = findings_of(healthy(teacher=taught_by(temperature=now, softened=0.9994)))
    assert finding.settings == (("method.temperature", then),)


def test_a_failed_run_is_diagnosed_from_its_start(kdrun, outputs):
    """A weight that drowns the labels makes the loss non-finite: the run has no last epoch to look at."""
    words = [*TINY, "epochs=2", "method=kd", "method.kd_weight=1e6", "optimizer.lr=5"]
    code, _, err = kdrun("train", *words)
    (run,) = (outputs / "runs").glob("*/*/kd/*")
    code, out, err = kdrun("diagnose", str(run))
    assert (code, err) == (0, "")
    names = [line.partition("  ")[0] for line in out.splitlines() if line[:2] in ("1.", "2.", "3.")]
    assert any("weight that drowns the labels" in name for name in names)
    assert "try: kdrun train" in out
    tried = [line for line in out.splitlines() if "try:" in line]
    assert any("method.kd_weight=1 " in f"{line} " for line in tried)
