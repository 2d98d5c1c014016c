"""Cores that are free for one more run: quotas, other runs of kdrun, other programs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdrun import hardware
from kdrun.training import threads
from kdrun.training.threads import Neighbour, Presence, Usage, foreign_cores, share_of

OTHER = """
import sys, time
from pathlib import Path
from kdrun.training.threads import Presence
mine = Presence(Path(sys.argv[1]))
mine.claim(int(sys.argv[2]))
print("there", flush=True)
time.sleep(60)
"""


def another_run(folder: Path, threads: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder), str(threads)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


@pytest.mark.parametrize(
    ("cores", "others", "busy", "threads"),
    [
        (2, [], 0.0, 2),
        (2, [], 0.4, 2),  # an idle desktop
        (2, [], 1.2, 1),
        (2, [], 9.0, 1),  # never none
        (2, [0, 0], 0.0, 1),  # three that start together
        (2, [2], 0.0, 1),
        (2, [1], 0.0, 1),
        (8, [0], 0.0, 4),
        (8, [1], 0.0, 7),  # one was requested
        (8, [8], 0.0, 4),
        (8, [0, 2], 2.0, 2),
        (64, [], 3.6, 60),
    ],
)
def test_share(cores, others, busy, threads):
    assert share_of(cores, [Neighbour(i, taken) for i, taken in enumerate(others)], busy).threads == threads


def test_reasons_are_words():
    assert share_of(2, [], 0.1).reason == "2 cores"
    assert share_of(2, [Neighbour(1, 2)], 0.0).reason == "2 cores, 1 other run of kdrun"
    assert (
        share_of(4, [Neighbour(1, 1)] * 2, 0.8).reason == "4 cores, 2 other runs of kdrun and 1 used by other programs"
    )


def test_runs_know_of_each_other_and_forget_the_dead(tmp_path):
    mine, other = Presence(tmp_path), another_run(tmp_path, 3)
    try:
        assert mine.neighbours() == [Neighbour(other.pid, 3)]
    finally:
        other.kill()
        other.wait()
    assert mine.neighbours() == []
    assert [path.name for path in tmp_path.iterdir()] == [f"{os.getpid()}.run"]
    mine.leave()
    assert not any(tmp_path.iterdir())


def test_a_run_that_yields_is_no_neighbour(tmp_path, monkeypatch):
    other = another_run(tmp_path, 1)
    try:
        mine = Presence(tmp_path)
        assert len(mine.neighbours()) == 1
        monkeypatch.setattr(threads, "niceness", lambda: -5)
        assert mine.neighbours() == []
        mine.leave()
    finally:
        other.kill()
        other.wait()


def test_a_folder_that_cannot_be_written_leaves_each_run_to_itself(tmp_path):
    (tmp_path / "file").write_text("")
    mine = Presence(tmp_path / "file" / "below")
    assert mine.neighbours() == []
    mine.claim(2)
    mine.leave()


def test_only_other_programs_count_as_foreign():
    before = Usage(10.0, 100.0, {1: 5.0, 2: 0.0})
    assert foreign_cores(before, Usage(12.0, 104.0, {1: 7.0, 2: 2.0})) == 0.0
    assert foreign_cores(before, Usage(12.0, 104.0, {1: 7.0})) == 1.0
    assert foreign_cores(before, Usage(12.0, 104.0, {1: 6.0, 3: 1.0})) == 1.0  # one that began in between
    assert foreign_cores(before, Usage(12.0, 100.0, {1: 7.0})) == 0.0


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system has no /proc/stat")
def test_cpu_seconds_are_counted():
    before = threads.usage([os.getpid()])
    begun = time.process_time()
    while time.process_time() - begun < 0.2:
        pass
    after = threads.usage([os.getpid()])
    assert 0.15 < after.own[os.getpid()] - before.own[os.getpid()] < 0.5
    assert threads.usage([2**22 + 1]).own == {}


def test_presence_counts_a_nested_one_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with threads.presence() as outer, threads.presence() as inner:
        assert outer is inner
        assert len(list(tmp_path.glob("kdrun-*/*.run"))) == 1
    assert not list(tmp_path.glob("kdrun-*/*.run"))
    assert 1 <= threads.free_threads().threads <= hardware.available_cores()


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, "0::/a/b", 1.5),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"cpu.max": "200000 100000"}, "0::/", 2.0),
        ({}, "0::/a", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        (
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/d/cpu.cfs_period_us": "100000\n"},
            "4:memory:/m\n3:cpu,cpuacct:/d\n0::/",
            3.0,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/", None),
    ],
)
def test_quota(tmp_path, files, membership, quota):
    for name, text in files.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(text)
    (tmp_path / "cgroup").write_text(membership)
    assert hardware.cpu_quota(tmp_path / "sys", tmp_path / "cgroup") == quota
    assert hardware.cpu_quota(tmp_path / "sys", tmp_path / "nowhere") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 3), (1.5, 1), (0.2, 1), (2.0, 2), (8.0, 3)])
def test_a_quota_limits_the_mask(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    monkeypatch.setattr(hardware, "cpu_quota", lambda: quota)
    assert hardware.available_cores() == expected
