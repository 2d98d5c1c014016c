"""Lanes: runs that share a process give the numbers of runs alone, fail alone, and survive kills together."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kdrun.display import PlainDisplay
from kdrun.files import read_json
from kdrun.sweeps.grouping import group_plans, split_to_fill
from tests.conftest import NATIVE_BF16, TINY
from tests.integration.test_runs import numbers

HERE = "launcher.processes=0"


def by_place(outputs: Path) -> dict[str, dict]:
    """method/s<seed>-<digest> -> the numbers of a run."""
    found = {}
    for path in (outputs / "runs").glob("*/*/*/*/result.json"):
        folder = path.parent
        found[f"{folder.parent.name}/{folder.name}"] = numbers(folder)
    return found


METHODS = ["none", "kd", "dkd", "fitnet_joint", "at", "crd", "mlkd", "ctkd"]


@pytest.mark.parametrize(
    ("teacher", "precision", "methods"),
    [("resnet8", "fp32", METHODS), ("vit_cifar_tiny", "bf16" if NATIVE_BF16 else "fp32", METHODS[1:6:2])],
)
def test_lanes_are_bit_identical_to_runs_alone(kdrun, outputs, tmp_path, teacher, precision, methods):
    """One teacher forward serves logits, maps and a second view; nobody notices the neighbours."""
    words = [*TINY, "epochs=2", f"teacher={teacher}", f"precision={precision}", "eval_every=2"]
    code, out, err = kdrun("train", "-m", *words, f"method={','.join(methods)}", "seed=3", HERE)
    assert (code, err) == (0, ""), out
    alone = tmp_path / "alone"
    for method in methods:
        code, out, err = kdrun("train", *words, f"method={method}", "seed=3", f"output_root={alone}")
        assert code == 0, err
    together, apart = by_place(outputs), by_place(alone)
    assert set(together) == set(apart)
    assert {place.partition("-")[0] for place in apart} == {f"{method}/s3" for method in methods}
    for place in apart:
        assert together[place] == apart[place], f"{place} differs"


def test_a_failing_lane_ends_alone(kdrun, outputs, diverging):
    """A loss that is not finite, and a network that cannot be made: recorded, shown, and the others go on."""
    code, out, err = kdrun("train", "-m", *TINY, "epochs=2", "method=kd,dkd", "optimizer.lr=77,0.05", HERE)
    assert code == 1
    assert out.count("failed  ") == 2
    assert "loss" in out and "2 runs failed" in err
    assert len(by_place(outputs)) == 2
    reasons = [path.read_text() for path in (outputs / "runs").glob("*/*/*/*/failed.txt")]
    assert len(reasons) == 2
    code, out, _ = kdrun("train", "-m", *TINY, "epochs=2", "method=kd,dkd", "optimizer.lr=77,0.05", HERE)
    assert "2 of them done already" in out
    assert code == 1


def test_cells_that_cannot_run_are_listed_before_training(kdrun, outputs):
    words = [*TINY, "epochs=1", "method=kd,fitnet_joint,deit", "student=resnet8,no_such_net", HERE]
    code, out, err = kdrun("train", "-m", *words)
    assert code == 2
    assert err.count("no_such_net: no such student") == 1 and "This affects 3 cells." in err
    assert "distillation" in out.partition("done  ")[0]  # deit needs a distilled ViT student, found by rehearsal
    assert len(by_place(outputs)) == 2
    assert not list((outputs / "runs").glob("*/*/deit/*/metrics.csv"))


def test_only_the_cells_that_were_asked_for_are_complained_of(kdrun):
    """A word that other rows do not take is no error of a call that leaves them out; a seed keeps its own name."""
    words = [*TINY, "teacher=resnet8", "student=resnet8", "epochs=1", "method.temperature=3", HERE]
    code, out, err = kdrun("train", "-m", "sweep=digits_table", "row=KD", "seed=1", *words)
    assert (code, err) == (0, "")
    assert "1 run done" in out
    code, _, err = kdrun("train", "-m", "sweep=digits_table", "row=KD,RKD", "seed=1,2", *words)
    assert code == 2
    (found,) = err.splitlines()
    assert "method.temperature: rkd has no such setting" in found and found.endswith("This affects 2 cells.")


def test_one_cell_without_a_seed_word(kdrun, outputs):
    code, out, err = kdrun("train", "-m", *TINY, "epochs=1", "method=none", HERE)
    assert (code, err) == (0, "")
    assert "1 run done" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["launcher.processes=many"], "launcher.processes=many: must be auto or a whole number"),
        (["launcher=slrm"], "launcher=slrm: no such launcher. Did you mean slurm?"),
        (["launcher.proceses=2"], "launcher.proceses: no such setting. Did you mean launcher.processes?"),
        (["sweep=digit_table"], "sweep=digit_table: no such sweep."),
        (["method=kd,lm"], "2 cells for row 'kd'"),
        (["method=none", "seed=-1"], "seed=-1: must be at least 0."),
    ],
)
def test_mistakes_in_one_line(kdrun, words, line):
    code, _, err = kdrun("train", "-m", *TINY, *words)
    assert code == 2
    assert err.count("\n") == 1 and line in err


@pytest.mark.parametrize("bad", ["-1", "one"])
@pytest.mark.parametrize("order", ["{},0", "0,{}"])
def test_a_seed_that_is_none(kdrun, outputs, bad, order):
    """The line of a single run, and the other seeds are trained."""
    _, _, alone = kdrun("train", *TINY, "epochs=1", "method=none", f"seed={bad}")
    code, out, err = kdrun("train", "-m", *TINY, "epochs=1", "method=none", f"seed={order.format(bad)}", HERE)
    assert code == 2
    assert err.count("\n") == 1 and err.endswith(alone.removeprefix("error: "))
    assert f"seed={bad}" in err
    assert [name.partition("-")[0] for name in by_place(outputs)] == ["none/s0"]
    assert "Traceback" not in out
    assert err.startswith(f"error: seed={bad}: ")  # what sets the cell apart, not the whole command
    _, out, _ = kdrun("status")
    assert f"failed  seed={bad}, cannot be made" in out


def test_a_seed_that_others_follow_is_composed_for_each():
    plans = plans_of("method=kd", "seed=0,1", "teacher.seed=${seed}")
    assert [plan.config.teacher.seed for plan in plans] == [0, 1]


def test_what_failed_before_fails_aloud_again(kdrun, outputs):
    """Even where a rehearsal finds it: failed.txt of an earlier try hides nothing."""
    words = ["train", "-m", *TINY, "epochs=1", "method=none,deit", HERE]
    for _ in range(2):
        code, out, err = kdrun(*words)
        assert code == 1
        assert out.count("failed  deit") == 1 and "1 run failed" in err
    assert len(list(outputs.rglob("failed.txt"))) == 1


@pytest.mark.parametrize(("methods", "lines"), [("none,ls", 2), ("kd,dkd", 3)])  # of kd and dkd the teacher fails first
def test_one_error_of_a_whole_group_is_each_runs(kdrun, outputs, methods, lines):
    group = ["train", "-m", *TINY, "epochs=1", f"method={methods}", HERE]
    for plan in plans_of("epochs=1", f"method={methods}"):
        plan.run.path.mkdir(parents=True)
        (plan.run.path / "config.yaml").write_text("damaged: [")  # begun, so that nothing is rehearsed
        plan.run.fail("an earlier try")
    code, out, err = kdrun(*group)
    assert code == 1
    assert out.count("failed  ") == lines and "2 runs failed" in err
    reasons = [path.read_text() for path in outputs.rglob("runs/**/failed.txt")]
    assert len(reasons) == 2 and all("config.yaml cannot be read" in reason for reason in reasons)


def test_a_damaged_checkpoint_ends_its_lane_alone(kdrun, outputs):
    words = ["train", "-m", *TINY, "epochs=1", "method=kd,dkd", HERE]
    (plan,) = plans_of("epochs=1", "method=kd")
    plan.run.path.mkdir(parents=True)
    plan.run.state_path.write_bytes(b"damaged")
    code, out, err = kdrun(*words)
    assert code == 1
    assert "last.pt cannot be read" in out and "1 run failed" in err
    assert [name.partition("/")[0] for name in by_place(outputs)] == ["dkd"]


def test_a_signal_ends_a_sweep_in_this_process(kdrun, outputs, monkeypatch):
    """Between its groups too: what has not begun does not begin."""
    from kdrun.training import session

    real = session.Session.finish

    def finish(self, student) -> None:
        real(self, student)
        os.kill(os.getpid(), signal.SIGTERM)

    words = ["train", "-m", *TINY, "epochs=1", "method=none", "seed=0,1,2", HERE]
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "finish", finish)
        code, _, err = kdrun(*words)
    assert code == 75
    assert err == "stopped by SIGTERM; saved. The same command resumes.\n"
    assert len(by_place(outputs)) == 1
    assert kdrun(*words)[0] == 0
    assert len(by_place(outputs)) == 3


class FullFile:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, room: int, number: int):
        self.room, self.number = room, number

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EIO"])
def test_what_torch_says_of_a_full_disk(tmp_path, number):
    """torch.save hides the disk's own error behind a RuntimeError."""
    import errno

    import torch

    from kdrun.errors import DiskFull, RunError
    from kdrun.files import write_atomically

    state, file = {"weights": torch.zeros(100_000)}, FullFile(1000, getattr(errno, number))
    with pytest.raises(RunError, match="cannot be written" if number == "EIO" else "disk full") as error:
        write_atomically(tmp_path / "last.pt", lambda _: torch.save(state, file))
    assert isinstance(error.value, DiskFull) == (number != "EIO")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_what_ends_a_sweep():
    """The other processes stop only because they are asked to."""
    from kdrun.sweeps.scheduler import HERE as SLOT
    from kdrun.sweeps.scheduler import Scheduler
    from kdrun.sweeps.worker import Finished, Task

    plans = plans_of("method=none")
    scheduler = Scheduler(plans, "0", Path("logs"), lambda *_: None, PlainDisplay())
    for report in (Finished("disk full while writing x.", True), Finished("stopped by SIGTERM; saved.")):
        scheduler.take(SLOT, Task("lanes", plans, ""), report)
    assert scheduler.outcome.disk_full and scheduler.outcome.stopped == "disk full while writing x."


