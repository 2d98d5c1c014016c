"""Tab completes commands, settings and names."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from kdrun.cli import COMMANDS
from kdrun.commands.completion import SHELLS, matching


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (["tra"], ["train"]),
        (["train", "meth"], ["method.", "method="]),
        (["train", "method=dk"], ["method=dkd"]),
        (["train", "optimizer.sched"], ["optimizer.schedule="]),
        (["train", "optimizer.schedule=co"], ["optimizer.schedule=constant", "optimizer.schedule=cosine"]),
        (["train", "-m", "sweep=digits"], ["sweep=digits_table"]),
        (["train", "method.temperature_r"], ["method.temperature_range="]),
        (["train", "dataset.aug"], ["dataset.augment."]),
        (["train", "deterministic=t"], ["deterministic=true"]),
        (["train", "threads=n"], ["threads=null"]),
        (["explain", "optimizer.l"], ["optimizer.lr"]),
        (["list", "sw"], ["sweeps"]),
        (["table", "vgg_m"], ["vgg_methods"]),
        (["export", "1234", "quantize=st"], ["quantize=static"]),
        (["eval", "1234", "devi"], ["device="]),
        (["train", "method=kd,dk"], ["method=kd,dkd"]),
        (["tune", "cand"], ["candidates="]),
        (["tune", "method=dk"], ["method=dkd"]),
        (["nonsense", "x"], []),
        (["train", "dataset.root=/tm"], []),
    ],
)
def test_the_last_word_is_completed(typed, found):
    assert sorted(matching(typed)) == found


def test_every_command_completes_something_or_nothing():
    assert set(matching([""])) == set(COMMANDS)
    for name in COMMANDS:
        assert all(isinstance(word, str) for word in matching([name, ""]))


def test_the_command_prints_a_script(kdrun):
    for shell, script in SHELLS.items():
        assert kdrun("completion", shell) == (0, script, "")
    code, _, err = kdrun("completion", "bsh")
    assert (code, err) == (
        2,
        "error: completion bsh: no such shell. Did you mean bash? completion takes one of bash, zsh, fish.\n",
    )
    assert kdrun("completion")[0] == 2
    assert kdrun("completion", "words", "tra")[1] == "train\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_takes_the_script_and_does_not_repeat_what_stands_before_an_equals_sign(tmp_path):
    stub = tmp_path / "kdrun"
    stub.write_text('#!/bin/sh\n[ "$4" = method=dk ] && echo method=dkd\n[ "$4" = opt ] && echo optimizer=\nexit 0\n')
    stub.chmod(0o755)
    program = (
        f'PATH="{tmp_path}:$PATH"\n{SHELLS["bash"]}'
        'tab() { COMP_LINE="$1"; COMP_POINT=${#1}; _kdrun 2>/dev/null; echo "${COMPREPLY[*]}"; }\n'
        'tab "kdrun train method=dk"; tab "kdrun train opt"\n'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["dkd", "optimizer="]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes_words_and_where_there_are_none_files(tmp_path):
    stub = tmp_path / "kdrun"
    stub.write_text('#!/bin/sh\ncase "$*" in *"tra") echo train;; *) echo;; esac\n')
    stub.chmod(0o755)
    (tmp_path / "photos").mkdir()
    (tmp_path / "script.fish").write_text(SHELLS["fish"])
    ask = 'source script.fish; complete -C "kdrun tra"; complete -C "kdrun data ph"'
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}
    found = subprocess.run(["fish", "-c", ask], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert [line.split("\t")[0] for line in found.stdout.splitlines()] == ["train", "photos/"], found.stderr
