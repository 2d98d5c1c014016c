"""A run's settings compared with those of its publication."""

from __future__ import annotations

import pytest

from kdrun.config.compose import load
from kdrun.config.schema import to_yaml
from kdrun.reporting.departures import differing_words, published_settings, same
from kdrun.runs.published import published


@pytest.mark.parametrize(
    ("benchmark", "teacher", "student", "method", "words", "said"),
    [
        ("p3", "resnet18", "mobilenet_v2", "kd", (), []),
        ("mdistiller", "vgg13", "vgg8", "mlkd", (), []),
        ("mdistiller", "", "wrn_16_2", "none", ("seed=3", "precision=fp32", "teacher.recipe.lr=0.3"), []),
        (
            "p3",
            "wrn_40_2",
            "wrn_40_1",
            "kd",
            ("epochs=20", "method.temperature=2", "teacher.seed=1", "threads=1"),
            ["method.temperature 2.0, published 4.0", "epochs 20, published 240"],
        ),
        (
            "mdistiller",
            "vgg13",
            "vgg8",
            "kd",
            ("teacher.recipe.epochs=9", "+student.kwargs.width=2", "dataset.train_fraction=0.1"),
            [
                "teacher.recipe.epochs 9, published 240",
                "student.kwargs.width 2",
                "dataset.train_fraction 0.1, published none",
            ],
        ),
    ],
)
def test_what_departs(tmp_path, benchmark, teacher, student, method, words, said):
    pair = {"vgg13": "vgg13_vgg8", "": "wrn_40_2_wrn_16_2"}.get(teacher, f"{teacher}_{student}")
    config = load([f"benchmark={benchmark}", f"pair={pair}", f"method={method}", *words])
    (tmp_path / "config.yaml").write_text(to_yaml(config, {}))
    theirs = next(
        row
        for row in published()
        if (row.benchmark, row.teacher, row.student, row.method, row.metric)
        == (benchmark, teacher, student, method, "top1")
    )
    assert published_settings().departures(tmp_path, theirs) == said


def test_spellings_of_one_value():
    assert same("5e-5", 0.00005) and same(1, 1.0) and same([1, "2"], [1.0, 2]) and same(True, "true")
    assert not same("zeros", "reflect") and not same([1], [1, 2]) and not same(None, 0)


def test_many_settings_are_counted():
    words = differing_words({f"student.a{place}": 1 for place in range(9)}, {}, True)
    assert len(words) == 5 and words[-1] == "and 5 more"
