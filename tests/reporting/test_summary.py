"""The sentences of a report, and the measurements of a run that it gathers. No network is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdrun.files import write_json
from kdrun.reporting.html.album import Album, compact
from kdrun.reporting.html.page import report_page
from kdrun.reporting.html.run_files import read_runs
from kdrun.reporting.known import known_places, lacking
from kdrun.reporting.measured import Sheet, overconfidence, read_measured, related
from kdrun.reporting.measured_words import exported, source_words, times_words
from kdrun.reporting.runs_table import ledger_of_runs
from kdrun.reporting.summary import summary
from kdrun.reporting.table import table_of
from kdrun.runs.ledger import Ledger
from tests.reporting.test_html import HOSTILE, Reader, make_run
from tests.reporting.test_html import ledger as four_rows  # noqa: F401 (a fixture)

EVALUATION = {
    "schema": 1,
    "top1": 73.5,
    "nll": 1.25,
    "ece": 4.5,
    "f1_macro": 73.1,
    "kl_teacher": 0.31,
    "agreement": 80.25,
    "teacher_top1": 76.46,
    "params": 569780,
    "flops": 83_000_000,
    "split": "test",
    "testset": None,
    "network": "wrn_40_1",
    "calibration": {"count": [0, 30, 10], "confidence": [0.0, 60.0, 90.0], "accuracy": [0.0, 50.0, 100.0]},
    "cka": {
        "student": ["f1", "pooled"],
        "teacher": ["pooled"],
        "values": [[0.5], [0.9]],
        "pairs": [["pooled", "pooled"]],
    },
    "per_class": [
        {"class": "cat", "support": 20, "precision": 70.0, "recall": 80.0, "f1": 74.0},
        {"class": HOSTILE, "support": 20, "precision": 60.0, "recall": 50.0, "f1": 54.55},
    ],
}
FORMS = [
    {"form": "PyTorch, fp32", "file": None, "top1": 73.5, "size": 0, "milliseconds_of_1": 6.0, "milliseconds_of_64": 90.0},
    {"form": "ONNX, fp32", "file": "student.onnx", "top1": 73.5, "size": 4_000_000, "milliseconds_of_1": 0.9,
     "milliseconds_of_64": 50.0, "max_logit_difference": 1e-6},
    {"form": "ONNX, INT8 static", "file": "student_static.onnx", "top1": 73.4, "size": 1_000_000,
     "milliseconds_of_1": 0.5, "milliseconds_of_64": 49.0, "max_logit_difference": 0.4},
]  # fmt: skip


def measure(folder: Path, **other: object) -> None:
    """Everything that eval, gradcam, export and diagnose leave in a run, as far as a report reads it."""
    evals, exports = folder / "evals", folder / "exports"
    for place in (evals, exports):
        place.mkdir()
    write_json(evals / "test.json", EVALUATION | other)
    (evals / "test_confusion.csv").write_text("class,cat,dog\ncat,16,4\ndog,9,11\n")
    change = {"clean_top1": 73.5, "top1": 36.75, "ratio": 0.5}
    write_json(evals / "noise.json", EVALUATION | {"testset": {"set": "noise"}, "change": change})
    write_json(evals / "gradcam.json", {"iou": 0.49, "pearson": 0.7, "other_images": {"iou": 0.32}})
    write_json(
        evals / "diagnosis.json", {"gradients": [], "findings": [], "teacher": {"params": 2_255_156, "flops": 6.6e8}}
    )
    write_json(exports / "student.json", {"forms": FORMS})


def words_of(ledger: Ledger, root: Path) -> str:
    table = table_of(ledger, root)
    known = known_places(table, read_runs(ledger, table, root), root)
    parts = summary(table, known, root / "grid.csv")
    return "\n".join(statement.words for part in parts for statement in part.statements)


@pytest.fixture
def run(outputs) -> Path:
    folder = outputs / make_run(outputs, "kd", 0, 73.5)
    measure(folder)
    return folder


def test_a_single_run_is_told_in_sentences_with_figures(run, outputs):
    assert words_of(ledger_of_runs([run], outputs), outputs).splitlines() == [
        "wrn_40_1, trained by kd with the teacher wrn_40_2, is correct on 73.50 % of the test images of cifar100 (of the last epoch; "
        "one seed).",
        "It keeps 96.1 % of the accuracy of its teacher wrn_40_2 (76.46 %) with 25 % of its parameters (569,780 of "
        "2,255,156) and 13 % of its FLOPs per image (83.00M of 660.00M); a multiply-add counts as two.",
        "It predicts the same class as its teacher on 80.25 % of the test images, and KL(teacher ‖ student) is 0.31 "
        "nats; the linear CKA of their features is 0.90 (1: identical).",
        "Its confidence deviates from its accuracy by 4.50 points (ECE, 15 bins): on average it is 5.00 points "
        "too high.",
        f"Its worst class is {HOSTILE}, with an F1 of 54.55 %; most often it mistakes dog for cat (9 of 20 images).",
        "Its Grad-CAM maps overlap with its teacher's with an IoU of 0.49 (chance level, with the teacher's maps of other "
        "images: 0.32).",
        "Of its accuracy on clean images it keeps 50.0 % on noise.",
        "None of the usual obstacles to distillation was found.",
        "Exported as ONNX, fp32 it is correct on 73.50 % of the test images, has 4.00 MB and takes 0.90 ms for one image "
        "(PyTorch 6.00 ms) and 50.0 ms for 64 on the CPU that exported it.",
        "INT8 (static) costs 0.10 points of accuracy and is 4.0 times smaller, 1.8 times faster for one image and no "
        "faster for 64 images than the float32 file.",
        "Training took 1 min 00 s for 30 epochs (cpu, bf16).",
    ]


def test_every_sentence_names_where_its_figures_are(run, outputs):
    ledger = ledger_of_runs([run], outputs)
    table = table_of(ledger, outputs)
    (part,) = summary(table, known_places(table, read_runs(ledger, table, outputs), outputs), outputs / "grid.csv")
    assert all(statement.sources for statement in part.statements)
    names = {source for statement in part.statements for source in statement.sources}
    assert all((outputs / name).is_file() for name in names if "*" not in name)


def test_a_table_is_told_by_its_best_row_beside_the_others(four_rows, outputs):  # noqa: F811
    said = words_of(four_rows, outputs)
    assert (
        "The most accurate of 4 rows is SRD: 77.77 ± 0.06 % of the test images (of the last epoch; 3 seeds). " in said
    )
    assert "It is distinguishable from the next" in said
    assert "SRD is 6.43 points above Student, the same network without a teacher (71.33 %); 95 % interval [" in said
    assert f"Compared with KD: SRD and {HOSTILE} above; Student below (Holm-corrected)." in said
    assert "SRD reaches 101.7 % of the accuracy of its teacher wrn_40_2 (76.46 %) with 569,780 parameters and" in said
    assert "Not in these figures: 1 run not finished and 1 run failed." in said


def test_a_student_that_is_best_alone_is_said_to_be(outputs):
    runs = [outputs / make_run(outputs, method, 0, top1) for method, top1 in (("none", 75.0), ("kd", 73.5))]
    said = words_of(ledger_of_runs(runs, outputs), outputs)
    assert "none, without one, has 75.00 %: kdrun diagnose RUN looks for the cause." in said
    assert "kd is 1.50 points below none, the same network without a teacher (75.00 %)." in said


def test_a_page_holds_what_was_measured_and_what_was_not(run, outputs):
    page = report_page(ledger_of_runs([run], outputs), outputs)
    Reader(page)
    assert HOSTILE not in page
    assert page.index('id="summary"') < page.index("<h2>Results</h2>") < page.index("<h2>What was measured</h2>")
    assert "<title>kd, cifar100 · wrn_40_2 → wrn_40_1, seed 0</title>" in page and "1 runs" not in page
    for heading in ("Evaluation", "Derived test sets", "Files for deployment", "2 classes"):
        assert f">{heading}<" in page
    bare = report_page(ledger_of_runs([outputs / make_run(outputs, "dkd", 1, 70.0)], outputs), outputs)
    assert "What was measured" not in bare
    assert "1 of 1 run on the test set" in bare and "add evaluate=true" in bare and "kdrun export RUN" in bare


def test_damaged_measurements_are_named_and_left_out(run, outputs):
    (run / "evals" / "test.json").write_text('{"top1": 1')
    (run / "evals" / "gradcam.json").write_text(json.dumps({"iou": "high", "other_images": 3}))
    (run / "evals" / "noise.json").write_text(json.dumps({"top1": 1, "testset": {}, "change": [1]}))
    (run / "exports" / "student.json").write_text(
        json.dumps({"forms": [1, {"form": None, "file": "x", "size": "big"}]})
    )
    (run / "evals" / "diagnosis.json").write_text(json.dumps({"gradients": 1, "findings": "no", "teacher": 7}))
    (run / "evals" / "test_confusion.csv").write_text("class,a\nb,one\n")
    page = report_page(ledger_of_runs([run], outputs), outputs)
    Reader(page)
    assert "evals/test.json: damaged" in page and "It keeps 96.1 % of the accuracy" in page


def test_links_are_not_followed(run, outputs, tmp_path):
    (tmp_path / "secret.json").write_text(json.dumps(EVALUATION))
    (run / "evals" / "test.json").unlink()
    (run / "evals" / "test.json").symlink_to(tmp_path / "secret.json")
    assert read_measured("run", run).test is None
    (run / "evals" / "test_cka.png").symlink_to(tmp_path / "secret.json")
    assert compact(run / "evals" / "test_cka.png") is None


def test_what_a_sheet_lacks_is_none():
    assert Sheet("", {"a": {"b": 1}}).figure("a", "b") == 1
    assert Sheet("", {"a": float("nan"), "b": "1"}).figure("a") is None
    assert related(Sheet("", {"cka": {"pairs": []}})) is None and overconfidence(Sheet("", {})) is None
    assert overconfidence(Sheet("", EVALUATION)) == pytest.approx(5.0)


def test_pictures_share_a_budget(tmp_path):
    from PIL import Image

    Image.new("RGB", (2000, 100), "red").save(tmp_path / "a.png")
    album = Album(left=2000)
    first = album.picture(tmp_path / "a.png", "<a>")
    assert 'alt="&lt;a&gt;"' in first and album.left < 2000
    album.left = 10
    assert (album.picture(tmp_path / "a.png", "a"), album.left_out) == ("", 1)
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    assert album.picture(tmp_path / "b.png", "b") == ""


def test_speed_is_told_as_it_is():
    assert times_words(1.0, 0.5, "faster", "slower", "") == "2.0 times faster"
    assert times_words(0.5, 1.0, "faster", "slower", " for one") == "2.0 times slower for one"
    assert times_words(1.0, 1.01, "faster", "slower", "") == "no faster"
    assert times_words(None, 1.0, "faster", "slower", "") == ""


def test_sources_of_several_runs_are_a_pattern():
    assert source_words(["a/s0/x.json", "a/s1/x.json"]) == "a/*/x.json (2 files)"
    assert source_words(["a/x.json"]) == "a/x.json" and source_words(["/a/x", "b"]) == "/a/x and 1 more"


def test_an_export_that_failed_is_told_with_its_reason():
    forms = [*FORMS[:2], FORMS[2] | {"problem": "top-1 falls by 5.19 points, max_drop=1"}]
    *_, last = exported(Sheet("student.json", {"forms": forms}), "KD")
    assert last.words.endswith("it was not kept (top-1 falls by 5.19 points, max_drop=1).")


def test_nothing_is_lacking_of_a_run_that_was_measured_throughout(run, outputs):
    ledger = ledger_of_runs([run], outputs)
    table = table_of(ledger, outputs)
    assert lacking(known_places(table, read_runs(ledger, table, outputs), outputs)) == []
