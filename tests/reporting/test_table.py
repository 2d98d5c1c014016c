"""Tables and the state of sweeps, from result files made here: no network is trained."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kdrun.errors import ConfigError
from kdrun.evaluation.differences import Sample, Spread, estimate
from kdrun.evaluation.stats import holm
from kdrun.reporting.formats import CSV_COLUMNS, latex, to_csv, to_html, to_latex, to_markdown
from kdrun.reporting.progress import progress_of
from kdrun.reporting.runs_table import ledger_of_runs
from kdrun.reporting.table import Table, table_of
from kdrun.reporting.text import to_text
from kdrun.runs.directory import RunDirectory
from kdrun.runs.identity import digest_of
from kdrun.runs.ledger import Cell, Ledger, TableShape, write_ledger
from kdrun.runs.published import published
from kdrun.runs.result import RESULT_KEYS

PAIR = {"wrn_40_2 → wrn_40_1": ("wrn_40_2", "wrn_40_1"), "wrn_40_4 → wrn_16_2": ("wrn_40_4", "wrn_16_2")}


def make_run(
    root: Path,
    method: str,
    seed: int,
    top1: float | None,
    *,
    teacher: str | None = "wrn_40_2",
    student: str = "wrn_40_1",
    dataset: str = "cifar100",
    words: tuple[str, ...] = (),
    epochs: int = 4,
    done_epochs: int = 0,
    **changes,
) -> str:
    """A run directory as a finished run leaves it, or half done where top1 is None. Returns its path below the root."""
    teacher = None if method in ("none", "ls") else teacher
    digest = digest_of([method, seed, teacher, student, dataset, words])
    place = Path("runs") / dataset / f"{teacher or 'none'}-{student}" / method / f"s{seed}-{digest[:8]}"
    folder = root / place
    folder.mkdir(parents=True)
    named = {"dataset": {"name": dataset}, "teacher": {"name": teacher or "resnet20"}, "student": {"name": student}}
    settings = {key: value for key, _, value in (word.partition("=") for word in words)}
    config = "".join(f"{key}:\n  name: {node['name']}\n" for key, node in named.items())
    config += "".join(f"{key}: {value}\n" for key, value in settings.items() if "." not in key)
    (folder / "config.yaml").write_text(f"{config}benchmark: null\nseed: {seed}\nepochs: {epochs}\n")
    command = ["kdrun train", f"method={method}", f"seed={seed}", *words]
    (folder / "provenance.json").write_text(json.dumps({"command": command, "data": {"train": 1000}}))
    rows = [f"{epoch},train,images_per_second,100.0\n" for epoch in range(1, (epochs if top1 else done_epochs) + 1)]
    (folder / "metrics.csv").write_text("epoch,split,metric,value\n" + "".join(rows))
    if top1 is None:
        (folder / "last.pt").write_bytes(b"state")
        return str(place)
    result = (
        dict.fromkeys(RESULT_KEYS)
        | {
            "schema": 1,
            "dataset": dataset,
            "teacher": teacher,
            "student": student,
            "method": method,
            "seed": seed,
            "digest": digest,
            "epochs": epochs,
            "precision": "bf16",
            "compile": False,
            "threads": 1,
            "device": "cpu",
            "teacher_top1": None if teacher is None else 76.46,
            "top1_last": top1,
            "top1_best": top1 + 0.3,
            "top1_best_epoch": 3,
            "top5_last": 90.0,
            "train_seconds": 60.0,
            "overrides": [*command[1:]],
        }
        | changes
    )
    (folder / "result.json").write_text(json.dumps(result))
    return str(place)


def cell(
    root: Path, row: str, column: str, method: str, seed: int, top1: float | None = None, make: bool = True, **more
):
    teacher, student = PAIR[column]
    more.setdefault("epochs", 240)  # as published
    run = make_run(root, method, seed, top1, teacher=teacher, student=student, **more) if make else None
    return Cell(row, column, seed, [], run, "cifar100", None if method == "none" else teacher, student, method)


NUMBERS = {  # row: method and seeds 0, 1, 2 of both columns
    "Student": ("none", (71.2, 71.5, 71.3), (73.4, 73.2, 73.6)),
    "KD": ("kd", (73.5, 73.7, 73.6), (74.9, 75.1, 75.3)),
    "SRD": ("srd", (77.7, 77.8, 77.8), (75.8, 74.9, 75.9)),
}


@pytest.fixture
def ledger(outputs) -> Ledger:
    cells = [
        cell(outputs, row, column, method, seed, top1)
        for place, column in enumerate(PAIR)
        for row, (method, *values) in NUMBERS.items()
        for seed, top1 in enumerate(values[place])
    ]
    shape = TableShape(["Student", "KD", "SRD", "DIST"], list(PAIR), "top1_last", "Student", "KD", "Teacher", "p3")
    made = Ledger("p3_table", "P3's table", "kdrun train -m sweep=p3_table", shape, cells)
    write_ledger(outputs, made)
    return made


FIRST, SECOND = PAIR


def test_an_entry_has_everything(ledger, outputs):
    table = table_of(ledger, outputs)
    assert (table.rows, table.columns) == (["Teacher", "Student", "KD", "SRD"], list(PAIR))
    kd = table.entries["KD", FIRST]
    assert kd.values == {0: 73.5, 1: 73.7, 2: 73.6}
    assert (kd.mean, kd.std) == (pytest.approx(73.6), pytest.approx(0.1))
    assert kd.delta == pytest.approx(73.6 - 71.3333333)
    assert kd.published is not None and kd.published.value == 73.56
    half = 2.919986 * 0.1 / 3**0.5  # t of two degrees of freedom at 5 % on each side
    assert (kd.verdict.word, kd.verdict.difference) == ("reproduced", pytest.approx(0.04))
    assert (kd.verdict.low, kd.verdict.high) == (pytest.approx(0.04 - half), pytest.approx(0.04 + half))
    low, high = kd.delta_interval
    assert low < kd.delta < high and low + high == pytest.approx(2 * kd.delta)
    assert kd.test is None  # it is what the others are compared with
    srd = table.entries["SRD", FIRST]
    assert srd.test is not None and srd.test.against == "KD" and srd.test.n == 3
    assert (srd.verdict.word, srd.best) == ("differs", True)
    assert table.entries["Student", SECOND].published.value == 73.45  # under `none`, without a teacher
    assert (table.done, table.total, table.precisions, table.devices) == (18, 18, {"bf16": 18}, {"cpu": 18})
    assert not table.skipped


def test_the_teachers_row(ledger, outputs):
    teacher = table_of(ledger, outputs).entries["Teacher", FIRST]
    assert (teacher.values, teacher.mean, teacher.std) == ({0: 76.46}, 76.46, None)
    assert teacher.published is not None and teacher.published.value == 76.68
    assert (teacher.verdict.word, teacher.verdict.difference) == ("too few seeds", pytest.approx(-0.22))
    assert teacher.test is None and not teacher.best


def test_a_column_is_a_family(ledger, outputs):
    """Student and SRD against KD, in each of two columns. SRD leads KD in both, so the best need no test more."""
    table = table_of(ledger, outputs)
    assert table.families == dict.fromkeys(PAIR, 2)
    for column in PAIR:
        tests = [table.entries[row, column].test for row in ("Student", "SRD")]
        assert [test.p_holm for test in tests] == pytest.approx(holm([test.p for test in tests]))
    text = to_text(table, 200)
    assert f"Against KD, {FIRST} (a family of 2 tests)" in text
    assert "2 columns are 2 families at 5 % each: without any real difference, up to 10 % of such tables" in text


def test_bold_only_if_distinguishable(ledger, outputs):
    table = table_of(ledger, outputs)
    second = table.entries["SRD", SECOND]
    assert second.mean == max(table.entries[row, SECOND].mean for row in NUMBERS)
    assert second.test.p_holm > 0.05 and not second.best
    assert "**77.77 ± 0.06 (3)**" in to_markdown(table)
    assert to_markdown(table).count("**") == 2
    assert r"\textbf{77.77 $\pm$ 0.06}" in to_latex(table)  # all have three seeds, which the caption says
    assert "<b>77.77 ± 0.06 (3)</b>" in to_html(table)
    assert "77.77 ± 0.06 (3) *" in to_text(table, 120)


def test_one_seed_each_is_no_test(outputs):
    cells = [cell(outputs, row, FIRST, method, 0, values[0]) for row, (method, values, _) in NUMBERS.items()]
    shape = TableShape(list(NUMBERS), [FIRST], "top1_last", "Student", "KD", "Teacher", "p3")
    text = to_text(table_of(Ledger("p3_table", "P3's table", "kdrun train", shape, cells), outputs), 200)
    assert "+4.20" in text and text.count("one seed: no test") == 2
    assert "One seed each: nothing is tested" in text
    assert "distinguishable" not in text and "t-tests" not in text


def test_one_row_has_no_runner_up(outputs):
    """Neither the best of a column nor a tie is reported if nothing is compared."""
    for teacher in ("wrn_40_2", "resnet56"):
        make_run(outputs, "kd", 0, 70.0, teacher=teacher)
    table = runs_table(outputs)
    assert len(table.columns) == 2 and table.rows == ["kd"]
    assert "runner-up" not in to_markdown(table)


def test_a_dash_between_figures_is_no_minus():
    assert latex("KD (τ = 4, α ≥ 0.5)") == r"KD ($\tau$ = 4, $\alpha$ $\geq$ 0.5)"
    assert latex("seeds 1–3, -0.22, wrn-40") == "seeds 1--3, $-$0.22, wrn-40"


def test_settings_that_depart_from_the_publications_are_marked(ledger, outputs):
    """In the cell, beside the published value, and in words; in every format."""
    for run in (cell.run for cell in ledger.cells if cell.row == "SRD" and cell.column == FIRST):
        place = outputs / run / "config.yaml"
        place.write_text(
            place.read_text().replace("epochs: 240", "epochs: 2") + "optimizer:\n  lr: 0.05\n  gamma: 0.2\n"
        )
    table = table_of(ledger, outputs)
    assert [entry.row for entry in table.filled() if entry.departs] == ["SRD"]
    words = "settings differ from the publication's (epochs 2, published 240; optimizer.gamma 0.2, published 0.1)"
    assert table.entries["SRD", FIRST].remarks == [f"‡ {words}"]
    assert f"‡ {words}: SRD ({FIRST})." in to_text(table, 300)
    assert "77.77 ± 0.06 (3) ‡ *" in to_text(table, 120) and "74.67 ‡" in to_text(table, 120)
    assert "**77.77 ± 0.06 (3) ‡**" in to_markdown(table) and "77.77 ± 0.06 (3) ‡" in to_html(table)
    assert r"77.77 $\pm$ 0.06 $^\ddagger$" in to_latex(table)
    assert words in to_csv(table)


def test_a_teacher_and_a_rule_that_are_not_the_published_ones_are_said(ledger, outputs):
    """wrn_40_4 has 79.16 in the publication and 76.46 here; the published figures are of the last epoch."""
    table = table_of(ledger, outputs)
    assert table.entries["KD", SECOND].remarks == ["§ the teacher has 76.46, the published one 79.16"]
    assert table.entries["KD", FIRST].remarks == table.entries["Student", SECOND].remarks == []
    ledger.shape.value = "top1_best"
    table = table_of(ledger, outputs)
    assert table.entries["Student", FIRST].remarks == [
        "† published: the last epoch; ours: the best epoch on the test set"
    ]
    assert table.entries["Teacher", FIRST].remarks == []


def test_one_teacher_or_several_is_said(ledger, outputs):
    def note() -> str:
        return table_of(ledger, outputs).notes[-1]

    assert note().startswith("All seeds share one teacher")
    for one in ledger.cells:
        place = outputs / one.run / "config.yaml"
        place.write_text(place.read_text().replace("teacher:\n", f"teacher:\n  seed: {one.seed}\n"))
    assert note().startswith("Each seed has its own teacher")
    place.write_text(place.read_text().replace("seed: 2\n", "seed: 1\n", 1))
    assert note() == "Of 4 cells, 3 have a teacher for each seed, 1 one teacher for several seeds."


def test_margin_is_a_setting(ledger, outputs, kdrun):
    ledger.shape.margin = 1  # as a YAML has it
    write_ledger(outputs, ledger)
    assert "it lies within ±1 points" in kdrun("table", "p3_table")[1]
    assert "it lies within ±0.1 points" in kdrun("table", "p3_table", "margin=0.1")[1]
    code, _, err = kdrun("table", "p3_table", "margin=0")
    assert code == 2 and "margin" in err and err.count("\n") == 1


def test_unpublished_cells_and_the_cells_own_benchmark(ledger, outputs):
    ledger.cells = [Cell(**{**vars(one), "published": False}) if one.method == "srd" else one for one in ledger.cells]
    for one in ledger.cells:
        if one.method == "kd":
            one.benchmark = "mdistiller"
    table = table_of(ledger, outputs)
    assert table.entries["SRD", FIRST].published is None and table.entries["SRD", FIRST].verdict is None
    assert table.entries["KD", FIRST].published.value == 73.54


def test_other_values(ledger, outputs):
    ledger.shape.value = "top1_best"
    table = table_of(ledger, outputs)
    assert table.entries["KD", FIRST].mean == pytest.approx(73.9)
    assert "optimistic" in table.selection
    ledger.shape.value = "top1_val_selected"
    table = table_of(ledger, outputs)
    assert table.entries["KD", FIRST].mean is None
    assert len(table.skipped) == 18 and "dataset.val_fraction" in table.skipped[0]


def test_unknown_names_are_one_clear_error(ledger, outputs, kdrun):
    ledger.shape.benchmark = "p33"
    known = ", ".join(sorted({row.benchmark for row in published()}))
    with pytest.raises(ConfigError, match=rf"benchmark=p33: .*Did you mean p3\? Available: {known}\."):
        table_of(ledger, outputs)
    for words, line in [
        (["value=top1"], "value=top1: choose top1_last or top1_best or top1_val_selected. Did you mean top1_last?"),
        (["against=SRDD"], "against=SRDD: no such row. Did you mean SRD? Available: Student, KD, SRD."),
        (["save=table.xls"], "save=table.xls: give a file that ends in .csv or .md or .tex or .html."),
        (
            ["agains=KD"],
            "agains: table takes value, against, baseline, rows, margin, output_root, caption, label, save. Did you mean "
            "against?",
        ),
    ]:
        code, out, err = kdrun("table", "p3_table", *words)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {line}"), err
        assert err.count("\n") == 1
    assert "Against SRD" in kdrun("table", "p3_table", "against=srd")[1]  # as a user types it
    code, _, err = kdrun("table", "p3_tabel")
    assert code == 2 and "Did you mean p3_table?" in err


def damage(ledger: Ledger, root: Path) -> None:
    """KD's three first runs: cut short, of another project, of another seed; SRD's first not there any more."""
    runs = [one.run for one in ledger.cells if one.row == "KD" and one.column == FIRST]
    (root / runs[0] / "result.json").write_text('{"schema": 1, "top1_last": 7')
    (root / runs[1] / "result.json").write_text('{"accuracy": 0.73}')
    (root / runs[2] / "result.json").write_bytes((root / ledger.cells[0].run / "result.json").read_bytes())
    shutil.rmtree(root / next(one.run for one in ledger.cells if one.row == "SRD"))


def test_damaged_and_foreign_results_are_named_and_passed_over(ledger, outputs, kdrun):
    damage(ledger, outputs)
    table = table_of(ledger, outputs)
    assert [line.partition("result.json: ")[2][:12] for line in table.skipped] == [
        "damaged (Exp",
        "not a result",
        "of another r",
    ]
    assert table.entries["KD", FIRST].values == {} and table.entries["KD", FIRST].missing == 3
    assert table.entries["SRD", FIRST].values == {1: 77.8, 2: 77.8}
    assert table.done == 14
    code, out, err = kdrun("table", "p3_table")
    assert (code, err) == (0, "")
    assert out.count("result.json: ") == 3 and "Skipped" in out and "14 of 18 cells done" in out
    code, out, _ = kdrun("table", str(outputs / "runs" / "*" / "*" / "*" / "*"))
    assert code == 0 and "17 runs" in out and "Skipped" in out


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"", b"null"])
def test_any_bytes_are_passed_over(ledger, outputs, content):
    run = ledger.cells[0].run
    (outputs / run / "result.json").write_bytes(content)
    (line,) = table_of(ledger, outputs).skipped
    assert line.startswith(f"{run}/result.json: damaged")


def test_failed_and_empty_cells(ledger, outputs, kdrun):
    ledger.shape.rows.append("DIST")
    ledger.cells.append(
        Cell("DIST", FIRST, 0, [], None, "cifar100", "wrn_40_2", "wrn_40_1", "dist", reason="no taps fit")
    )
    half = make_run(outputs, "at", 0, None, done_epochs=2)
    (outputs / half / "failed.txt").write_text("2026-11-21T09:49:43+00:00 loss is nan in epoch 3\nTraceback …\n")
    ledger.cells.append(Cell("AT", FIRST, 0, [], half, "cifar100", "wrn_40_2", "wrn_40_1", "at"))
    write_ledger(outputs, ledger)
    table = table_of(ledger, outputs)
    assert table.rows == ["Teacher", "Student", "KD", "SRD", "DIST", "AT"]
    assert table.entries["DIST", FIRST].failed == ["seed 0: no taps fit"]
    assert table.entries["AT", FIRST].failed == ["seed 0: loss is nan in epoch 3"]
    _, out, _ = kdrun("table", "p3_table")
    assert re.search(r"^DIST +failed +–$", out, re.MULTILINE)
    assert "18 of 20 cells done, 2 failed" in out
    assert f"AT, {FIRST}, seed 0: loss is nan in epoch 3" in out


def test_a_second_run_in_one_place_is_named(ledger, outputs):
    other = make_run(outputs, "kd", 0, 50.0, words=("epochs=9",))
    ledger.cells.append(Cell("KD", FIRST, 0, [], other, "cifar100", "wrn_40_2", "wrn_40_1", "kd"))
    table = table_of(ledger, outputs)
    assert table.entries["KD", FIRST].values[0] == 73.5
    assert table.skipped == [f"{other}: a second run of KD, {FIRST}, seed 0."]


def test_teachers_that_differ_are_said(ledger, outputs):
    place = outputs / ledger.cells[3].run / "result.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"teacher_top1": 75.0}))
    table = table_of(ledger, outputs)
    assert table.entries["Teacher", FIRST].mean == 76.46
    assert "different accuracies (76.46 (5 runs), 75.00 (1 run))" in table.notes[0]


# ── of any runs ──────────────────────────────────────────────────────────────────────────────────────────────────────


def runs_table(root: Path) -> Table:
    paths = sorted(path.parent for path in root.glob("runs/*/*/*/*/config.yaml"))
    return table_of(ledger_of_runs(paths, root), root)


def test_runs_become_methods_by_pairs(outputs):
    for seed in range(3):
        make_run(outputs, "none", seed, 71.0 + seed / 10)
        make_run(outputs, "kd", seed, 73.0 + seed / 5)
        make_run(outputs, "kd", seed, 72.0 + seed / 5, teacher="resnet56")
        make_run(outputs, "none", seed, 60.0, student="vgg8")
    table = runs_table(outputs)
    assert table.rows == ["none", "kd"]
    assert table.columns == ["cifar100 · resnet56 → wrn_40_1", "cifar100 · wrn_40_2 → wrn_40_1", "cifar100 · vgg8"]
    assert (
        table.entries["none", table.columns[0]].mean
        == table.entries["none", table.columns[1]].mean
        == pytest.approx(71.1)
    )
    assert table.entries["kd", table.columns[1]].delta == pytest.approx(2.1)
    assert table.entries["kd", table.columns[1]].test.against == "none"
    assert not table.entries["kd", table.columns[2]].planned


def test_runs_that_stand_in_two_columns_count_once_in_the_spread(outputs):
    """`ls` and `none` stand in both columns of their student."""
    for seed, (none, ls, kd) in enumerate([(71, 72.0, 73), (71.1, 72.11, 73.4), (71.3, 72.31, 73.1)]):
        make_run(outputs, "none", seed, none)
        make_run(outputs, "ls", seed, ls)
        for teacher in ("wrn_40_2", "resnet56"):
            make_run(outputs, "kd", seed, kd + seed * (teacher == "resnet56"), teacher=teacher)
    table = runs_table(outputs)
    first, second = (table.entries["ls", column].test for column in table.columns)
    assert (first.p, first.low, first.high) == (second.p, second.low, second.high)
    assert list(table.families.values()) == [3, 3]  # ls and kd against none, and the best against its runner-up
    unique = {tuple(entry.values.values()) for entry in table.entries.values()}
    spread = Spread.of(Sample.of(list(values)) for values in unique)
    assert first.p == pytest.approx(estimate([72.0, 72.11, 72.31], [71, 71.1, 71.3], spread).p)


def test_other_settings_have_rows_of_their_own(outputs):
    for seed in range(2):
        make_run(outputs, "kd", seed, 73.0, words=("epochs=2",))
        make_run(outputs, "kd", seed, 74.0, words=("epochs=2", "method.temperature=8.0"))
        make_run(outputs, "dkd", seed, 74.0, words=("epochs=2", "method.beta=2"))
    half = make_run(outputs, "kd", 2, None, words=("epochs=2", "method.temperature=8"))
    table = runs_table(outputs)
    assert table.rows == ["dkd", "kd", "kd method.temperature=8"]
    assert table.entries["kd method.temperature=8", table.columns[0]].missing == 1, half


def test_settings_that_only_the_configuration_tells(outputs):
    """The same overrides from an experiment file that has changed in between: config.yaml says what differs."""
    one = make_run(outputs, "kd", 0, 73.0, words=("epochs=2",))
    two = outputs / Path(one).with_name("s0-00000000")
    shutil.copytree(outputs / one, two)
    result = json.loads((two / "result.json").read_text())
    (two / "result.json").write_text(json.dumps(result | {"digest": "0" * 64, "top1_last": 70.0}))
    (two / "config.yaml").write_text((two / "config.yaml").read_text() + "batch_size: 8\n")
    assert runs_table(outputs).rows == ["kd", "kd batch_size=8"]
    (two / "config.yaml").write_text((outputs / one / "config.yaml").read_text())
    digest = json.loads((outputs / one / "result.json").read_text())["digest"]
    assert runs_table(outputs).rows == sorted(["kd 00000000", f"kd {digest[:8]}"])


def test_runs_by_directory_glob_and_digest(outputs, kdrun):
    runs = [make_run(outputs, "kd", seed, 73.0 + seed) for seed in range(3)]
    digest = Path(runs[1]).name.rpartition("-")[2]
    (outputs / "runs" / "cifar100" / "notes").mkdir()
    words = [
        str(outputs / runs[0]),
        str(outputs / "runs/*/*/*/s2-*"),
        digest,
        str(outputs / "runs" / "cifar100" / "notes"),
    ]
    code, out, err = kdrun("table", *words)
    assert (code, err) == (0, "")
    assert "3 runs" in out and "74.00 ± 1.00 (3)" in out and "notes: not a run (no config.yaml)" in out
    code, _, err = kdrun("table", words[-1])
    assert code == 2 and "none of these folders is a run" in err
    code, _, err = kdrun("table", str(outputs / "nothing*"))
    assert code == 2 and err.count("\n") == 1


def test_without_a_word_the_ledgers(ledger, kdrun, tmp_path):
    assert kdrun("table") == (0, "tables  p3_table\n", "")
    code, out, _ = kdrun("table", f"output_root={tmp_path / 'elsewhere'}")
    assert code == 0 and "has no sweep yet" in out


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_csv_has_every_number_and_the_same_bytes(ledger, outputs, kdrun, tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    assert kdrun("table", "p3_table", f"save={first}")[0] == 0
    ledger.cells.reverse()  # gathered in another order
    assert to_csv(table_of(ledger, outputs)) == first.read_text()
    assert kdrun("table", "p3_table", f"save={second}")[0] == 0
    assert first.read_bytes() == second.read_bytes()
    rows = list(csv.DictReader(io.StringIO(first.read_text())))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert len(rows) == 8
    kd = next(row for row in rows if (row["row"], row["column"]) == ("KD", FIRST))
    assert (kd["teacher"], kd["student"], kd["method"], kd["n"]) == ("wrn_40_2", "wrn_40_1", "kd", "3")
    assert (kd["mean"], kd["std"], kd["published"], kd["difference"]) == ("73.6", "0.1", "73.56", "0.04")
    assert (kd["low"], kd["high"], kd["margin"]) == ("-0.128585", "0.208585", "0.5")
    assert (kd["verdict"], kd["verdict_seeds"], kd["published_n"]) == ("reproduced", "", "")
    assert 1.8 < float(kd["delta_low"]) < float(kd["delta"]) < float(kd["delta_high"]) < 2.8
    srd = next(row for row in rows if (row["row"], row["column"]) == ("SRD", FIRST))
    assert (srd["against"], srd["against_difference"], srd["seeds"]) == ("KD", "4.166667", "")
    assert float(srd["against_low"]) < 4.1666 < float(srd["against_high"])
    close = next(row for row in rows if (row["row"], row["column"]) == ("SRD", SECOND))
    assert 3 <= int(close["seeds_low"]) < int(close["seeds"]) < int(close["seeds_high"])
    assert 0 < float(srd["p"]) <= float(srd["p_holm"]) < 0.05


def test_every_format_has_the_same_cells_and_notes(ledger, outputs, kdrun, tmp_path):
    files = [tmp_path / f"table{ending}" for ending in (".csv", ".md", ".tex", ".html")]
    code, out, _ = kdrun("table", "p3_table", "save=" + ",".join(map(str, files)))
    assert code == 0
    markdown, latex, page = (file.read_text() for file in files[1:])
    for text in (
        "73.60 ± 0.10 (3)",
        "75.53 ± 0.55 (3)",
        "Comparison with published values",
        "too few seeds",
        "reproduced",
        f"Against KD, {FIRST}",
        "not distinguishable",
        "Difference to Student, points [95 % interval]",
    ):
        assert text in out
        assert text in markdown
        assert text in page
        assert text in latex or " (3)" in text  # as a comment below the table
    assert "Teacher & 76.46" in latex


def test_latex_is_what_a_paper_takes(ledger, outputs, kdrun, tmp_path):
    """One table with a caption and a label; statistics are comments; failures and errors are not in it."""
    ledger.cells[3] = replace(ledger.cells[3], run=None, reason="ValueError: no such thing_here")
    write_ledger(outputs, ledger)
    place = tmp_path / "table.tex"
    assert kdrun("table", "p3_table", f"save={place}")[0] == 0
    text = place.read_text()
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert shown.count(r"\begin{table}") == shown.count(r"\begin{tabular}") == shown.count(r"\bottomrule") == 1
    assert r"\label{tab:p3-table}" in shown
    assert r"mean $\pm$ standard deviation over (seeds)" in shown  # two of KD, three of the others
    assert r"Bold: best of its column" in shown and shown.count(r"\textbf") == 1
    assert "ValueError" not in text and "% Against KD" in text
    assert "paragraph" not in shown and "itemize" not in shown and "failed" not in shown
    assert "_" not in shown.replace(r"\_", "")
    words = ["caption=Results on CIFAR-100_x", "label=tab:main", "rows=KD:Hinton et al.,srd:SRD (ours)"]
    assert kdrun("table", "p3_table", f"save={place}", *words)[0] == 0
    text = place.read_text()
    assert r"\caption{Results on CIFAR-100\_x}" in text and r"\label{tab:main}" in text
    assert r"Hinton et al. & 73.6" in text and r"SRD (ours) & \textbf{77.77" in text
    assert "Against Hinton et al." in text


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("rows=KD", "error: rows=KD: give ROW:NAME"),
        ("rows=KDD:x", "error: rows=KDD: no such row. Did you mean KD?"),
        ("rows=KD:SRD", "error: rows=KD:SRD: two rows would have the name SRD."),
    ],
)
def test_rows_that_cannot_be_renamed(word, line, ledger, kdrun):
    code, _, err = kdrun("table", "p3_table", word)
    assert (code, err.startswith(line)) == (2, True)


def test_html_is_closed_and_escaped(ledger, outputs):
    ledger.title = "A <script>alert(1)</script> & more"
    page = to_html(table_of(ledger, outputs))
    assert "<script" not in page
    open_tags = []

    class Checker(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta",):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert not open_tags
    assert "http" not in page


def test_wide_tables_fit_in_120_columns(ledger, outputs):
    """P3's shape: five columns, ten rows, labels as long as they come; and one that needs a second block."""
    base = [one for one in ledger.cells if one.column == FIRST]
    for columns in (5, 9):
        labels = [f"CIFAR-100 · wrn_40_{k} → mobilenet_v2" for k in range(columns)]
        rows = [f"row{k}" for k in range(6)] + ["SRD with DIST"]
        cells = [
            Cell(**{**vars(one), "row": f"{row}", "column": label})
            for label in labels
            for row in rows
            for one in base[:3]
        ]
        wide = Ledger("wide", "Wide", "", TableShape(rows, labels, baseline="row0"), cells)
        text = to_text(table_of(wide, outputs), 120)
        assert max(len(line) for line in text.splitlines()) <= 120
        assert len(re.findall("^row1 ", text, re.MULTILINE)) == 2 * (1 if columns == 5 else 2)
        assert text.count("71.33 ± 0.15 (3)") == columns * len(rows)


