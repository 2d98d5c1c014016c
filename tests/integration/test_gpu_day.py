"""scripts/gpu_day: what it does in which order, that it stops in time, and that a later call takes it up."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_day"


@pytest.fixture(scope="module")
def day():
    loader = SourceFileLoader("gpu_day", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_day", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_day"] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


@pytest.fixture
def own_signals():
    """Undo what the script sets."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def scripted(day, monkeypatch, programs: dict[str, str]) -> None:
    """Let the steps be little programs."""
    monkeypatch.setattr(day, "python", lambda: [sys.executable])
    made = {name: (lambda text=text: (["-c", text], {})) for name, text in programs.items()}
    monkeypatch.setattr(day, "steps", lambda plan: made)


def test_its_columns_are_the_tables_and_its_teachers_all_of_theirs(day):
    columns = yaml.safe_load((ROOT / "conf" / "sweep" / "cifar100_table.yaml").read_text())["columns"]
    assert set(day.COLUMNS) == set(columns)
    assert {name.split(" → ")[0] for name in day.TEACHERS} == {name.split(" → ")[0] for name in columns}
    assert len(day.TEACHERS) == len({name.split(" → ")[0] for name in columns})
    names = list(day.steps(day.parse(["epochs=2"])))
    assert names[:4] == ["doctor", "tests", "bench", "teacher, WRN-40-2 → WRN-40-1"]
    assert len(names) == 3 + len(day.TEACHERS) + 3 * len(columns) + 1
    assert names[-1] == "all tests"


def test_its_first_tests_exist(day):
    words = ["-q", "-n0", "-m", "gpu", "--collect-only", *day.FIRST_TESTS]
    found = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    rows = importlib.import_module("kdrun.commands.bench").ROWS
    assert set(day.BENCH_ROWS.split(",")) <= set(rows)


def test_packs_what_a_finished_run_needs(day, tmp_path):
    """Weights and records, but not the state to go on from."""
    run, begun = (tmp_path / "root" / "runs" / name for name in ("done", "begun"))
    for folder in (run, begun):
        folder.mkdir(parents=True)
        for name in ("last.pt", "student.safetensors", "student_best.safetensors"):
            (folder / name).write_text("x")
    (run / "result.json").write_text("{}")
    (tmp_path / "root" / "gpu_bench.csv").write_text("what")
    day.pack(day.parse([f"output_root={tmp_path / 'root'}", f"output={tmp_path / 'out'}"]))
    assert (tmp_path / "out" / "gpu_bench.csv").read_text() == "what"
    day.unpack(day.parse([f"output_root={tmp_path / 'new'}", f"output={tmp_path / 'out'}"]))
    files = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    weights = {f"runs/{run}/student{best}.safetensors" for run in ("done", "begun") for best in ("", "_best")}
    assert files == weights | {"runs/done/result.json", "gpu_bench.csv", "runs/begun/last.pt"}


def test_words_go_to_training(day, tmp_path):
    plan = day.parse(["minutes=3", f"output_root={tmp_path}", "dataset.root=/x", "processes=2", "epochs=1"])
    words, _ = day.steps(plan)["seed 1, WRN-40-2 → WRN-40-1"]()
    assert {"dataset.root=/x", "epochs=1", "seed=1", "launcher.processes=2", f"output_root={tmp_path}"} <= set(words)
    assert "minutes=3" not in words


@pytest.mark.parametrize("words", [["minutes=x"], ["epochs"]])
def test_mistakes(day, words, capsys):
    with pytest.raises(SystemExit) as caught:
        day.parse(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_goes_on_where_it_stopped_and_leaves_out_what_failed(day, own_signals, tmp_path, monkeypatch, capfd):
    """A step that takes too long is asked to end, one that fails is named, and the next call does the rest."""
    slow = "import time; print('slow', flush=True); time.sleep(60)"
    programs = {"a": "print('A')", "b": "raise SystemExit(3)", "c": slow, "d": "print('D')"}
    scripted(day, monkeypatch, programs)
    monkeypatch.setattr(day, "ENOUGH", 0.5)
    words = [f"output_root={tmp_path / 'one'}", f"output={tmp_path / 'packed'}"]
    begun = time.monotonic()
    monkeypatch.setattr(sys, "argv", ["gpu_day", "minutes=0.1", *words])
    assert day.main() == 1
    assert time.monotonic() - begun < 30
    out = capfd.readouterr().out
    assert "A" in out and "slow" in out and "D" not in out
    assert "1 of 4 done: a" in out and "failed with 3: b" in out and "2 remain: c is next" in out
    assert list((tmp_path / "packed").glob("gpu_day.tar.*"))
    # On another machine, with what was brought home.
    programs["c"] = "print('fast')"
    scripted(day, monkeypatch, programs)
    words[0] = f"output_root={tmp_path / 'two'}"
    monkeypatch.setattr(sys, "argv", ["gpu_day", "minutes=1", *words])
    assert day.main() == 1
    out = capfd.readouterr().out
    assert "unpacked" in out and "fast" in out and "D" in out and "\nA" not in out
    assert "3 of 4 done" in out
    programs["b"] = "print('B')"
    scripted(day, monkeypatch, programs)
    monkeypatch.setattr(sys, "argv", ["gpu_day", "minutes=1", "retry", *words])
    assert day.main() == 0
    assert "4 of 4 done" in capfd.readouterr().out
