"""Printed text, in any encoding and at any width."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.text import Text

from kdrun import console
from kdrun.console import between_words
from kdrun.display import EpochEnd, Step, TrainingLines, fitted
from kdrun.errors import print_note
from kdrun.runs.directory import RunDirectory


def run(words: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    clean = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "kdrun", *words]
    return subprocess.run(command, capture_output=True, env={**clean, **environment}, timeout=120)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_any_encoding_of_the_terminal_will_do(encoding):
    ended = run(["train", "--help"], PYTHONIOENCODING=encoding)
    assert ended.returncode == 0 and ended.stderr == b""
    shown = ended.stdout.decode(encoding)
    assert "method=kd|dkd|" in shown and ("optimizer.lr=..." in shown or "optimizer.lr=…" in shown)


def test_an_error_has_signs_that_the_encoding_lacks():
    ended = run(["train", "dataset=folder", "dataset.root=/größe/→/日"], PYTHONIOENCODING="latin-1")
    assert ended.returncode == 2
    assert ended.stderr.decode("latin-1").startswith("error: dataset.root=/größe/->/\\u65e5: no such folder.")


def test_files_are_utf8_in_a_locale_that_is_not(tmp_path):
    own = tmp_path / "größe" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# Größe → 日\n_target_: kdrun.methods.none.Independent\n", encoding="utf-8")
    words = ["list", "methods", "--config-dir", str(own.parent)]
    ended = run(words, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"Gr\\xf6\\xdfe -> \\u65e5" in ended.stdout or "Größe".encode() in ended.stdout


def test_a_note_is_printed_once_in_a_command(kdrun, capfd):
    for line in ("2 images are left out", "2 images are left out", "3 images are left out"):
        print_note(line, once=True)
    assert capfd.readouterr().err == "note: 2 images are left out\nnote: 3 images are left out\n"
    assert kdrun("list", "methods")[0] == 0  # the next command begins without notes
    print_note("2 images are left out", once=True)
    print_note("2 images are left out")
    assert capfd.readouterr().err == "note: 2 images are left out\n" * 2


def test_nothing_is_folded_in_a_pipe():
    ended = run(["list", "benchmarks"])
    lines = ended.stdout.decode().splitlines()
    assert len(lines) == 6 and max(map(len, lines)) > 120
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_terminal_folds_between_words_alone(width):
    path = "out/" + "very_long/" * 12 + "s0-0123abcd"
    line = f"  kd  resnet20 → resnet8  into {path} (result.json, metrics.csv)  and so on"
    folded = between_words(Text(line), width).plain.split("\n")
    assert path in folded
    assert all(len(part) <= width for part in folded if part != path)
    assert "".join(part.strip() for part in folded).replace(" ", "") == line.replace(" ", "")


def test_an_epoch_has_a_line_of_80_columns(tmp_path):
    train = {"loss": 12.345, "top1": 100.0, "images_per_second": 12345.0}
    event = EpochEnd(RunDirectory(tmp_path / "s0-12345678").path, 200, {"train": train, "test": {"top1": 100.0}}, 100.0)
    lines = TrainingLines("student", 240, 0.0, print)
    lines.begun -= 3 * 86_400
    assert len(lines.epoch_line(event, narrow=True)) <= 80 < len(lines.epoch_line(event))


@pytest.mark.parametrize("width", [80, 120])
def test_bars_stay_within_the_terminal_and_name_loss_and_accuracy(width, monkeypatch):
    """A sweep's bars, of a long name and five lanes, and a training's bar."""
    import io

    from kdrun import console
    from kdrun.console.screen import SweepView, TrainingView
    from kdrun.sweeps.messages import Advanced, Begun, Task

    screen = console.Terminal(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(console, "out", screen)
    task = Task("lanes", [], "resnet32x4 → shufflenet_v2 seed 0: kd, dkd, dist, lskd and 8 more")
    with SweepView(70, {}) as view:
        view.show(0, task, Begun())
        assert view.progress is not None
        shown = shown_of(view.progress, screen)
        assert "starting" in shown
        runs = ("a", "b", "c")
        view.show(0, task, Advanced("student", 120.5, 240, 12_345.0, runs, (0.5, 1.25), (66.1, 70.0)))
        shown = shown_of(view.progress, screen)
    assert "loss 0.50–1.25 · test 66.1–70.0 %" in shown
    assert all(len(line) <= width for line in shown.splitlines())
    with TrainingView("student", 240, 0.0) as training:
        training.show(Step(120, 1563, 1563, 12_345.0))
        assert training.progress is not None
        shown = shown_of(training.progress, screen)
    assert "step 1563/1563" in shown
    assert len(shown.splitlines()) == 1 and len(shown.strip()) <= width


def shown_of(progress, screen) -> str:
    import io

    from kdrun.console import Terminal

    apart = Terminal(file=io.StringIO(), force_terminal=True, width=screen.width, color_system=None)
    apart.print(progress.get_renderable())
    return "\n".join(line.rstrip() for line in apart.file.getvalue().splitlines() if line.strip())


def test_figures_of_a_table_stay_whole_at_80_columns(monkeypatch):
    import io

    from kdrun import console

    screen = console.Terminal(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console, "out", screen)
    heads = ["run", "seeds", "s/epoch", "time each", "params", "FLOPs", "memory", "disk"]
    row = ["SRDwithDIST of a rather long name", "0–4", "0.59", "1 min 11 s", "78,042", "25.00M", "479 MiB", "1 MiB"]
    with screen.capture() as found:
        console.table("", heads, [row])
    lines = found.get().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(any(figure in line for line in lines) for figure in row[2:])


def test_a_list_of_runs_has_whole_lines_at_80_columns(tmp_path):
    from kdrun.reporting.run_list import ListedRun, table_of_runs

    place = tmp_path / "runs/digits/vit_cifar_tiny-resnet8x4/fitnet_joint"
    reason = "failed: student: the loss is not finite after many a step of training"
    runs = [
        ListedRun(
            place / "s0-12345678", "done", "done", {"top1_last": 98.2, "finished_at": "2026-01-01T10:00:00+00:00"}
        ),
        ListedRun(place / "s1-12345678", "failed", reason),
    ]
    wide = table_of_runs(runs, tmp_path, "run", 120)
    assert wide[0] == ["run", "top-1, %", "finished, UTC", "state"] and wide[1][1][-1] == reason
    heads, rows, notes = table_of_runs(runs, tmp_path, "run", 80)
    assert heads == ["run", "top-1, %", "state"]
    assert notes == [
        "paths are relative to runs/digits/vit_cifar_tiny-resnet8x4/fitnet_joint/",
        f"s1-12345678: {reason}",
    ]
    assert rows == [["s0-12345678", "98.20", "done"], ["s1-12345678", "", "failed"]]


def test_a_path_in_front_of_a_table_is_never_folded(monkeypatch, capsys):
    from kdrun import console

    terminal = console.Terminal(width=40, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(console, "out", terminal)
    path = f"runs/{'x' * 60}"
    console.table("", ["run", "state"], [[path, "done"]])
    assert path in capsys.readouterr().out and terminal.width == 40


def test_a_reader_that_stops_reading_loses_no_file(tmp_path):
    """As in `kdrun table … save=t.csv | head -1`."""
    command = [sys.executable, "-m", "kdrun", "list", "settings"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        errors = running.stderr.read()
    assert (running.returncode, errors) == (0, b"")


def test_without_an_output_stream():
    """As a service or `>&-` starts a program."""
    command = f"{sys.executable} -m kdrun list methods >&-"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_figures_stay_whole_in_a_narrow_log(monkeypatch):
    """A cut figure looks like another figure: 78,042 was shown as 78,."""
    written = io.StringIO()
    monkeypatch.setattr(console, "out", console.Terminal(width=20, file=written, highlight=False))
    console.table("", ["network", "top-1, %", "parameters"], [["resnet8_of_a_long_name", "14.57", "78,042"]])
    assert "resnet8_of_a_long_name" in written.getvalue() and "14.57" in written.getvalue()
    assert "78,042" in written.getvalue()


def test_a_folded_line_begins_with_a_word():
    assert [line.plain for line in between_words(Text("  one two three"), 9).split("\n")] == ["  one two", "three"]
    assert between_words(Text(""), 9).plain == ""


def test_help_fits_a_terminal():
    """Paragraphs are folded as a whole, tables within their column; nothing is lost."""
    for words in (["--help"], ["train", "--help"], ["eval", "--help"]):
        text = run(words).stdout.decode()
        shown = fitted(text, 80)
        assert max(map(len, shown.splitlines())) <= 80
        assert shown.split() == text.split()
    assert (
        fitted("one two\nthree\n\n  key=X    four five seven", 24)
        == "one two three\n\n  key=X    four five\n           seven"
    )
