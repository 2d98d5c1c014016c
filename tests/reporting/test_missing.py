"""kdrun report evaluate=true: what it measures, and what it prints if it cannot."""

from __future__ import annotations

import shutil

from kdrun.files import read_json
from tests.evaluation.test_measure import runs
from tests.ready import train


def test_a_report_measures_what_is_missing_once(kdrun, outputs, monkeypatch):
    monkeypatch.setattr("kdrun.reporting.missing.find_spec", lambda name: None)  # its export takes seconds
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    code, out, err = kdrun("report", str(run), "evaluate=true")
    assert (code, err) == (0, "") and "left out" not in out
    page = (outputs / "tables" / "report.html").read_text()
    assert "It predicts the same class as its teacher on" in page and "Its Grad-CAM maps overlap" in page
    assert page.count('src="data:image/png;base64,') == 4
    assert "Not measured yet" in page and "add evaluate=true" not in page
    before = read_json(run / "evals" / "test.json")["measured_at"], (run / "evals" / "gradcam.png").stat().st_mtime_ns
    assert kdrun("report", str(run), "evaluate=true")[0] == 0
    after = read_json(run / "evals" / "test.json")["measured_at"], (run / "evals" / "gradcam.png").stat().st_mtime_ns
    assert before == after


def test_what_cannot_be_measured_is_said_and_the_report_is_written(kdrun, outputs):
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    (run / "student.safetensors").unlink()
    shutil.rmtree(outputs / "teachers")
    code, out, _ = kdrun("report", str(run), "evaluate=true")
    assert (
        code == 0
        and "left out: the evaluation of runs/" in out
        and "student.safetensors is missing" in " ".join(out.split())
    )
    assert "Results" in (outputs / "tables" / "report.html").read_text()


def test_where_to_measure_needs_something_to_measure(kdrun, outputs):
    train(kdrun, "method=kd")
    (run,) = runs(outputs)
    code, _, err = kdrun("report", str(run), "device=cpu")
    assert code == 2 and "device is only used for measuring: add evaluate=true, or leave it out." in err
