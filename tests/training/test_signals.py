"""Signals save and end a run, wherever they arrive; what helps a run leaves them to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from kdrun.config.compose import load
from kdrun.console.screen import RichDisplay
from kdrun.display import PlainDisplay
from kdrun.errors import Interrupted
from kdrun.runs.plan import make_plan
from kdrun.sweeps.messages import Ended, Task
from kdrun.sweeps.scheduler import Scheduler, Slot
from kdrun.training import trainer
from kdrun.training.signals import stop_on_signals
from tests.conftest import TINY


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_what_has_nothing_to_save_at_once(number):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup one of them is ignored, and stays so
    try:
        with pytest.raises(Interrupted, match=f"stopped by {number.name}; nothing is lost"), stop_on_signals():
            send(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_passes_by_what_forgives_errors():
    """A loader that skips damaged images must not take a signal for one."""
    with pytest.raises(Interrupted), stop_on_signals(), suppress(Exception):
        send(signal.SIGTERM)


def test_training_sees_a_signal_between_two_steps():
    with stop_on_signals() as stop:
        with stop.later():
            send(signal.SIGTERM)
            assert stop.signal == "SIGTERM"
        with pytest.raises(KeyboardInterrupt) as error, stop.later():
            send(signal.SIGINT)
    assert not isinstance(error.value, Interrupted)  # the second Ctrl-C waits for nothing


def test_a_signal_during_an_evaluation_saves_all_the_same(kdrun, outputs, monkeypatch):
    usual, sent = trainer.evaluated, []

    def evaluated(*arguments):
        if not sent:
            send(signal.SIGTERM)
            sent.append(True)
        return usual(*arguments)

    monkeypatch.setattr(trainer, "evaluated", evaluated)
    code, _, err = kdrun("train", *TINY, "epochs=3", "method=none")
    assert code == 75 and "stopped by SIGTERM in epoch 2; saved." in err, err
    assert list(outputs.rglob("last.pt"))


def test_nohup_is_left_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            send(signal.SIGHUP)
            assert stop.signal == ""
    finally:
        signal.signal(signal.SIGHUP, before)


def photos(root: Path) -> Path:
    """12 images of two classes to train on, and 4 to test on."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                image.save(root / split / name / f"{number}.png")
    return root


def begin(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """kdrun in a process group of its own."""
    command = [sys.executable, "-m", "kdrun", *words]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for_epochs(process: subprocess.Popen[bytes], outputs: Path, log: Path) -> None:
    """Wait until some run has trained: a sweep's screen says it only now and then."""
    deadline = time.monotonic() + 120
    while not any(len(path.read_text().splitlines()) > 3 for path in outputs.rglob("metrics.csv")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "many"), [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_whole_group_saves(number, many, tmp_path):
    """As `timeout`, `docker stop` and a terminal's Ctrl-C send it: to loader workers too, which must outlive it."""
    words = ["train", *TINY, "dataset=folder", f"dataset.root={photos(tmp_path / 'photos')}", "dataset.workers=1"]
    words = [word for word in words if not word.startswith(("dataset.fake", "dataset=fake"))]
    words += ["method=none", "batch_size=4", "epochs=4000", "launcher.processes=1", "name=group"]
    words += ["-m", "seed=0,1"] if many else []
    words = words if many else [word for word in words if not word.startswith(("launcher", "name="))]
    log = tmp_path / "log.txt"
    process = begin(words, log)
    wait_for_epochs(process, tmp_path / "outputs", log)
    os.killpg(process.pid, number)
    assert process.wait(60) == 75, log.read_text()
    said = log.read_text()
    assert f"stopped by {number.name}" in said
    assert "failed" not in said and "Traceback" not in said and "disk" not in said
    runs = list((tmp_path / "outputs").rglob("last.pt"))
    assert runs and not list((tmp_path / "outputs").rglob("failed.txt"))


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    """A lock that somebody else has: filelock refuses to wait for one of the same thread."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with FileLock(lock):
            held.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        yield
    finally:
        over.set()
        holder.join()


def test_waiting_for_anothers_teacher_says_for_whom_and_ends_on_a_signal(kdrun, outputs, monkeypatch):
    words = [*TINY, "epochs=1", "method=kd"]
    stored = make_plan(load(words, None), words).teacher_run
    assert stored is not None
    stored.path.mkdir(parents=True)
    (stored.path / ".owner").write_text("process 7 on somewhere since noon")
    note = RichDisplay.note

    def noted(self: RichDisplay, line: str) -> None:
        note(self, line)
        if "waiting" in line:
            threading.Timer(0.2, send, [signal.SIGTERM]).start()

    monkeypatch.setattr(RichDisplay, "note", noted)
    with held_elsewhere(stored.path / ".lock"):
        code, out, err = kdrun("train", *words)
    assert code == 75
    assert "waiting for process 7 on somewhere since noon to train" in out
    assert err == "stopped by SIGTERM; nothing is lost. The same command resumes.\n"
    assert not list(outputs.rglob("failed.txt"))


class DeadProcess:
    """A process that the system ended with `exitcode`."""

    pid = 0

    def __init__(self, exitcode: int):
        self.exitcode = exitcode

    def join(self) -> None:
        pass


@pytest.mark.parametrize("exitcode", [-signal.SIGSEGV, -signal.SIGKILL, -signal.SIGTERM, 1])
def test_what_a_process_was_at_when_it_died_is_tried_again_once(exitcode, tmp_path):
    words = [*TINY, "epochs=1", "method=none"]
    plan = make_plan(load(words, None), words)
    ended: list[object] = []
    show = lambda _number, _task, message: ended.append(message)  # noqa: E731
    scheduler = Scheduler([plan], "0", tmp_path, show, PlainDisplay())
    slot = Slot(0, {}, DeadProcess(exitcode), None, Task("lanes", [plan], "one"))
    scheduler.handle_dead_worker(slot)
    (again,) = scheduler.pending
    assert again.plans == [plan] and again.again and not ended
    slot.task = scheduler.pending.pop()
    scheduler.handle_dead_worker(slot)
    assert not scheduler.pending
    (message,) = ended
    assert isinstance(message, Ended) and "its process ended with" in message.reason