def test_stars_keep_figures_aligned(ledger, outputs):
    lines = to_text(table_of(ledger, outputs), 120).splitlines()
    places = {line.index(" ± ") for line in lines if re.match(r"(Student|KD|SRD) +\d\d\.\d\d ±", line)}
    assert len(places) == 1


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sweep_in_progress(root: Path) -> Ledger:
    """Done, half done, running, failed, not begun, and one that cannot run."""
    runs = [
        make_run(root, "kd", 0, 73.0, dataset="cifar10"),
        make_run(root, "kd", 1, 73.0, dataset="cifar10", train_seconds=100.0),
        make_run(root, "dkd", 0, 74.0, dataset="cifar10", train_seconds=200.0),
        make_run(root, "kd", 2, None, dataset="cifar10", done_epochs=1),
        make_run(root, "dkd", 1, None, dataset="cifar10", done_epochs=3),
        make_run(root, "at", 0, None, dataset="cifar10"),
    ]
    (root / runs[5] / "failed.txt").write_text("2026-11-21T09:49:43+00:00 loss is nan\n")
    methods = ["kd", "kd", "dkd", "kd", "dkd", "at"]
    cells = [
        Cell(method, FIRST, k, [], run, method=method)
        for k, (method, run) in enumerate(zip(methods, runs, strict=True))
    ]
    cells += [
        Cell("srd", FIRST, 0, [], "runs/cifar100/x-y/srd/s0-00000000", method="srd"),
        Cell("dist", FIRST, 0, [], None, method="dist", reason="two maps of 8x8 and none of 4x4"),
    ]
    made = Ledger("half", "Half", "kdrun train -m sweep=half", TableShape([], []), cells)
    write_ledger(root, made)
    return made