def test_the_environment_is_put_back(monkeypatch):
    from kdrun.hardware import environment

    monkeypatch.setenv("KDRUN_ONE", "before")
    monkeypatch.delenv("KDRUN_TWO", raising=False)
    inside = {}
    with suppress(ZeroDivisionError), environment({"KDRUN_ONE": "inside", "KDRUN_TWO": "inside"}):
        inside = {name: os.environ[name] for name in ("KDRUN_ONE", "KDRUN_TWO")}
        raise ZeroDivisionError
    assert set(inside.values()) == {"inside"}
    assert os.environ["KDRUN_ONE"] == "before" and "KDRUN_TWO" not in os.environ


def test_time_left_counts_the_students_epochs_alone():
    """A preparation or a teacher inside a task is no part of any run, and a lane that ended trains no longer; nor do
    those of a task that wait for the others."""
    from kdrun.console.screen import SweepView
    from kdrun.sweeps.worker import Advanced, Ended, Task

    plans = plans_of("method=kd,dkd,at")
    view, task = SweepView(3, {}), Task("lanes", plans, "three")
    slot, runs = 0, tuple(str(plan.run.path) for plan in plans)
    for what in ("preparing kd", "teacher"):
        view.show(slot, task, Advanced(what, 1.0, 2, 100.0, runs))
        assert view._done() == 0
    view.show(slot, task, Advanced("student", 1.0, 2, 100.0, runs))
    assert view._done() == 1.5
    view.show(slot, task, Ended(str(plans[0].run.path), None, "loss is nan"))
    assert view._done() == 2.0
    view.show(slot, task, Advanced("student", 1.5, 2, 100.0, runs))
    assert view._done() == 2.5
    view.show(slot, task, Advanced("student", 1.0, 2, 100.0, runs[1:2]))
    assert view._done() == 1.5


