"""Deep mutual learning and sums of methods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kdrun.cli import main
from kdrun.config.compose import load
from kdrun.errors import ConfigError
from kdrun.methods.dml import DML
from kdrun.methods.factory import make_method
from kdrun.structures import Outputs, Progress
from kdrun.training.method_trial import batch_of as images
from tests.conftest import TINY
from tests.integration.test_runs import only_run
from tests.methods.cases import Definitions, batch_of, logits, make_lane


def result_of(outputs: Path) -> dict:
    return json.loads((only_run(outputs) / "result.json").read_text())


def side(inputs: dict, params: dict, which: str) -> torch.Tensor:
    method = DML(
        temperature=params["T"],
        ce_weight=1.0,
        student_weight=params.get("beta", 1.0),
        teacher_weight=params.get("alpha", 1.0),
    )
    terms = method.losses(batch_of(inputs["y"]), Outputs(inputs["s"]), Outputs(inputs["t"]), Progress(0, 240, 0, 1))
    return terms["ce"] + terms["mutual"] if which == "student" else terms["peer_ce"] + terms["peer_mutual"]


DEFINITIONS: Definitions = {
    "dml/base/student": lambda x, p: side(x, p, "student"),
    "dml/base/teacher": lambda x, p: side(x, p, "teacher"),
}


def test_neither_side_teaches_through_the_other():
    s, t, y = logits()
    s.requires_grad_()
    t.requires_grad_()
    method = DML(temperature=1.0, ce_weight=0.0, student_weight=1.0, teacher_weight=0.0)
    terms = method.losses(batch_of(y), Outputs(s), Outputs(t), Progress(0, 1, 0, 1))
    torch.stack(list(terms.values())).sum().backward()
    assert s.grad.abs().sum() > 0
    assert t.grad.abs().sum() == 0


def test_dml_run_reports_the_peer(tmp_path):
    assert main(["train", *TINY, "method=dml", "epochs=2", f"output_root={tmp_path}"]) == 0
    result = result_of(tmp_path)
    assert result["teacher_top1"] is not None
    assert not (tmp_path / "teachers").exists()
    assert result["extra_params"] == result["params"]  # the peer


def test_sum_is_the_sum_of_its_parts():
    s, t, y = logits()
    node = load(["method=combine", "method.parts=[{method: kd, weight: 0.5, temperature: 3}, dkd]"]).method
    combined = make_method(node)
    kd = make_method(load(["method=kd", "method.temperature=3"]).method)
    dkd = make_method(load(["method=dkd"]).method)
    progress = Progress(4, 240, 0, 1)

    def terms(method) -> dict:
        return method(batch_of(y), lambda image: Outputs(s), lambda image: Outputs(t), progress)

    found, first, second = terms(combined), terms(kd), terms(dkd)
    assert set(found) == {"ce", "kd", "dkd_tckd", "dkd_nckd"}
    assert found["ce"].item() == pytest.approx(F.cross_entropy(s, y).item())
    assert found["kd"].item() == pytest.approx(0.5 * first["kd"].item())
    assert found["dkd_nckd"].item() == pytest.approx(second["nckd"].item())


def test_student_runs_once_per_image():
    lane, teacher = make_lane("combine", "CNN to CNN")
    calls = []
    lane.student.tap.register_forward_hook(lambda *_: calls.append(1))
    lane.step(images(6), teacher, 0, 0, 10)
    assert len(calls) == 1


def test_same_method_twice_keeps_both():
    node = load(["method=combine", "method.parts=[{method: kd, temperature: 2}, {method: kd, temperature: 6}]"]).method
    s, t, y = logits()
    found = make_method(node)(batch_of(y), lambda _: Outputs(s), lambda _: Outputs(t), Progress(0, 1, 0, 1))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("[kdd]", "Did you mean kd"),
        ("[{method: kd, temprature: 2}]", "method.parts[0].temprature"),
        ("[{method: kd, temperature: hot}]", "method.parts[0].temperature=hot"),
        ("[{method: kd, weight: -1}]", "method.parts[0].weight"),
        ("[]", "method.parts is empty"),
        ("[3]", "method.parts[0]=3"),
    ],
)
def test_mistakes_in_parts(parts, expected):
    with pytest.raises(ConfigError) as caught:
        load(["method=combine", f"method.parts={parts}"])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_that_change_more_than_the_loss_are_refused():
    with pytest.raises(ConfigError, match="dml cannot be a part"):
        make_method(load(["method=combine", "method.parts=[dml]"]).method)


def test_run_is_called_by_its_parts(tmp_path):
    assert main(["train", *TINY, "method=combine", "method.parts=[kd,dkd]", "epochs=1", f"output_root={tmp_path}"]) == 0
    run = only_run(tmp_path)
    assert run.parent.name == "kd-dkd" or "kd" in run.parent.name
    assert result_of(tmp_path)["method"] == "kd+dkd"
