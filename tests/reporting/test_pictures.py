"""Pictures: uniform colours with a scale, figures that can be read in a column of a paper, and vector formats."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kdrun.evaluation.transfer import Interval
from kdrun.reporting import bias_picture
from kdrun.reporting.bias_picture import draw_heat_map, folded, shift_label
from kdrun.reporting.cam_panel import HEAT, Column, draw_panel
from kdrun.runs.pictures import pyplot, write_figure

COLUMN = 3.3  # inches
LEAST = 5.0  # points, below which nobody reads a figure in print


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text")) if text.get_text()]


@pytest.fixture
def panel():
    maps = np.stack([np.linspace(0, 1, 64).reshape(8, 8)] * 2)
    column = Column(("resnet8 kd", "seed 0"), maps, np.array([0, 0]), np.array([0, 0]), np.array([0.9, 0.5]))
    figure = draw_panel(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), ["cat", "dog"], [column], "Grad-CAM")
    yield figure
    pyplot().close(figure)


def test_right_and_wrong_differ_by_more_than_colour(panel):
    assert "✓ cat, 90 %" in texts(panel)
    assert "✗ cat, 50 %" in texts(panel)


def test_heat_is_perceptually_uniform_and_has_a_scale(panel):
    """Lightness grows steadily along the map: what looks stronger is stronger, in grey and to every eye."""
    pyplot()
    import matplotlib

    red, green, blue, _ = matplotlib.colormaps[HEAT](np.linspace(0, 1, 64)).T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all()
    assert any(axes.get_ylabel() == "evidence for the class" for axes in panel.axes)


def entry(value: float | None, ratio: float | None = None, low: float | None = None, high: float | None = None):
    return SimpleNamespace(
        row="KD",
        shift=Interval(value, low, high),
        transfer=Interval(ratio),
        kept=SimpleNamespace(mean=50.0),
        control=False,
        seeds=3,
    )


def test_a_shift_has_a_minus_sign_a_star_and_its_share():
    assert shift_label(entry(-3.14, 0.5, -4.0, -2.0)) == "−3.1 *\n= 0.50"
    assert shift_label(entry(1.0, None, -1.0, 3.0)) == "1.0"
    assert shift_label(entry(1.0, -2.5)) == "1.0\n≤ −2.50"


@pytest.mark.parametrize("sets", [3, 5, 9])
def test_a_bias_map_can_be_read_at_the_width_of_a_column(sets, monkeypatch):
    monkeypatch.setattr(bias_picture, "TEACHER", "Teacher")
    names = [f"noise:size=8,sigma=0.{place}" for place in range(sets)]
    entries = {(row, name): entry(3.0, 0.5, 1.0, 5.0) for row in ("Teacher", "Student", "KD") for name in names}
    column = SimpleNamespace(name="resnet8x4 → vit", testsets=["clean", *names])
    figure = draw_heat_map(SimpleNamespace(of=lambda _: entries), column)  # type: ignore[arg-type]
    try:
        scale = COLUMN / figure.get_size_inches()[0]
        smallest = min(text.get_fontsize() for axes in figure.axes for text in axes.texts)
        assert smallest * scale >= LEAST
        assert "−" not in "".join(texts(figure)) or "-" not in "".join(texts(figure))
    finally:
        pyplot().close(figure)


def test_names_of_test_sets_fold():
    assert folded("noise:size=8,sigma=0.3") == "noise\nsize=8\nsigma=0.3"
    assert folded("cue_conflict") == "cue_\nconflict"


@pytest.mark.pictures
def test_a_figure_is_written_in_every_format_that_is_asked_for(panel, tmp_path):
    files = write_figure(panel, tmp_path / "cam.png", ["pdf", "svg"])
    assert [file.name for file in files] == ["cam.png", "cam.pdf", "cam.svg"]
    assert [file.read_bytes()[:4] for file in files] == [b"\x89PNG", b"%PDF", b"<?xm"]


def runs_of(*curves: list[float]):
    from kdrun.reporting.html.run_files import RunFiles

    return [
        RunFiles("run", 0, "KD", "pair", seed, "done", curves={("test", "top1"): list(enumerate(curve, 1))})
        for seed, curve in enumerate(curves)
    ]


def test_a_band_is_the_mean_and_one_deviation_of_the_epochs_that_all_seeds_have():
    from kdrun.reporting.html.run_files import band_of

    band = band_of(runs_of([50, 60, 70], [52, 62]), ("test", "top1"))
    assert band == [(1, 51, pytest.approx(2**0.5)), (2, 61, pytest.approx(2**0.5))]
    assert band_of(runs_of([50, 60]), ("test", "top1")) == [(1, 50, 0), (2, 60, 0)]
    assert band_of(runs_of([50, 60]), ("train", "top1")) == []


def test_a_report_draws_the_curves_of_a_sweep_with_the_teachers_line(outputs, kdrun, monkeypatch):
    from kdrun.reporting import curve_picture
    from kdrun.runs.ledger import Cell, Ledger, TableShape, write_ledger
    from tests.reporting.test_table import make_run

    cells = []
    for row, method in (("Student", "none"), ("KD", "kd")):
        for seed in (0, 1):
            run = make_run(outputs, method, seed, 70.0 + seed)
            lines = "".join(f"{epoch},test,top1,{50 + 5 * epoch + seed}\n" for epoch in (1, 2, 3, 4))
            (outputs / run / "metrics.csv").write_text(f"epoch,split,metric,value\n{lines}")
            teacher = None if method == "none" else "wrn_40_2"
            cells.append(Cell(row, "pair", seed, [], run, "cifar100", teacher, "wrn_40_1", method))
    write_ledger(
        outputs,
        Ledger(
            "mine",
            "Mine",
            "",
            TableShape(["Student", "KD"], ["pair"], baseline="Student", teacher_row="Teacher"),
            cells,
        ),
    )
    drawn = []
    write = curve_picture.write_figure

    def keep(figure, place, formats):
        drawn.extend(line.get_label() for axes in figure.axes for line in axes.lines)
        return write(figure, place, [])

    monkeypatch.setattr(curve_picture, "write_figure", keep)
    code, out, err = kdrun("report", "mine", "figures=pdf,svg")
    assert (code, err) == (0, "")
    assert drawn == ["Student (2)", "KD (2)", "Teacher"]
    assert "mine_curves.png" in out and (outputs / "tables" / "mine_curves.png").is_file()


def test_the_axis_of_operations_is_named_as_they_are_counted():
    """resnet20 at 32 px has 40.8 million multiply-adds in the papers, and 81.6 million operations here."""
    from kdrun.reporting.html.figures import COSTS

    axis, unit = next((axis, unit) for key, axis, unit, _ in COSTS if key == "flops")
    assert axis == "FLOPs per image (a multiply-add counts as two)" and unit == "FLOPs"
