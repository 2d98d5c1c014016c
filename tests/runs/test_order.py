"""Runs in order: their settings as columns, filters, tags, notes, and what is removed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import kdrun
from kdrun.runs.directory import rebuild_results
from kdrun.runs.ledger import Cell, Ledger, TableShape, read_ledger, write_ledger
from kdrun.runs.tidy import removable
from kdrun.sweeps.adding import added
from tests.reporting.test_table import make_run


def finished(root: Path, method: str, seed: int, top1: float | None, **settings: float | str) -> Path:
    """A run whose provenance holds its settings, nested, as a real one has them."""
    words = {key.replace("__", "."): value for key, value in settings.items()}
    run = root / make_run(
        root,
        method,
        seed,
        top1,
        teacher="resnet20",
        student="resnet8",
        words=[f"{key}={value}" for key, value in words.items()],
    )
    config: dict = {"seed": seed, "method": {"_name_": method}, "optimizer": {"lr": 0.1}, "output_root": str(root)}
    for key, value in words.items():
        group, _, name = key.partition(".")
        config.setdefault(group, {})[name] = value
    (run / "provenance.json").write_text(json.dumps({"config": config}))
    (run / "student.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return run


@pytest.fixture
def three(outputs) -> list[Path]:
    return [
        finished(outputs, "kd", 0, 90.0, optimizer__lr=0.1, method__temperature=4.0),
        finished(outputs, "kd", 0, 92.0, optimizer__lr=0.05, method__temperature=2.0),
        finished(outputs, "none", 0, 88.0, optimizer__lr=0.1),
    ]


def test_results_have_a_column_for_each_setting_that_differs(three, outputs):
    frame = kdrun.results(outputs).set_index("run")
    assert frame.groupby("optimizer.lr")["top1_last"].mean().to_dict() == {0.05: 92.0, 0.1: 89.0}
    assert frame.loc[str(three[1]), "method.temperature"] == 2
    assert frame["method.temperature"].isna().sum() == 1
    assert "output_root" not in frame
    with rebuild_results(outputs).open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["optimizer.lr"] for row in rows) == ["0.05", "0.1", "0.1"]
    assert sorted(row["method.temperature"] for row in rows) == ["", "2.0", "4.0"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["method=kd"], [0, 1]),
        (["method=kd,none"], [0, 1, 2]),
        (["optimizer.lr=0.10"], [0, 2]),
        (["method.temperature=2"], [1]),
        (["student=resnet8", "method=none"], [2]),
        (["teacher=null"], [2]),
        (["state=done", "sort=top1"], [1, 0, 2]),
        (["state=failed"], []),
    ],
)
def test_runs_are_filtered_and_sorted(words, found, three, outputs, kdrun):
    code, out, _ = kdrun("list", "runs", *words)
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("runs/")]
    assert code == 0
    wanted = [str(three[place].relative_to(outputs)) for place in found]
    assert (shown == wanted) if "sort=top1" in words else (sorted(shown) == sorted(wanted))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["list", "runs", "optimizr.lr=1"], "optimizr.lr: no such setting. Did you mean optimizer.lr?"),
        (["list", "methods", "state=done"], "state: only lists of runs can be filtered and sorted: kdrun list runs"),
        (["runs"], "kdrun runs needs one of tag, note, remove, then RUN …"),
        (["runs", "tga", "x"], "runs tga: no such action. Did you mean tag? kdrun runs needs one of"),
        (["runs", "tag"], "runs tag needs run directories, a quoted glob or digests (kdrun list runs)."),
        (["runs", "note", "GLOB"], "text is not set: give text='what you want to remember'"),
        (["runs", "tag", "GLOB"], "tag is not set: give tag=NAME, or tag=-NAME to remove it."),
        (["runs", "tag", "GLOB", "tag=a/b"], "tag=a/b: a tag is one word without commas, slashes or equals signs."),
        (["clean", "what=everything"], "what=everything: choose unstarted or checkpoints or caches."),
        (["clean", "abcd"], "clean abcd: clean takes only settings"),
    ],
)
def test_mistakes_are_one_line(words, line, three, outputs, kdrun):
    code, _, err = kdrun(*(f"{outputs}/runs/*/*/*/*" if word == "GLOB" else word for word in words))
    assert code == 2
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_tags_and_notes_are_found_again_and_change_no_run(three, outputs, kdrun):
    before = {path: path.read_bytes() for path in three[0].iterdir()}
    assert kdrun("runs", "tag", str(three[0]), str(three[2]), "tag=paper,best")[0] == 0
    assert kdrun("runs", "note", str(three[0]), "text=the one of figure 2")[0] == 0
    code, out, _ = kdrun("list", "runs", "tag=paper")
    assert (code, out.count("\nruns/")) == (0, 2)
    assert "paper, best; the one of figure 2" in out
    assert kdrun("runs", "tag", str(three[2]), "tag=-paper")[1].rstrip().endswith("best")
    assert kdrun("list", "runs", "tag=paper")[1].count("\nruns/") == 1
    kdrun("runs", "tag", str(three[0]), "tag=-paper,-best")
    kdrun("runs", "note", str(three[0]), "text=none")
    assert {path: path.read_bytes() for path in three[0].iterdir()} == before


def test_runs_are_removed_when_the_user_agrees(three, outputs, kdrun):
    rebuild_results(outputs)
    code, out, _ = kdrun("runs", "remove", str(three[2]))
    assert (code, "nothing removed; yes=true removes without asking" in out) == (0, True)
    assert three[2].is_dir()
    code, out, _ = kdrun("runs", "remove", str(three[2]), "yes=true")
    assert (code, "removed 1 run" in out) == (0, True)
    assert not three[2].exists()
    assert not three[2].parents[1].exists()  # nothing else was in its pair's folder
    assert len((outputs / "results.csv").read_text().splitlines()) == 3


def test_clean_removes_what_nobody_needs_and_nothing_else(three, outputs, kdrun, monkeypatch):
    typo = outputs / "runs/digits/resnet20-resnet1800/kd/s0-12345678"
    typo.mkdir(parents=True)
    (typo / ".lock").touch()
    (three[0] / "last.pt").write_bytes(b"x" * 2**20)
    begun = outputs / make_run(outputs, "dkd", 0, None, teacher="resnet20", student="resnet8")  # it has a last.pt
    (outputs / "caches/data").mkdir(parents=True)
    (outputs / "caches/data/digits-32.npz").write_bytes(b"x" * 2**20)
    assert "never started (kdrun clean)" in kdrun("list", "runs")[1]
    found = {item.kind: item for item in removable(outputs, ["unstarted", "checkpoints", "caches"])}
    assert {kind: item.path for kind, item in found.items()} == {
        "unstarted": typo,
        "checkpoints": three[0] / "last.pt",
        "caches": outputs / "caches/data",
    }
    assert found["caches"].size == 2**20
    assert "nothing removed; yes=true removes without asking" in kdrun("clean")[1]
    assert typo.is_dir()
    answers = iter(["y", "n"])
    monkeypatch.setattr("kdrun.console.confirm", lambda _: next(answers) == "y")
    code, out, _ = kdrun("clean", "what=unstarted,caches")
    assert (code, "removed unstarted: 1" in out) == (0, True)
    assert not typo.parents[1].exists()
    assert (outputs / "caches/data").is_dir()
    assert kdrun("clean", "yes=true")[0] == 0
    assert not (three[0] / "last.pt").exists()
    assert not (outputs / "caches/data").exists()
    assert (begun / "last.pt").is_file()
    assert all((run / "result.json").is_file() for run in three)
    assert "nothing to remove" in kdrun("clean")[1]


def test_a_running_run_is_left_alone(three, outputs, kdrun):
    from kdrun.runs.directory import RunDirectory

    (three[0] / "last.pt").write_bytes(b"x")
    with RunDirectory(three[0]).lock():
        assert not removable(outputs, ["unstarted", "checkpoints"])
        code, _, err = kdrun("runs", "remove", str(three[0]), "yes=true")
        assert (code, "is being trained by another process" in err) == (1, True)


def cell(row: str, seed: int, run: str, *words: str) -> Cell:
    return Cell(row, "pair", seed, [f"method={row}", *words, f"seed={seed}"], run)


def ledger(command: str, *cells: Cell) -> Ledger:
    rows = list(dict.fromkeys(one.row for one in cells))
    return Ledger("mine", "mine", command, TableShape(rows, ["pair"]), list(cells))


def test_a_second_multirun_of_a_name_adds_to_its_table(outputs):
    write_ledger(outputs, ledger("A", cell("none", 0, "a"), cell("kd", 0, "b"), Cell("bad", "x", 0, [], None)))
    found, line = added(ledger("B", cell("none", 1, "c"), cell("kd", 1, "d")), outputs)
    assert [(one.row, one.seed) for one in found.cells] == [("none", 0), ("kd", 0), ("none", 1), ("kd", 1)]
    assert found.command == "A && B"
    assert line == "mine has 2 cells of earlier commands, kept in its table"
    write_ledger(outputs, found)
    again, _ = added(ledger("A", cell("none", 0, "a"), cell("kd", 0, "b")), outputs)
    assert len(again.cells) == 4
    assert again.command == "A && B"
    assert read_ledger(outputs, "mine").shape.rows == ["none", "kd"]


def test_other_settings_in_the_same_place_get_a_row_of_their_own(outputs):
    write_ledger(outputs, ledger("A", cell("kd", 0, "a", "epochs=10")))
    found, _ = added(ledger("B", cell("kd", 0, "b", "epochs=20")), outputs)
    assert [(one.row, one.run) for one in found.cells] == [("kd", "a"), ("kd epochs=20", "b")]
    assert found.shape.rows == ["kd", "kd epochs=20"]


def test_the_same_settings_on_changed_images_take_the_place(outputs):
    write_ledger(outputs, ledger("A", cell("kd", 0, "a"), cell("kd", 1, "z")))
    found, _ = added(ledger("A", cell("kd", 0, "b")), outputs)
    assert {(one.seed, one.run) for one in found.cells} == {(0, "b"), (1, "z")}