def test_time_left_of_a_resumed_sweep_is_at_the_pace_of_this_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes were trained to epoch 5 of 10 by an earlier command; this one takes a minute for an epoch."""
    from kdrun.console.screen import SweepView
    from kdrun.sweeps.worker import Advanced, Ended, Task

    now = [0.0]
    monkeypatch.setattr("kdrun.console.screen.time.monotonic", lambda: now[0])
    view, task, runs = SweepView(4, {}), Task("lanes", plans_of("method=kd,dkd"), "two"), ("a", "b")
    for now[0], position in ((1.0, 5.0), (61.0, 6.0)):
        view.show(0, task, Advanced("student", position, 10, 100.0, runs, first=5.0))
    assert view._summary() == "0/4 runs, about 14 min 00 s left"  # 28 epochs of one lane, two lanes in a minute
    now[0] = 301.0
    for run in runs:
        view.show(0, task, Ended(run, {"teacher_top1": None, "top1_last": 50.0}))
    assert view._summary() == "2/4 runs, about 10 min 00 s left"  # 20 epochs of one lane


def plans_of(*words: str):
    from kdrun.runs.plan import make_plan
    from kdrun.sweeps.definition import multirun_sweep
    from kdrun.sweeps.run import compose_cells

    assert make_plan
    return [plan for _, plan in compose_cells(multirun_sweep([*TINY, *words], None).specs, None) if plan is not None]


def test_groups_share_teacher_seed_and_length():
    plans = plans_of("method=kd,dkd,none", "seed=0,1", "epochs=1,2")
    groups = group_plans(plans)
    assert sorted(len(group) for group in groups) == [1, 1, 1, 1, 2, 2, 2, 2]
    for group in groups:
        assert len({(plan.config.seed, plan.config.epochs, plan.teacher_digest) for plan in group}) == 1


def test_a_run_that_two_cells_share_is_trained_once():
    plans = plans_of("method=none", "teacher=resnet8,resnet14")
    assert len(plans) == 2
    assert [len(group) for group in group_plans(plans)] == [1]


def test_idle_slots_get_halves():
    plans = plans_of("method=kd,dkd,at,dist,nkd", "seed=0")
    assert [len(group) for group in split_to_fill(group_plans(plans), 1)] == [5]
    assert [len(group) for group in split_to_fill(group_plans(plans), 3)] == [2, 2, 1]
    assert len(split_to_fill(group_plans(plans), 9)) == 5
    assert split_to_fill([], 2) == []


def test_processes_end_together():
    """Three equal groups on two processes: the third is shared out, instead of one process waiting."""
    plans = plans_of("method=kd,dkd,at,dist,nkd,lskd", "seed=0,1,2")
    groups = split_to_fill(group_plans(plans), 2)
    assert sorted(map(len, groups)) == [3, 3, 6, 6]
    assert sorted(map(len, split_to_fill(group_plans(plans), 3))) == [6, 6, 6]


def test_memory_decides_how_many_lanes_train_at_once(kdrun, outputs, monkeypatch):
    from kdrun.training import session

    monkeypatch.setattr(session, "free_memory", lambda device: 3_000_000)  # room for one resnet8 and its moments
    code, out, _ = kdrun("train", "-m", *TINY, "epochs=1", "method=kd,dkd,at", HERE)
    assert code == 0
    assert out.count(" at once; ") >= 1
    assert len(by_place(outputs)) == 3


def test_lanes_join_again_after_a_kill_between_their_saves(kdrun, outputs, tmp_path):
    """One lane's checkpoint is an epoch older than its neighbour's: they end as if nothing had happened."""
    words = ["-m", *TINY, "method=kd,dkd", "save_every_minutes=1e-9", HERE]
    assert kdrun("train", *words, "epochs=3", f"output_root={tmp_path / 'whole'}")[0] == 0
    from kdrun.training import trainer

    saves = 0
    real = trainer.TrainingRun.save

    def save(job) -> None:
        nonlocal saves
        saves += 1
        if saves == 13:  # teacher: its steps; then both lanes in turn
            raise KeyboardInterrupt
        real(job)

    trainer.TrainingRun.save = save
    try:
        code, _, _ = kdrun("train", *words, "epochs=3")
    finally:
        trainer.TrainingRun.save = real
    assert code == 130
    assert kdrun("train", *words, "epochs=3")[0] == 0
    assert by_place(outputs) == by_place(tmp_path / "whole")


SWEEP = [
    "train",
    "-m",
    *TINY,
    "epochs=12",
    "teacher.recipe.epochs=3",
    "method=none,kd,at,dkd",
    "seed=0,1",
    "save_every_minutes=1e-9",
    "launcher.processes=2",
    "name=killed",
]


UNSTEADY = ("finished_at", "train_seconds", "images_per_second", "peak_memory")


def steady_rows(outputs: Path) -> list[str]:
    """results.csv without what time decides, byte for byte."""
    import csv

    with (outputs / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    keep = [position for position, name in enumerate(rows[0]) if name not in UNSTEADY]
    return [",".join(row[position] for position in keep) for row in rows]


@pytest.mark.slow
def test_sigkill_of_the_whole_group(tmp_path, zygote, kdrun):
    """The sweep and its processes, which are forked here instead of started anew."""
    zygote.start(tmp_path / "whole", SWEEP)
    assert zygote.number() == 0, (tmp_path / "whole.log").read_text()
    expected = steady_rows(tmp_path / "whole")
    assert len(expected) == 9

    random.seed(1)
    broken, kills = tmp_path / "broken", 0
    for _ in range(5):
        process = zygote.start(broken, SWEEP, often=True)
        before = progress(broken)
        wait_for(lambda process=process, before=before: progress(broken) != before or gone(process))
        time.sleep(random.uniform(0, 1.5))
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        kills += zygote.number() == signal.SIGKILL
    assert kills >= 3
    zygote.start(broken, SWEEP)
    assert zygote.number() == 0
    assert steady_rows(broken) == expected
    code, out, _ = kdrun("status", "killed", f"output_root={broken}")
    assert code == 0 and "8" in out


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def progress(outputs: Path) -> int:
    """Grows with everything that is saved."""
    return sum(path.stat().st_mtime_ns for path in outputs.rglob("*.pt")) + len(list(outputs.rglob("result.json")))


def test_ledger_says_where_each_cell_stands(kdrun, outputs, diverging):
    from kdrun.runs.ledger import read_ledger, result_of, state_of

    kdrun("train", "-m", *TINY, "epochs=1", "method=kd,none", "optimizer.lr=0.1,77", HERE, "name=mine")
    ledger = read_ledger(outputs, "mine")
    states = [state_of(cell, outputs) for cell in ledger.cells]
    assert sorted(state for state, _ in states) == ["done", "done", "failed", "failed"]
    assert all("loss" in reason for state, reason in states if state == "failed"), states
    assert {cell.row for cell in ledger.cells} == {
        "kd optimizer.lr=0.1",
        "kd optimizer.lr=77",
        "none optimizer.lr=0.1",
        "none optimizer.lr=77",
    }
    done = [result_of(cell, outputs) for cell in ledger.cells if state_of(cell, outputs)[0] == "done"]
    assert all(result is not None and result["epochs"] == 1 for result in done)
    assert read_json(outputs / "sweeps" / "mine" / "cells.json")["command"].startswith("kdrun train -m ")


def test_a_submitted_job_saves_requeues_and_resumes(kdrun, outputs, tmp_path):
    """The signal before a time limit, sent by hand: the job comes back by itself and ends as if undisturbed."""
    pytest.importorskip("submitit")
    words = ["train", "-m", *TINY, "epochs=16", "method=none", "save_every_minutes=60", "name=jobs"]
    assert kdrun(*words, HERE, f"output_root={tmp_path / 'whole'}")[0] == 0
    code, out, err = kdrun(*words, "launcher=submitit_local", "launcher.timeout_min=5")
    assert (code, err) == (0, "")
    assert "1 job for 1 group of lanes" in out
    pickled = outputs / "sweeps" / "jobs" / "jobs"
    log = wait_for(
        lambda: next((path for path in pickled.glob("*_0_log.out") if "epoch  2/16" in path.read_text()), None)
    )
    worker = int(log.name.partition("_")[0])
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGUSR2)
    wait_for(lambda: by_place(outputs))
    assert "Requeued job" in log.read_text() + "".join(path.read_text() for path in pickled.glob("*.err"))
    assert by_place(outputs) == by_place(tmp_path / "whole")


def wait_for(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_a_full_disk_stops_the_sweep_and_loses_nothing(kdrun, outputs, tmp_path, monkeypatch):
    import errno

    from kdrun import files

    words = ["train", "-m", *TINY, "epochs=3", "method=none,kd,dkd", "seed=0,1", HERE, "name=full"]
    assert kdrun(*words, f"output_root={tmp_path / 'whole'}")[0] == 0
    room, real = 90, os.fsync

    def fill(handle: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fill)
        code, _, err = kdrun(*words)
    assert code == 1
    assert "disk full while writing" in err and "run the same command again; it resumes." in err
    assert 0 < len(by_place(outputs)) < 6
    assert not list(outputs.rglob("failed.txt"))
    assert kdrun(*words)[0] == 0
    assert by_place(outputs) == by_place(tmp_path / "whole")


def test_what_another_machine_is_at_is_left_alone(kdrun, outputs):
    """On a shared folder: its lock is respected, the rest is trained, and the next call finds what it finished."""
    import json

    from kdrun.runs.directory import RunDirectory

    words = ["train", "-m", *TINY, "epochs=1", "method=none,ls", HERE, "name=shared"]
    (plan,) = plans_of("epochs=1", "method=ls")
    with RunDirectory(plan.run.path).lock():
        code, out, _ = kdrun(*words)
        assert code == 0
        assert "elsewhere" in out and "1 run being trained by other processes" in out
        _, out, _ = kdrun("status", "shared")
        assert len(by_place(outputs)) == 1
    assert kdrun(*words)[0] == 0
    assert len(by_place(outputs)) == 2
    assert len(json.loads((outputs / "sweeps" / "shared" / "cells.json").read_text())["cells"]) == 2
