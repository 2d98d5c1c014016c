"""One run on several processes, as torchrun starts them: what it ends with, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdrun import console, errors
from kdrun.runs.recorded import read_resolved
from kdrun.training.launch import meeting_place
from tests.conftest import TINY
from tests.integration.test_runs import numbers, only_run

WORDS = [*TINY, "device=cpu", "teacher.random=true"]
pytestmark = pytest.mark.slow


class Group:
    """A run's processes; lines: what each has printed."""

    def __init__(self, folder: Path, outputs: Path, words: list[str], size: int = 2):
        self.logs = [folder / f"{outputs.name}.{rank}.log" for rank in range(size)]
        shared = {**meeting_place(size), "OMP_NUM_THREADS": "1", "KDRUN_OUTPUTS": str(outputs)}
        self.processes = []
        for rank, log in enumerate(self.logs):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "kdrun", "train", *words],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def wait(self) -> list[int]:
        return [process.wait(timeout=240) for process in self.processes]

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 240
        while text not in self.logs[0].read_text():
            if self.processes[0].poll() is not None or time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
                raise AssertionError(f"no {text!r} in {self.logs[0].read_text()}")
            time.sleep(0.05)

    @property
    def lines(self) -> list[str]:
        return [log.read_text() for log in self.logs]


def trained(tmp_path: Path, name: str, words: list[str], size: int = 2) -> Path:
    group = Group(tmp_path, tmp_path / name, words, size)
    assert group.wait() == [0] * size, group.lines
    assert not any(group.lines[1:])  # process 0 alone prints
    return only_run(tmp_path / name)


def distance(one: Path, other: Path) -> float:
    """The largest relative distance of a tensor of the trained students."""
    first, second = (load_file(run / "student.safetensors") for run in (one, other))
    return max(((second[key] - first[key]).norm() / first[key].norm()).item() for key in first)


def test_two_processes_train_what_one_trains(tmp_path):
    """A ViT by kd: no batch statistics, 9 steps, the last of each epoch on 8 images."""
    words = [*WORDS, "teacher=vit_cifar_tiny", "student=vit_cifar_tiny", "method=kd", "epochs=3", "optimizer.lr=0.01"]
    one, two = trained(tmp_path, "one", words, 1), trained(tmp_path, "two", words)
    assert one.name == two.name  # the same run
    assert distance(one, two) < 1e-4
    assert (read_resolved(one) or {})["processes"] == 1 and (read_resolved(two) or {})["processes"] == 2


def test_what_a_signal_or_a_kill_ends_goes_on_bit_by_bit(tmp_path):
    """crd on a CNN, whose banks and batch statistics every process keeps; SIGTERM to number 1, SIGKILL of number 1."""
    words = [*WORDS, "method=crd", "method.negatives=16", "epochs=16", "save_every_minutes=1e-9"]
    whole = trained(tmp_path, "whole", words)
    broken = tmp_path / "broken"
    group = Group(tmp_path, broken, words)
    group.wait_for("epoch  2/16")
    os.kill(group.processes[1].pid, signal.SIGTERM)
    assert group.wait() == [75, 75], group.lines
    (stopped,) = (line for line in group.lines[0].splitlines() if line.startswith("stopped by SIGTERM "))
    assert stopped.endswith("saved. The same command resumes.")
    assert group.lines[1] == ""
    epoch = torch.load(only_run(broken) / "last.pt")["epoch"]

    group = Group(tmp_path, broken, words)
    group.wait_for(f"epoch {epoch + 3:2d}/16")
    os.kill(group.processes[1].pid, signal.SIGKILL)
    begun = time.monotonic()
    assert group.wait() == [75, -signal.SIGKILL], group.lines
    assert time.monotonic() - begun < 60
    errors = [line for line in group.lines[0].splitlines() if "error" in line]
    assert errors == ["error: process 1 of 2 has died: the run ends here. The same command resumes from the last save."]
    assert "resuming student after epoch" in group.lines[0] and not list(broken.rglob("failed.txt"))

    assert numbers(trained(tmp_path, "broken", words)) == numbers(whole)