def test_counts_reasons_and_time_left(outputs):
    """kd takes 80 s on average and 3 of 4 epochs are left; dkd 200 s and 1 of 4; srd has only its column: 120 s."""
    progress = progress_of(sweep_in_progress(outputs), outputs)
    assert progress.counts == {"done": 3, "running": 0, "failed": 2, "unfinished": 2, "missing": 1}
    assert [reason for _, reason in progress.failed] == ["loss is nan", "two maps of 8x8 and none of 4x4"]
    assert progress.seconds == pytest.approx(80 * 3 / 4 + 200 / 4 + (60 + 100 + 200) / 3)
    assert "3 finished runs" in progress.basis and "one after another" in progress.basis


def test_running_runs_share_the_time(outputs):
    ledger = sweep_in_progress(outputs)
    runs = [RunDirectory(outputs / ledger.cells[k].run) for k in (3, 4)]
    with runs[0].lock(), runs[1].lock():
        progress = progress_of(ledger, outputs)
    assert (progress.counts["running"], progress.running) == (2, 2)
    assert progress.seconds == pytest.approx((80 * 3 / 4 + 200 / 4 + 120) / 2)
    assert "2 at a time" in progress.basis


def test_before_anything_is_finished(outputs):
    """1,000 images at 100 images/s: 10 s an epoch, and 2 of 4 epochs are left."""
    run = make_run(outputs, "kd", 0, None, done_epochs=2)
    ledger = Ledger("new", "", "", TableShape(), [Cell("kd", "", 0, [], run, method="kd")])
    assert progress_of(ledger, outputs).seconds == pytest.approx(20)
    ledger.cells = [Cell("kd", "", 0, [], "runs/a/b/c/s0-00000000", method="kd")]
    assert progress_of(ledger, outputs).seconds is None


