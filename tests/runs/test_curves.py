"""curves.png: what is drawn, in which formats, and when it is drawn again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from kdrun.runs.curves import draw_curves, draw_losses, is_flattened, series_of
from kdrun.runs.directory import RunDirectory
from kdrun.runs.pictures import pyplot
from kdrun.training import run_curves


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose first epoch has a loss far above the others."""
    run = RunDirectory(tmp_path)
    for epoch, loss in enumerate([340.0, 2.1, 1.7, 1.2, 0.9, 0.7], 1):
        run.append_metrics(
            [
                (epoch, "train", "loss", loss),
                (epoch, "train", "loss/ce", loss / 3),
                (epoch, "train", "loss/kd", 2 * loss / 3),
                (epoch, "test", "nll", loss / 2),
                (epoch, "test", "top1", 60 + 5 * epoch),
                (epoch, "train", "top1", 64 + 5 * epoch),
                (epoch, "train", "lr", 0.1 / epoch),
            ]
        )
    return run


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([340.0, 2.1, 1.7, 1.2, 0.9], True),
        ([3.0, 2.1, 1.7, 1.2], False),
        ([340.0, 2.0], False),
        ([9e9, 1, 1, 0], False),
    ],
)
def test_one_outlier_asks_for_a_logarithmic_axis(values, flat):
    assert is_flattened(values) is flat


def test_an_outlier_does_not_flatten_the_others(run):
    figure, axes = pyplot().subplots()
    draw_losses(axes, series_of(run))
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_label() == "train: total"
    pyplot().close(figure)


@pytest.mark.pictures
def test_every_format_is_written_and_the_same_each_time(run, tmp_path):
    draw_curves(run, "kd: resnet20 → resnet8", ["pdf", "svg"], teacher=97.5)
    first = {kind: (tmp_path / f"curves.{kind}").read_bytes() for kind in ("png", "pdf", "svg")}
    assert first["png"][:4] == b"\x89PNG"
    assert first["pdf"][:4] == b"%PDF"
    assert b"teacher, test (97.50 %)" in first["svg"]  # text, not outlines
    draw_curves(run, "kd: resnet20 → resnet8", ["pdf", "svg"], teacher=97.5)
    assert first == {kind: (tmp_path / f"curves.{kind}").read_bytes() for kind in ("png", "pdf", "svg")}


def test_curves_grow_while_a_run_trains_and_take_little_of_its_time(monkeypatch):
    clock, drawn = [0.0], []
    monkeypatch.setattr(run_curves.time, "monotonic", lambda: clock[0])

    def draw(training):
        drawn.append((training.name, clock[0]))
        clock[0] += 1.0

    monkeypatch.setattr(run_curves, "draw", draw)
    growing = run_curves.GrowingCurves()
    lanes = [SimpleNamespace(name=name) for name in "abc"]
    for _ in range(120):
        clock[0] += 5.0
        for lane in lanes:
            growing.after(lane)
    assert {name for name, _ in drawn} == {"a", "b", "c"}
    assert drawn[0][1] >= 60
    assert len(drawn) * 1.0 <= clock[0] / 25  # about a thirtieth of the time
