"""Every named sweep expands into cells that compose, reaches what is published, and mistakes in a YAML get one line."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kdrun.config.compose import load
from kdrun.config.groups import choices, conf_dir, published_methods
from kdrun.config.method_schema import read_method
from kdrun.config.options import RunConfig
from kdrun.errors import ConfigError
from kdrun.runs.ledger import TableShape, changes_numbers
from kdrun.runs.published import Published, published
from kdrun.sweeps.cells import CellSpec
from kdrun.sweeps.definition import Sweep, named_sweep, read_sweep

CONF = conf_dir()
SCRIPTS = CONF.parent / "scripts"
LARGE = ("mdistiller_same", "mdistiller_different")


def expand(name: str, *words: str) -> Sweep:
    """With the cells that `words` choose."""
    sweep = named_sweep(name, words, None, None)
    sweep.specs = [spec for spec in sweep.specs if spec.chosen]
    return sweep


def test_a_part_keeps_the_whole_ledger():
    whole = named_sweep("digits_table", ["row=KD", "seed=7"], None, None).specs
    assert len(whole) == 14 * 6
    assert [(spec.row, spec.overrides[-1]) for spec in whole if spec.chosen] == [("KD", "seed=7")]


def places(sweep: Sweep) -> Counter[tuple[str, str, str]]:
    return Counter((spec.row, spec.column, spec.overrides[-1]) for spec in sweep.specs)


def key_of(config: RunConfig) -> tuple[str | None, str, str, str, str]:
    """(benchmark, dataset, teacher, student, method) as the reference files have them."""
    method = read_method(config.method["_target_"])
    teacher = config.teacher.name if method.needs_teacher else ""
    return config.benchmark, config.dataset.name, teacher, config.student.name, method.name


def figures(benchmark: str) -> dict[tuple[str | None, str, str, str, str], Published]:
    return {
        (row.benchmark, row.dataset, row.teacher, row.student, row.method): row
        for row in published()
        if row.benchmark == benchmark
    }


def parts(spec: CellSpec) -> set[str]:
    """The identity of a cell: its row, its column, and each of its arguments."""
    return {f"row {spec.row}", f"column {spec.column}", *spec.overrides}


def covering(specs: list[CellSpec]) -> Iterator[CellSpec]:
    """Cells in which every row, column and word of a sweep occurs."""
    left = set().union(*map(parts, specs))
    while left:
        spec = max(specs, key=lambda spec: len(left & parts(spec)))
        left -= parts(spec)
        yield spec


@pytest.mark.parametrize("name", [name for name in choices("sweep") if name != "cifar100_table"])
def test_every_row_column_and_word_composes(name):
    """One seed of each: seeds change nothing else. Whether a pair of a benchmark has a method's recipe is looked for
    below, and every recipe composes in tests/config/test_groups.py. All cells of cifar100_table are composed where its
    published values are looked for."""
    for spec in covering(expand(name, "seed=0").specs):
        assert load(spec.overrides).seed == 0, (spec.row, spec.column)


@pytest.mark.parametrize("name", choices("sweep"))
def test_places_are_distinct_and_named(name):
    sweep = expand(name)
    content = read_sweep(name, None)
    found = places(sweep)
    assert set(found.values()) == {1}
    assert {row for row, _, _ in found} == set(sweep.shape.rows)
    assert {column for _, column, _ in found} == set(sweep.shape.columns)
    assert {seed for _, _, seed in found} == {f"seed={seed}" for seed in content["seeds"]}
    assert not any("," in label for label in [*sweep.shape.rows, *sweep.shape.columns])  # row=A,B chooses two
    assert sweep.shape.baseline in sweep.shape.rows and sweep.shape.against in sweep.shape.rows
    assert sweep.shape.teacher_row not in sweep.shape.rows


@pytest.mark.parametrize("name", choices("sweep"))
def test_opens_with_command_cost_and_expectation(name):
    head = (CONF / "sweep" / f"{name}.yaml").read_text().split("title:")[0]
    assert f"#   kdrun train -m sweep={name} " in head
    assert re.search(r"^# Costs .*\b(GPU-hours?|no GPU)\b", head, re.MULTILINE) and re.search("estimate|measured", head)
    assert "# Expect" in head


@pytest.mark.parametrize("name", [name for name in choices("sweep") if name not in LARGE])
def test_the_baseline_has_no_teacher(name):
    sweep = expand(name, "seed=0")
    specs = [spec for spec in sweep.specs if spec.row == sweep.shape.baseline]
    assert {spec.column for spec in specs} == set(sweep.shape.columns)
    assert not read_method(load(specs[0].overrides).method["_target_"]).needs_teacher


def test_the_compression_table_reaches_every_published_cell():
    wanted = figures("p3")
    cells = {
        (spec.row, spec.column): (key_of(load(spec.overrides)), spec.published)
        for spec in expand("cifar100_table", "seed=0").specs
    }
    reached = {key for key, shown in cells.values() if shown}
    teachers = {("p3", "cifar100", "", key[2], "none") for key, _ in cells.values() if key[2]}
    alone = [f"resnet{depth}" for depth in (8, 14, 20, 32, 56, 110)] + ["wrn_16_1", "mobilenet_v2_x0_5"]
    others = {("p3", "cifar100", "", name, "none") for name in alone} | {
        ("p3", "cifar100", "resnet110", "resnet32", "kd")
    }
    assert set(wanted) - reached - teachers == others
    column = "WRN-40-4 → WRN-16-4"
    assert wanted[cells["SRDwithDIST", column][0]].value == 80.39
    assert not cells["SRDwithDIST (B = 4)", column][1]
    assert cells["SRDwithDIST (B = 4)", "WRN-40-4 → WRN-16-2"][1]
    assert wanted[cells["DML", column][0]].value == wanted[cells["DML (peer WRN-16-4)", column][0]].value == 78.69
    blank = [place for place, (key, _) in cells.items() if key not in wanted]
    assert sorted(blank) == [
        (row, f"{teacher} → MobileNetV2")
        for row in ("AT", "SRD", "SRDwithDIST")
        for teacher in ("ResNet-18", "WRN-40-4")
    ]


def test_networks_on_their_own_are_as_in_p3s_notebook():
    """TestAcc of notebooks/Plot_Results.ipynb, in its order."""
    names = [
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet56",
        "resnet110",
        "wrn_16_1",
        "wrn_16_2",
        "wrn_16_4",
        "wrn_40_1",
        "wrn_40_2",
        "wrn_40_4",
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v2_x0_5",
    ]
    values = [
        "61.53",
        "68.08",
        "69.18",
        "71.28",
        "72.34",
        "74.61",
        "67.85",
        "73.45",
        "76.91",
        "71.3",
        "76.68",
        "79.16",
        "78.13",
        "69.66",
        "65.87",
    ]
    found = {key[3]: item.value for key, item in figures("p3").items() if not key[2]}
    assert found == dict(zip(names, map(float, values), strict=True))


def test_the_assistant_teaches_with_p3s_settings():
    (config,) = [load(spec.overrides) for spec in expand("teacher_assistant", "row=KD", "seed=0").specs]
    assert (config.teacher.name, config.student.name, config.teacher.checkpoint) == (
        "resnet32",
        "resnet14",
        "<assistant>",
    )
    assert (config.epochs, config.batch_size, config.optimizer.milestones) == (350, 128, [150, 250, 320])
    assert [config.method[name] for name in ("temperature", "ce_weight", "kd_weight")] == [4.0, 0.1, 0.9]


P0 = {  # row -> epochs, batch, optimizer, lr and the method's settings of the cells of P0's notebooks
    "bias_cnn_to_vit_p0": {
        "LM": (10, 32, "adam", 1e-3, {"temperature": 3, "ce_weight": 1, "kd_weight": 1}),
        "CRD": (5, 32, "adam", 1e-3, {"negatives": 4096, "temperature": 0.1, "crd_weight": 1}),
        "CSKD": (1, 32, "adam", 1e-3, {"deit_variant": "soft", "temperature": 2, "alpha": 0.5, "decay": "linear"}),
        "VLFKD": (5, 32, "adam", 1e-3, {"global_weight": 0.5, "patch_weight": 0.3, "linguistic_weight": 0.2}),
        "Independent": (5, 32, "adam", 1e-3, {}),
    },
    "bias_vit_to_cnn_p0": {
        "LM": (2, 32, "adam", 1e-4, {"temperature": 3, "ce_weight": 1, "kd_weight": 1}),
        "CRD": (5, 32, "adam", 1e-4, {"negatives": 4096, "temperature": 0.1, "crd_weight": 1}),
        "CAPD": (5, 64, "adam", 1e-4, {"adversarial_weight": 0.1}),
        "SSKD": (3, 64, "sgd", 0.05, {"prepare_epochs": 1, "rotated_weight": 2.7, "similarity_dropped": 0.25}),
        "Independent": (2, 32, "adam", 1e-3, {}),
    },
}


@pytest.mark.parametrize("name", P0)
def test_p0s_notebooks_settings(name):
    found = {spec.row: load(spec.overrides) for spec in expand(name, "seed=0").specs}
    assert set(found) == set(P0[name])
    for row, (epochs, batch, optimizer, rate, method) in P0[name].items():
        config = found[row]
        assert (config.epochs, config.batch_size) == (epochs, batch), row
        assert (config.optimizer.name, config.optimizer.lr) == (optimizer, rate), row
        assert {key: config.method[key] for key in method} == method, row
        assert config.teacher.recipe.epochs == (10 if name == "bias_cnn_to_vit_p0" else 1)
        assert not config.dataset.augment.changes


def test_p0s_report_trains_every_student_for_three_epochs():
    """final_report.pdf, section 3.1."""
    for name in ("bias_cnn_to_vit_224", "bias_vit_to_cnn_224"):
        found = [load(spec.overrides) for spec in expand(name, "seed=0", "row=LM,Independent").specs]
        assert {(config.epochs, config.teacher.recipe.epochs) for config in found} == {(3, 1)}


def test_ambiguous_cells_have_their_own_settings():
    found = {
        (spec.row, spec.column): load(spec.overrides)
        for spec in expand("cifar100_table", "seed=0", "column=WRN-40-4 → WRN-16-4").specs
    }
    weights = {row: config.method["srd_weight"] for (row, _), config in found.items() if row.startswith("SRDwith")}
    assert weights == {"SRDwithDIST": 10.0, "SRDwithDIST (B = 4)": 4.0}
    peers = {row: config.teacher.name for (row, _), config in found.items() if row.startswith("DML")}
    assert peers == {"DML": "wrn_40_4", "DML (peer WRN-16-4)": "wrn_16_4"}


FIGURES = {  # method -> the row of its source, pairs in the order of PAIRS; "-" where it has none
    # HobbitLong/RepDistiller README
    "cc": "73.56 72.21 69.63 69.48 71.48 72.97 70.71 64.86 65.43 70.25 71.14 71.29 71.38",
    # xuguodong03/SSKD README
    "sskd": "76.04 76.13 71.49 - - 76.20 75.33 71.53 72.57 75.76 78.44 78.61 77.40",
    # sunshangquan/logit-standardization-KD README
    "mlkd": "76.63 75.35 72.19 71.89 74.11 77.08 75.18 70.57 71.04 - - 78.44 -",
}
PAIRS = [
    "wrn_40_2_wrn_16_2",
    "wrn_40_2_wrn_40_1",
    "resnet56_resnet20",
    "resnet110_resnet20",
    "resnet110_resnet32",
    "resnet32x4_resnet8x4",
    "vgg13_vgg8",
    "vgg13_mobilenet_v2_x0_5",
    "resnet50_mobilenet_v2_x0_5",
    "resnet50_vgg8",
    "resnet32x4_shufflenet_v1",
    "resnet32x4_shufflenet_v2",
    "wrn_40_2_shufflenet_v1",
]


@pytest.mark.parametrize("method", FIGURES)
def test_rows_of_mdistiller_are_those_of_their_readme(method):
    found = {
        f"{item.teacher}_{item.student}": item.value
        for item in published()
        if (item.benchmark, item.method) == ("mdistiller", method)
    }
    row = dict(zip(PAIRS, FIGURES[method].split(), strict=True))
    assert found == {pair: float(value) for pair, value in row.items() if value != "-"}
    assert set(found) == {pair for pair in choices("pair") if method in published_methods("mdistiller", pair)}


def test_the_heads_of_mdistillers_sweeps_hold_the_published_values():
    for name, pairs in (("mdistiller_same", PAIRS[:7]), ("mdistiller_different", PAIRS[7:])):
        head = (CONF / "sweep" / f"{name}.yaml").read_text().split("title:")[0]
        rows = {row: words["method"] for row, words in methods_of(name).items()}
        values = {(f"{key[2]}_{key[3]}", key[4]): item.value for key, item in figures("mdistiller").items()}
        for row, method in rows.items():
            line = re.search(rf"^#   {row} +([-0-9. ]+?)(?:±.*)?$", head, re.MULTILINE)
            assert line is not None, row
            shown = [None if word == "-" else float(word) for word in line[1].split()]
            assert method == "none" or shown == [values.get((pair, method)) for pair in pairs], row


def methods_of(name: str) -> dict[str, dict[str, str]]:
    """Row -> its overrides by key."""
    rows = read_sweep(name, None)["rows"]
    return {row: dict(word.split("=", 1) for word in words) for row, words in rows.items()}


def test_the_tutorial_reaches_every_published_cell():
    cells = [(key_of(load(spec.overrides)), spec.row) for spec in expand("tutorial", "seed=0").specs]
    values = {row: figures("p1")[key].value for key, row in cells if key in figures("p1")}
    assert values == {"Student": 66.32, "Cosine": 65.0, "Regressor MSE": 65.98}
    assert figures("p1")["p1", "cifar10", "", "deepnn", "none"].value == 71.77
    config = load(expand("tutorial", "seed=0", "row=Cosine").specs[0].overrides)
    assert (config.epochs, config.optimizer.lr, config.teacher.recipe.epochs) == (50, 5e-5, 50)


def test_mdistiller_has_every_recipe_and_nothing_else():
    """The grid without its skipped places is what conf/recipe holds for the thirteen pairs."""
    recipes = {
        f"mdistiller_{pair}_{name}" for pair in choices("pair") for name in published_methods("mdistiller", pair)
    }
    found = set()
    for name in LARGE:
        for spec in expand(name, "seed=0").specs:
            given = dict(word.split("=", 1) for word in spec.overrides)
            if given["method"] != "none":
                found.add(f"mdistiller_{given['pair']}_{given['method']}")
    assert found == recipes


def test_other_views_have_no_published_value():
    specs = {(spec.row, spec.column): spec for spec in expand("consistent_teaching", "seed=0").specs}
    views = {place: load(spec.overrides).teacher_view for place, spec in specs.items()}
    assert views["Clean view", "DIST"] == "clean" and views["Independent view", "KD"] == "independent"
    for (row, _), spec in specs.items():
        assert spec.published is (row in ("Student", "Same view"))


def test_the_short_schedule_is_exactly_its_base():
    """Its runs are found by their settings: another word here would train them all again."""
    spec = expand("cifar100_short", "row=KD", "seed=2").specs[0]
    assert spec.overrides == [
        "teacher=wrn_16_2",
        "student=wrn_16_1",
        "dataset=cifar100",
        "optimizer.schedule=cosine",
        "epochs=20",
        "teacher.recipe.schedule=cosine",
        "teacher.recipe.epochs=20",
        "compile=false",
        "method=kd",
        "seed=2",
    ]


def test_digits_table_is_as_large_as_promised():
    sweep = expand("digits_table")
    assert len(sweep.shape.rows) >= 11 and len(sweep.specs) == 5 * len(sweep.shape.rows)
    config = load(sweep.specs[0].overrides)
    assert (config.dataset.train_fraction, config.epochs, config.threads) == (0.1, 120, 1)


def test_words_on_the_command_line_win_and_rename():
    plain, short = expand("digits_table"), expand("digits_table", "epochs=2")
    assert plain.name == "digits_table"
    assert re.fullmatch(r"digits_table-[0-9a-f]{8}", short.name)
    assert short.name == expand("digits_table", "epochs=2", "output_root=/tmp/x", "dataset.root=/y").name
    assert short.name != expand("digits_table", "epochs=3").name
    assert load(short.specs[0].overrides).epochs == 2
    assert named_sweep("digits_table", ["epochs=2"], "mine", None).name == "mine"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("output_root", False),
        ("dataset.root", False),
        ("++dataset.root", False),
        ("launcher.processes", False),
        ("hydra/launcher", False),
        ("~hydra.sweeper", False),
        ("sweep", False),
        ("dataset", True),
        ("dataset.name", True),
        ("threads", True),
        ("method.temperature", True),
        ("names", True),
    ],
)
def test_settings_that_change_no_numbers(key, changes):
    """A ledger keeps its name, and a table its rows, wherever the files lie."""
    assert changes_numbers(key) is changes


def test_extends(tmp_path):
    folder = own_sweep(tmp_path)
    longer = tmp_path / "sweep" / "longer.yaml"
    longer.write_text("extends: mine\nbase: [dataset=fake, epochs=7]\n")
    ours, theirs = named_sweep("longer", [], None, folder), named_sweep("mine", [], None, folder)
    assert [(spec.row, spec.column) for spec in ours.specs] == [(spec.row, spec.column) for spec in theirs.specs]
    assert all("epochs=7" in spec.overrides for spec in ours.specs if spec.overrides[0] == "dataset=fake")
    longer.write_text("extends: longer\n")
    with pytest.raises(ConfigError, match=re.escape("sweep/longer.yaml: extends: longer: it extends itself.")):
        named_sweep("longer", [], None, folder)
    longer.write_text("extends: mein\n")
    with pytest.raises(ConfigError, match=re.escape("sweep=mein: no such sweep. Did you mean mine?")):
        named_sweep("longer", [], None, folder)
    longer.write_text("extends: mine\ntable: {testsets: [nois]}\n")
    with pytest.raises(ConfigError, match=r"table\.testsets: testset=nois: no such set\. Did you mean noise"):
        named_sweep("longer", [], None, folder)


def test_parts_of_a_sweep():
    sweep = expand("digits_table", "row=KD,DKD", "seed=0,3")
    assert sweep.name == "digits_table"
    assert sorted(places(sweep)) == [
        (row, "resnet20 → resnet8", f"seed={seed}") for row in ("DKD", "KD") for seed in (0, 3)
    ]
    column = expand("cifar100_table", "column=WRN-40-2 → WRN-40-1", "seed=1")
    assert len(column.specs) == 8


GOOD = {
    "base": ["dataset=fake"],
    "seeds": [0],
    "columns": {"one": [], "two": []},
    "rows": {"Student": ["method=none"], "KD": ["method=kd"]},
    "cells": [{"row": "Other", "column": "one", "overrides": ["method=dkd"], "published": False}],
    "skip": [{"row": "KD", "column": "two", "why": "no reason"}],
    "table": {"baseline": "Student", "against": "KD"},
}


def own_sweep(folder: Path, **changes: object) -> str:
    """A folder for --config-dir with one sweep, `mine`."""
    (folder / "sweep").mkdir(exist_ok=True)
    (folder / "sweep" / "mine.yaml").write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return str(folder)


def test_a_sweep_of_ones_own(tmp_path):
    sweep = named_sweep("mine", [], None, own_sweep(tmp_path))
    assert [(spec.row, spec.column, spec.published) for spec in sweep.specs] == [
        ("Student", "one", True),
        ("KD", "one", True),
        ("Other", "one", False),
        ("Student", "two", True),
    ]
    assert sweep.shape == TableShape(["Student", "KD", "Other"], ["one", "two"], baseline="Student", against="KD")
    assert sweep.specs[2].overrides == ["dataset=fake", "method=dkd", "seed=0"]


def test_a_cell_replaces_the_grids(tmp_path):
    cells = [{"row": "KD", "column": "one", "overrides": ["method=kd", "method.temperature=2"]}]
    sweep = named_sweep("mine", ["row=KD"], None, own_sweep(tmp_path, cells=cells))
    assert [spec.overrides for spec in sweep.specs if spec.chosen] == [
        ["dataset=fake", "method=kd", "method.temperature=2", "seed=0"]
    ]


CELL = GOOD["cells"][0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"row": {}}, "row: no such key. Did you mean rows?"),
        ({"rows": ["KD"]}, "rows: expected a dict"),
        ({"rows": {"KD": "method=kd"}}, "rows: KD: expected a list of overrides"),
        ({"rows": {"KD": [{"method": "kd"}]}}, "rows: KD: expected a list of overrides"),
        ({"base": [1]}, "base: expected a list of overrides"),
        ({"seeds": ["a"]}, "seeds: expected whole numbers"),
        ({"cells": [CELL, CELL]}, "2 cells for row Other, column one"),
        ({"cells": [{"row": "KD", "column": "one"}]}, "overrides is missing"),
        ({"cells": [{**CELL, "publish": False}]}, "cells: publish: no such key. Did you mean published?"),
        ({"cells": [{**CELL, "published": "no"}]}, "published true or false"),
        ({"skip": [{"row": "Kd", "column": "two", "why": ""}]}, "skip: Kd: no such row."),
        ({"skip": [{"row": "KD", "column": "too", "why": ""}]}, "skip: too: no such column. Did you mean two?"),
        ({"table": {"base": "KD"}}, "table.base: no such key. Did you mean baseline?"),
        ({"table": {"against": "KDD"}}, "table.against: KDD: no such row. Did you mean KD?"),
        (
            {"table": {"benchmark": "p33"}},
            "table.benchmark: p33: no such benchmark with published values. Did you mean p3?",
        ),
    ],
)
def test_mistakes_in_a_yaml(tmp_path, changes, line):
    with pytest.raises(ConfigError) as error:
        named_sweep("mine", [], None, own_sweep(tmp_path, **changes))
    assert str(error.value).startswith("sweep/mine.yaml: ") and line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rows:\n  KD: [method=kd]\n  KD: [method=dkd]\n", "'KD' occurs twice, line 3"),
        ("rows: {KD: [method=kd]\n", "sweep/mine.yaml, line 2: not valid YAML"),
        ("", "expected keys and values"),
        ("- KD\n", "expected keys and values"),
    ],
)
def test_damaged_yaml(tmp_path, text, line):
    folder = own_sweep(tmp_path)
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(line)):
        named_sweep("mine", [], None, folder)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("row=DKDD", "row=DKDD: sweep digits_table has no such row. Did you mean DKD? Available: Student, KD,"),
        ("column=x", "column=x: sweep digits_table has no such column."),
        ("seed=one", "seed=one: the seeds of a named sweep are whole numbers"),
    ],
)
def test_unknown_parts(word, line):
    with pytest.raises(ConfigError, match=re.escape(line)):
        expand("digits_table", word)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("reproduce_*.sh")), ids=lambda path: path.stem)
def test_shell_sweeps(script, tmp_path):
    """Each calls `kdrun train` for sweeps that there are, then `kdrun table`; here with a kdrun that only says so."""
    fake = tmp_path / "scripts"
    fake.mkdir()
    for path in (script, SCRIPTS / "sweep", SCRIPTS / "project"):
        (fake / path.name).write_text(path.read_text())
        (fake / path.name).chmod(path.stat().st_mode)
    for name, text in {"scripts/setup": "", ".venv/bin/kdrun": 'echo "kdrun $*"'}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    assert os.access(script, os.X_OK)
    head = script.read_text().split("set -euo pipefail")[0]
    assert re.search("estimate|measured", head) and ("xpect" in head or "published" in head)
    parts = re.findall(r"\[([a-z_]+)\|([a-z_]+)\]", head)
    for words in [[], ["seed=0"], *([part] for pair in parts for part in pair)]:
        done = subprocess.run([fake / script.name, *words], capture_output=True, text=True, check=True)
        trained = re.findall(r"^kdrun train -m sweep=(\w+)(.*)$", done.stdout, re.MULTILINE)
        assert trained and {name for name, _ in trained} <= set(choices("sweep"))
        assert all(rest.strip() == ("seed=0" if words == ["seed=0"] else "") for _, rest in trained)
        assert re.findall(r"^kdrun table (\w+)$", done.stdout, re.MULTILINE) == [name for name, _ in trained]
    other = subprocess.run([fake / script.name, "epochs=2"], capture_output=True, text=True, check=True)
    assert "epochs=2" in other.stdout and "kdrun table" not in other.stdout
    named = subprocess.run([fake / script.name, "epochs=2", "name=mine"], capture_output=True, text=True, check=True)
    assert "kdrun table mine" in named.stdout