def test_status_of_all_and_of_one(outputs, kdrun, ledger):
    sweep_in_progress(outputs)
    damaged = outputs / "sweeps" / "broken" / "cells.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    code, out, err = kdrun("status")
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert re.match(r"half +8 +3 +– +2 +2 +1 +about 3 min 50 s$", lines[1])
    assert re.match(r"p3_table +18 +18 +– +– +– +–$", lines[2])
    assert "half: failed  at, wrn_40_2 → wrn_40_1, seed 5: loss is nan" in out
    assert "half: to continue: kdrun train -m sweep=half" in out
    assert "skipped:" in out and "broken" in out
    code, out, _ = kdrun("status", "p3_table")
    assert code == 0 and "half" not in out
    code, _, err = kdrun("status", "p3_tabel")
    assert code == 2 and "Did you mean p3_table?" in err
    assert kdrun("status", "speed=3")[0] == 2


def test_status_names_epoch_loss_and_accuracy_of_what_trains(outputs, kdrun):
    run = outputs / make_run(outputs, "kd", 0, None)
    write_ledger(
        outputs,
        Ledger(
            "new",
            "",
            "",
            TableShape(["KD"], ["pair"]),
            [Cell("KD", "pair", 0, [], str(run.relative_to(outputs)), method="kd")],
        ),
    )
    rows = [(1, "train", "loss", 2.5), (1, "test", "top1", 61.25), (2, "train", "loss", 1.5), (2, "test", "top1", 60.0)]
    RunDirectory(run).append_metrics(rows)
    assert "in training" not in kdrun("status")[1]
    with RunDirectory(run).lock():
        lines = kdrun("status")[1].splitlines()
    assert next(line for line in lines if line.startswith("KD, pair, seed 0")).split()[-4:] == [
        "2/4",
        "1.500",
        "60.00",
        "61.25",
    ]


