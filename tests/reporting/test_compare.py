"""`kdrun compare`: settings that differ, figures, unfinished runs, files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import yaml

from kdrun.reporting.compare import Row, best_of, read_side
from tests.ready import train


def runs(outputs: Path) -> list[Path]:
    return sorted(path.parent for path in (outputs / "runs").glob("*/*/*/*/config.yaml"))


def rows_of(path: Path) -> dict[str, list[str]]:
    return {row[1]: row[2:] for row in csv.reader(path.open())}


def test_what_differs_and_what_was_measured(kdrun, outputs, tmp_path):
    train(kdrun, "method=kd")
    train(kdrun, "method=dkd", "seed=1")
    train(kdrun, "method=none")
    assert kdrun("eval", str(runs(outputs)[1]))[0] == 0
    found = [str(run) for run in sorted(runs(outputs), key=lambda run: run.parent.name)]
    code, out, err = kdrun("compare", *found, f"save={tmp_path / 'c.csv'}")
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "c.csv")
    assert rows["state"] == ["done"] * 3
    assert rows["method"] == ["dkd", "kd", "none"]
    assert rows["seed"] == ["1", "0", "0"]
    assert rows["method.temperature"][2] == ""
    assert rows["teacher"] == ["resnet8", "resnet8", ""]  # a method without a teacher has none, whatever was typed
    assert not [
        key for key in rows if key.startswith(("teacher.", "teacher_v", "teacher_c"))
    ]  # the two that have one have the same
    assert "epochs" not in rows  # the same in all of them
    assert "student" not in rows
    for place, run in enumerate(found):
        assert float(rows["top1_last"][place]) == json.loads((Path(run) / "result.json").read_text())["top1_last"]
    measured = runs(outputs)[1]
    nll = json.loads((measured / "evals" / "test.json").read_text())["nll"]
    assert rows["test/nll"][found.index(str(measured))] == str(nll)
    assert "method.temperature" in out
    code, _, err = kdrun("compare", *found, f"save={tmp_path / 'c.md'}")
    assert (code, err) == (0, "")
    text = (tmp_path / "c.md").read_text()
    assert "| method | dkd | kd | none |" in text
    assert text.count("- **") == 3


def test_unfinished_failed_and_teachers(kdrun, outputs):
    train(kdrun, "method=kd")
    train(kdrun, "method=kd", "seed=1")
    first, second = runs(outputs)
    last = read_side(second).figures["top1_last"]
    (second / "result.json").unlink()
    side = read_side(second)
    assert side.state == "unfinished, epoch 1 of 1"
    assert side.figures["top1_so_far"] == last
    (second / "failed.txt").write_text("2026-01-01T00:00:00 loss/kd is not finite\n")
    code, out, _ = kdrun("compare", str(first), str(second))
    assert code == 0
    assert "failed: loss/kd is not finite" in out
    (teacher,) = (outputs / "teachers").glob("*/*/*")
    assert {key.partition(".")[0] for key in read_side(teacher).settings} == {"teacher", "dataset"}
    assert kdrun("compare", str(first), str(teacher))[0] == 0


def test_the_same_settings(kdrun, outputs, tmp_path):
    """A copy differs in nothing; where it was written does not count."""
    train(kdrun, "method=none")
    (run,) = runs(outputs)
    copy = tmp_path / "copy"
    copy.mkdir()
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["output_root"] = "elsewhere"
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    _, out, _ = kdrun("compare", str(run), str(copy))
    assert "the settings are the same" in out
    assert "unfinished, epoch 0 of 1" in out


def test_which_figure_is_best():
    assert best_of(Row("top1_last", [97.0, 98.0, 98.0])) == (1, 2)
    assert best_of(Row("test/nll", [0.3, 0.2])) == (1,)
    assert best_of(Row("top1_best_epoch", [3, 5])) == ()
    assert best_of(Row("params", [5, 5])) == ()
    assert best_of(Row("top1_last", [97.0, "–"])) == ()


def test_mistakes_and_no_torch(kdrun, outputs):
    train(kdrun, "method=none")
    (run,) = map(str, runs(outputs))
    for words, part in (
        ([run], "compare needs at least two runs, got 1"),
        ([run, run], "needs at least two runs, got 1"),
        ([run, "nowhere"], "RUN nowhere"),
        ([run, "save=x.txt"], "save=x.txt: give a file that ends in .csv or .md"),
        ([run, "seed=1"], "compare takes save, output_root"),
    ):
        code, _, err = kdrun("compare", *words)
        assert code == 2, words
        assert part in err
        assert len(err.strip().splitlines()) == 1
    copy = str(outputs / "copy")
    Path(copy).mkdir()
    (Path(copy) / "config.yaml").write_text("{")
    code, _, err = kdrun("compare", run, copy)
    assert code == 2
    assert "config.yaml cannot be read" in err
    script = "import sys, kdrun.commands.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
