"""A name used again: which table is kept."""

from __future__ import annotations

from tests.conftest import TINY

SWEEP = """
base: [dataset=fake, dataset.fake_train=20, dataset.fake_test=10, teacher=resnet8, student=resnet8, epochs=1]
seeds: [0]
columns: {"": []}
rows: {Student: [method=none]}
"""


def test_a_sweep_never_replaces_a_multiruns_table(kdrun, outputs, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(SWEEP)
    own = ["sweep=mine", "--config-dir", str(tmp_path), "launcher.processes=0"]
    assert kdrun("train", "-m", *TINY, "epochs=1", "method=none", "name=mine", "launcher.processes=0")[0] == 0
    unnamed = ["train", "-m", *TINY, "epochs=1", "method=none", "launcher.processes=0"]
    assert [kdrun(*unnamed)[0] for _ in range(2)] == [0, 0]
    before = (outputs / "sweeps" / "mine" / "cells.json").read_bytes()
    code, _, err = kdrun("train", "-m", *own)
    assert code == 2 and "a multirun has this name" in err and "name=mine-2" in err
    assert (outputs / "sweeps" / "mine" / "cells.json").read_bytes() == before
    assert kdrun("train", "-m", *own, "name=mine-2")[0] == 0
    assert kdrun("train", "-m", *own, "name=mine-2")[0] == 0  # a sweep's own table is written again


def test_status_says_that_a_commands_part_is_not_the_sweep(kdrun, outputs, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(SWEEP.replace("[0]", "[0, 1]"))
    words = ["sweep=mine", "--config-dir", str(tmp_path), "launcher.processes=0", "seed=0"]
    assert kdrun("train", "-m", *words)[0] == 0
    _, out, _ = kdrun("status", "mine")
    assert "to continue: kdrun train -m sweep=mine" in out and "trains only seed=0; without, it trains" in out


def test_a_table_names_its_sweeps_of_other_settings(kdrun, outputs, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(SWEEP)
    words = ["sweep=mine", "--config-dir", str(tmp_path), "launcher.processes=0", "batch_size=10"]
    assert kdrun("train", "-m", *words)[0] == 0
    (name,) = [path.name for path in (outputs / "sweeps").iterdir()]
    code, out, err = kdrun("table", "mine", "--config-dir", str(tmp_path))
    assert (code, err) == (0, "") and f"started with other settings: kdrun table {name}" in out
