"""Every method in every kind of arithmetic on a GPU, as a table to keep; `pytest -m gpu`.

KDRUN_GPU_TABLE=FILE.csv keeps the table, and a second call continues where the first stopped. KDRUN_GPU_TESTS=cpu runs
the same on a CPU, as far as that can.
"""

from __future__ import annotations

import atexit
import csv
import json
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdrun.cli import main
from kdrun.config.groups import choices
from kdrun.config.settings import settings
from tests.conftest import TINY
from tests.integration.test_runs import Killed, interrupted_at, killed, numbers, only_run

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
on_a_gpu = pytest.mark.skipif(not GPU and os.environ.get("KDRUN_GPU_TESTS") != "cpu", reason="no CUDA device")

# Five steps that a graph plays, over two epochs and with another rate in each: a number that was recorded as a constant
# shows. Three steps go before them kernel by kernel.
REPLAYED = ["dataset.fake_train=136", "optimizer.schedule=cosine"]
# name -> what it sets, in the order in which they are run.
SETTINGS = {
    "fp32": ["precision=fp32"],
    "bf16": ["precision=bf16"],
    "tf32": ["precision=tf32"],
    "fp32, deterministic": ["precision=fp32", "deterministic=true"],
    "fp32, graphs": ["precision=fp32", "graphs=true", *REPLAYED],
    "bf16, graphs": ["precision=bf16", "graphs=true", *REPLAYED],
    "fp32, compiled": ["precision=fp32", "compile=true"],
    "bf16, compiled": ["precision=bf16", "compile=true"],
}
ONLY_ON_A_GPU = {"tf32", "fp32, graphs", "bf16, graphs"}
VIT = ["student=vit_cifar_tiny_distilled", "dataset.image_size=32"]
NETWORKS = {
    "deit": VIT,
    "cskd": VIT,
    "capd": ["teacher=vit_cifar_tiny", "dataset.image_size=32"],
    "vlfkd": ["student=vit_cifar_tiny", "dataset.image_size=32"],
}
STEADY = {  # the others train at the rate of the digits, and need no preparation
    "vlfkd": ["optimizer.lr=0.001"],
    "sskd": ["method.prepare_epochs=1"],
    "fitnet": ["method.hint_epochs=1"],
}
BASE = [word for word in TINY if not word.startswith(("precision", "compile"))] + ["teacher.random=true", "epochs=2"]
COLUMNS = ["method", "setting", "device", "seconds", "images/s", "result", "top1", "largest difference from a CPU"]


def words_of(method: str, setting: str) -> list[str]:
    """Return the arguments that train `method`, compiled only if requested."""
    chosen = SETTINGS[setting]
    plain = [] if any(word.startswith("compile") for word in chosen) else ["compile=false"]
    return [*BASE, *NETWORKS.get(method, []), *STEADY.get(method, []), f"method={method}", *chosen, *plain]


def trained(folder: Path, method: str, setting: str, device: str) -> int:
    """Train a run of `method` into `folder` and return the exit code."""
    return main(["train", *words_of(method, setting), f"device={device}", f"output_root={folder}"])


def difference(one: Path, other: Path) -> float:
    """The largest difference of two runs' weights."""
    ours, theirs = (load_file(only_run(folder) / "student.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in ours)


def missing(setting: str) -> str:
    """Return the reason why a setting cannot be tried here, or '' if it can."""
    absent = [word for word in SETTINGS[setting] if word.partition("=")[0] not in settings()]
    if absent:
        return f"there is no setting {absent[0]}"
    return "needs a GPU" if setting in ONLY_ON_A_GPU and not GPU else ""


def known(place: str, method: str, setting: str) -> bool:
    """Return whether the table already has this row, and not as a failure."""
    if not place or not Path(place).is_file():
        return False
    with Path(place).open(newline="") as file:
        rows = [(row["method"], row["setting"], row["device"], row["result"]) for row in csv.DictReader(file)]
    return (method, setting, DEVICE, "done") in rows


def note_down(place: str, row: list[str]) -> None:
    """Print a row, and append it to the table in `place` where there is one."""
    print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, row, strict=True)))
    if place:
        fresh = not Path(place).is_file()
        with Path(place).open("a", newline="") as file:
            csv.writer(file).writerows([COLUMNS, row] if fresh else [row])