def test_watching_ends_when_nothing_is_left(outputs, kdrun, ledger, monkeypatch):
    from kdrun.commands import status

    run = outputs / make_run(outputs, "at", 9, None)
    ledger.cells.append(Cell("AT", FIRST, 9, [], str(run.relative_to(outputs)), method="at"))
    write_ledger(outputs, ledger)
    shown = []

    def wait(seconds: float) -> None:
        shown.append(seconds)
        if len(shown) == 2:
            ledger.cells.pop()
            write_ledger(outputs, ledger)

    monkeypatch.setattr(status.time, "sleep", wait)
    code, out, _ = kdrun("status", "watch=true")
    assert (code, shown) == (0, [status.EVERY] * 2)
    assert out.count("time left") >= 3


def test_no_sweep_no_error(kdrun):
    code, out, err = kdrun("status")
    assert (code, err) == (0, "") and "has no sweep yet" in out


# ── speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """2,000 finished runs: 4 pairs, 20 methods, 25 seeds, and their ledger."""
    root = tmp_path_factory.mktemp("large")
    cells = []
    for k in range(2000):
        method, pair, seed = f"m{k % 20}", k // 20 % 4, k // 80
        run = make_run(root, method, seed, 70 + k % 20 / 10 + (k * 7919 % 101) / 200, teacher=f"resnet{pair}")
        cells.append(
            Cell(method, f"resnet{pair} → wrn_40_1", seed, [], run, "cifar100", f"resnet{pair}", "wrn_40_1", method)
        )
    write_ledger(root, Ledger("large", "Large", "", TableShape(baseline="m0", against="m0"), cells))
    return root


@pytest.mark.parametrize("words", [["table", "large"], ["table", "GLOB"], ["status"]])
def test_two_thousand_runs_in_three_seconds(large, words):
    """With Python's start; the processor time of the process, so that a busy machine does not decide."""
    words = [str(large / "runs/*/*/*/*") if word == "GLOB" else word for word in words]
    script = (
        "import sys, time; from kdrun.cli import main; code = main(sys.argv[1:]); "
        "print(f'seconds {time.process_time():.2f}', 'torch' in sys.modules, 'pandas' in sys.modules); sys.exit(code)"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *words, f"output_root={large}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seconds, torch, pandas = re.search(r"seconds ([\d.]+) (\w+) (\w+)", done.stdout).groups()
    assert float(seconds) < 3, f"{time.perf_counter() - begun:.2f} s on the clock"
    assert (torch, pandas) == ("False", "False")
    assert "2,000" in done.stdout
