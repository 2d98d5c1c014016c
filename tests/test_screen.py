"""What is printed: in any encoding, at any width."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.text import Text

from kdrun.console import between_words
from kdrun.display import EpochEnd, TrainingLines
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


def test_nothing_is_folded_in_a_pipe():
    ended = run(["list", "benchmarks"])
    lines = ended.stdout.decode().splitlines()
    assert len(lines) == 5 and max(map(len, lines)) > 120
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