@cache
def on_a_cpu(method: str, replayed: bool) -> Path:
    """Train a method once in fp32 on the CPU, as a reference for all settings; return its folder."""
    folder = Path(tempfile.mkdtemp(prefix="kdrun-reference-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = [*words_of(method, "fp32"), *(REPLAYED if replayed else [])]
    assert main(["train", *words, "device=cpu", f"output_root={folder}"]) == 0
    return folder


def measure(folder: Path, method: str, setting: str, place: str) -> list[str]:
    """Train on the device and compare with fp32 on the CPU; return the table's row, which is noted down."""
    begun = time.perf_counter()
    code = trained(folder / "here", method, setting, DEVICE)
    row = [method, setting, DEVICE, f"{time.perf_counter() - begun:.1f}", "", f"failed with {code}", "", ""]
    if code == 0:
        result = json.loads((only_run(folder / "here") / "result.json").read_text())
        apart = difference(folder / "here", on_a_cpu(method, "graphs" in setting))
        row[4:] = [f"{result['images_per_second']:.0f}", "done", f"{result['top1_last']:.2f}", f"{apart:.3g}"]
    note_down(place, row)
    return row


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize(("setting", "method"), [(one, name) for one in SETTINGS for name in choices("method")])
def test_every_method_in_every_arithmetic(setting, method, tmp_path, capsys):
    place = os.environ.get("KDRUN_GPU_TABLE", "")
    if reason := missing(setting):
        pytest.skip(reason)
    if known(place, method, setting):
        pytest.skip("in the table already")
    row = measure(tmp_path, method, setting, place)
    assert row[5] == "done"
    assert "kernel by kernel" not in capsys.readouterr().out  # the recording has not failed
    weights = load_file(only_run(tmp_path / "here") / "student.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())
    if DEVICE == "cpu" and setting in ("fp32", "fp32, deterministic"):
        assert float(row[7]) == 0


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("method", ["kd", "crd", "mlkd", "reviewkd", "cskd", "dml"])
@pytest.mark.parametrize("changes", [[], ["graphs=true"], ["optimizer.ema_decay=0.9"]], ids=str)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(changes, method, tmp_path, monkeypatch):
    if changes == ["graphs=true"] and (reason := missing("fp32, graphs")):
        pytest.skip(reason)
    resumed, whole = resume(changes, method, tmp_path, monkeypatch)
    assert resumed == whole


def resume(changes: list[str], method: str, folder: Path, monkeypatch) -> tuple[dict[str, object], dict[str, object]]:
    """Kill a run after its first epoch and take it up again; return its numbers, and those of one that was not."""
    words = ["train", *words_of(method, "fp32, deterministic"), *REPLAYED, "epochs=3", *changes, f"device={DEVICE}"]
    words.append("save_every_minutes=1e-9")
    assert main([*words, f"output_root={folder / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        interrupted_at(patch, 6, killed)
        with pytest.raises(Killed):
            main([*words, f"output_root={folder / 'stopped'}"])
    assert main([*words, f"output_root={folder / 'stopped'}"]) == 0
    return numbers(only_run(folder / "stopped")), numbers(only_run(folder / "whole"))


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("method", choices("method"))
def test_graphs_have_the_bits_of_single_kernels(method, tmp_path, capsys):
    """`graphs=auto` depends on this."""
    if reason := missing("fp32, graphs"):
        pytest.skip(reason)
    words = ["train", *words_of(method, "fp32, deterministic"), *REPLAYED, f"device={DEVICE}"]
    for graphs in ("true", "false"):
        assert main([*words, f"graphs={graphs}", f"output_root={tmp_path / graphs}"]) == 0
    apart = difference(tmp_path / "true", tmp_path / "false")
    result = "done" if apart == 0 else "differs"
    row = [method, "graphs against single kernels", DEVICE, "", "", result, "", f"{apart:.3g}"]
    note_down(os.environ.get("KDRUN_GPU_TABLE", ""), row)
    assert apart == 0
    assert "kernel by kernel" not in capsys.readouterr().out


@pytest.mark.gpu
@on_a_gpu
def test_lanes_in_one_graph_have_the_bits_of_single_kernels(tmp_path, capsys):
    """Each lane has a stream of its own there, which the simulated device cannot let overlap."""
    if reason := missing("fp32, graphs"):
        pytest.skip(reason)
    found = []
    for graphs in ("true", "false"):
        words = [*words_of("kd", "fp32, deterministic"), *REPLAYED, "method=kd,dkd,crd", "launcher.processes=0"]
        root = tmp_path / graphs
        assert main(["train", "-m", *words, f"graphs={graphs}", f"device={DEVICE}", f"output_root={root}"]) == 0
        files = sorted(root.glob("runs/*/*/*/*/student.safetensors"))
        found.append({path.parent.parent.name: load_file(path) for path in files})
    assert "kernel by kernel" not in capsys.readouterr().out
    assert len(found[0]) == 3
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.skipif(GPU, reason="the tests above run")
def test_the_table_and_the_resume_run_through_on_a_cpu(tmp_path, monkeypatch):
    """So that the first day with a GPU is not spent on them."""
    table = tmp_path / "table.csv"
    row = measure(tmp_path / "run", "kd", "fp32", str(table))
    assert row[5] == "done"
    assert float(row[7]) == 0
    assert known(str(table), "kd", "fp32")
    assert not known(str(table), "kd", "bf16")
    note_down(str(table), ["kd", "bf16", DEVICE, "1.0", "", "failed with 1", "", ""])
    assert not known(str(table), "kd", "bf16")
    assert len(table.read_text().splitlines()) == 3
    resumed, whole = resume([], "kd", tmp_path, monkeypatch)
    assert resumed == whole


@pytest.mark.parametrize("method", choices("method"))
def test_what_the_table_trains_composes(method):
    from kdrun.config.compose import load

    assert load(words_of(method, "fp32, deterministic")).deterministic