def test_another_process_reports_the_death_of_number_0_and_one_alone_resumes_with_a_note(tmp_path):
    words = [*WORDS, "method=none", "epochs=4000", "batch_size=2", "save_every_minutes=1e-9"]  # 36 steps an epoch
    group = Group(tmp_path, tmp_path / "run", words)
    group.wait_for("epoch    2/4000")
    os.kill(group.processes[0].pid, signal.SIGKILL)
    assert group.wait() == [-signal.SIGKILL, 75]
    assert group.lines[1].splitlines() == [
        "error: process 0 of 2 has died: the run ends here. The same command resumes from the last save."
    ]
    alone = Group(tmp_path, tmp_path / "run", words, 1)
    alone.wait_for("resuming student after epoch")
    alone.wait_for("note: 2 processes trained it so far and 1 from now on")
    alone.wait_for("student epoch")
    os.kill(alone.processes[0].pid, signal.SIGTERM)
    assert alone.wait() == [75]
    assert (read_resolved(only_run(tmp_path / "run")) or {})["processes"] == 1


def test_a_failure_of_one_process_ends_all_with_its_line(tmp_path):
    """A failure in all processes, here a loss that is not finite, is printed once."""
    words = [*WORDS, "method=none", "epochs=50", "optimizer.lr=100", "optimizer.momentum=0.99"]
    group = Group(tmp_path, tmp_path / "run", words)
    assert group.wait() == [1, 1], group.lines
    assert group.lines[0].count("error:") == 1 and "optimizer.clip_norm" in group.lines[0], group.lines
    assert group.lines[1] == ""
    assert "optimizer.clip_norm" in next((tmp_path / "run").rglob("failed.txt")).read_text()


BROKEN = """
import os
from kdrun.methods.base import Method

class Broken(Method):
    def losses(self, batch, student, teacher, progress):
        if os.environ["RANK"] == "2" and progress.epoch >= 1:
            raise FLAW
        return {"kd": (student.logits - teacher.logits).square().mean()}
"""


@pytest.mark.parametrize(
    ("flaw", "line"),
    [
        ("ValueError('no such view')", "no such view"),
        ("MemoryError('no memory left')", "out of memory at batch_size=32 (no memory left)"),
    ],
)
def test_an_error_of_one_process_alone_ends_the_others_with_its_line(tmp_path, monkeypatch, flaw, line):
    """Three processes, of which the last fails in its second epoch while the others wait for its gradients."""
    (tmp_path / "broken_method.py").write_text(BROKEN.replace("FLAW", flaw))
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf/method/broken.yaml").write_text("_target_: broken_method.Broken\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    words = [*WORDS, f"--config-dir={tmp_path / 'conf'}", "method=broken", "epochs=4"]
    group = Group(tmp_path, tmp_path / "run", words, 3)
    begun = time.monotonic()
    assert group.wait() == [1, 1, 1], group.lines
    assert time.monotonic() - begun < 90
    errors = [text for text in group.lines[0].splitlines() if "error:" in text]
    assert len(errors) == 1 and errors[0].startswith("error: process 2 of 3: ") and line in errors[0], group.lines
    assert not any("Traceback" in text for text in group.lines), group.lines
    recorded = next((tmp_path / "run").rglob("failed.txt")).read_text()
    assert line in recorded and ("broken_method.py" in recorded.partition("Traceback")[2]) == ("ValueError" in flaw)


def test_a_multirun_by_several_processes_is_refused_before_they_meet(kdrun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(errors, "muted", False)  # which process 1 sets for good
    monkeypatch.setattr(console.out, "quiet", False)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        code, _, err = kdrun("train", "-m", *WORDS, "method=kd,dkd")
        assert code == 2
        line = "error: several processes train one run: leave out -m"
        assert (err.startswith(line) and err.count("\n") == 1) if rank == "0" else err == ""


def test_what_does_not_go_with_several_processes_is_refused_in_one_line(tmp_path):
    group = Group(tmp_path, tmp_path / "run", [*WORDS, "sync_bn=true", "method=none"])
    assert group.wait() == [2, 2], group.lines
    (error,) = (text for text in group.lines[0].splitlines() if "error" in text)
    assert error.startswith("error: sync_bn=true: PyTorch synchronises batch norm only on GPUs")
    assert group.lines[1] == ""


def test_a_sweep_gives_each_run_several_processes(kdrun, outputs):
    """Two lanes that share a teacher's forward, on one pair of processes."""
    words = [*WORDS, "method=kd,rkd", "epochs=2", "name=pair", "launcher.processes=1", "launcher.gpus_per_run=2"]
    code, out, err = kdrun("train", "-m", *words)
    assert code == 0, out + err
    runs = [path.parent for path in outputs.rglob("result.json")]
    assert len(runs) == 2
    assert all((read_resolved(run) or {})["processes"] == 2 for run in runs)
