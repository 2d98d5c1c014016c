"""Values reach the configuration as they were typed: paths with every character that a file name may have, lists, names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kdrun.config.arguments import check_place, parts_of
from kdrun.config.compose import load
from kdrun.config.method_rules import METHOD_RULES, OUR_METHOD_RULES, method_rules
from kdrun.config.settings import KINDS, method_settings, nearest, settings
from kdrun.config.words import quoted, rewrite, unquoted
from kdrun.errors import ConfigError
from kdrun.sweeps.definition import multirun_sweep

PATHS = [
    "~/photos",
    "größe/日本",
    "a,b",
    "p(1)",
    "x#y",
    "[br]",
    "d/[br]",
    "{c}",
    "it's",
    'the "best"',
    "a = b",
    "epoch=9-step=880.ckpt",
    "my model (1).pth",
    "back\\slash\\",
    "\\'",
    "it\\'s\\",
    "100%",
    "a:b",
    "-x",
    "!run",
    "a&b;c|d",
    "choice(a,b)",
    "3",
    "1e5",
    "trüe",
    "null/x",
    " leading",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_is_typed(path):
    keys = ["dataset.root", "teacher.checkpoint", "student.pretrained", "output_root"]
    config = load([f"{key}={path}" for key in keys])
    found = [config.dataset.root, config.teacher.checkpoint, config.student.pretrained, config.output_root]
    assert found == [path] * len(keys)
    spec = multirun_sweep(["seed=0,1", f"output_root={quoted(path)}"], None).specs[0]
    assert spec.overrides == ["seed=0", f"output_root={path}"]


@pytest.mark.parametrize(("typed", "meant"), [("'a, b'", "a, b"), ('"~/x"', "~/x"), ("null", None)])
def test_quotes_of_hydra_still_count(typed, meant):
    assert load([f"dataset.root={typed}"]).dataset.root == meant


def test_references_in_paths_are_followed(monkeypatch):
    monkeypatch.setenv("PHOTOS", "/größe, 1")
    assert load(["dataset.root=${oc.env:PHOTOS}/it's"]).dataset.root == "/größe, 1/it's"


def test_commas_of_a_multirun_are_part_of_a_path_that_exists(tmp_path):
    folder = tmp_path / "a,b"
    folder.mkdir()
    whole = multirun_sweep([f"dataset.root={folder}", "seed=0,1"], None).specs
    assert [spec.overrides for spec in whole] == [[f"dataset.root={folder}", f"seed={seed}"] for seed in (0, 1)]
    two = multirun_sweep(["dataset.root=ä/b,c d"], None).specs
    assert [spec.overrides for spec in two] == [["dataset.root=ä/b"], ["dataset.root=c d"]]
    assert [spec.row for spec in two] == ["dataset.root=ä/b", "dataset.root=c d"]


@pytest.mark.parametrize("text", [*PATHS, "\\", "\\\\", "'", "\\'", "''"])
def test_quoting_is_undone(text):
    assert unquoted(f"output_root={quoted(text)}") == f"output_root={text}"


def test_names_in_any_letters():
    config = load(["student=größe.netz:Net", "student.kwargs.art=weiß", "teacher=timm:resnet18,x"])
    assert (config.student.name, config.student.kwargs) == ("größe.netz:Net", {"art": "weiß"})
    assert config.teacher.name == "timm:resnet18,x"
    specs = multirun_sweep(["student=ä:N,ö:N"], None).specs
    assert [load(spec.overrides).student.name for spec in specs] == ["ä:N", "ö:N"]


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ("lr", "optimizer.lr"),
        ("temperature", "method.temperature"),
        ("workers", "dataset.workers"),
        ("learning_rate", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("num_workers", "dataset.workers"),
        ("wd", "optimizer.weight_decay"),
        ("optimiser.lr", "optimizer.lr"),
        ("recipe.lr", "teacher.recipe.lr"),
        ("teacher_lr", "teacher.recipe.lr"),
        ("padding", "dataset.augment.crop_padding"),
        ("rotation", "dataset.augment.rotation"),
        ("kwargs.depth", "teacher.kwargs.depth or student.kwargs.depth"),
        ("checkpoint", "teacher.checkpoint or student.checkpoint"),
        ("sead", "seed"),
        ("model", "student"),
    ],
)
def test_the_nearest_setting_is_found_anywhere_in_the_tree(wrong, names):
    assert nearest(wrong) == f" Did you mean {names}?"


def test_what_resembles_nothing_has_no_nearest():
    assert nearest("zzyzx") == ""


def test_pluses_are_not_needed_and_do_no_harm():
    words = ["+epochs=3", "++method.temperature=2", "+student.kwargs.depth=2"]
    config = load(words)
    assert (config.epochs, config.method["temperature"], config.student.kwargs) == (3, 2.0, {"depth": 2})


def test_what_hydra_itself_runs_keeps_its_own_settings():
    words = ["hydra/launcher=joblib", "+hydra.launcher.n_jobs=2", "seed=0"]
    assert rewrite(words, None, several=True, hydra=True) == words
    with pytest.raises(ConfigError, match="are only for its launchers"):
        rewrite(words, None, several=True)


# Numbers that need no upper bound, with the reason.
UNBOUNDED = {
    "dataset.train_limit": "more images than there are means all",
    "dataset.test_limit": "more images than there are means all",
}


def bounded(rules) -> bool:
    return ("low" in rules or "over" in rules) and ("high" in rules or "under" in rules)


def test_every_number_has_bounds_or_a_reason_to_have_none():
    numbers = {key: known.rules for key, known in settings().items() if known.kind in (int, float) or known.numbers}
    assert len(numbers) > 50
    assert {key for key, rules in numbers.items() if not bounded(rules)} == set(UNBOUNDED)


def test_every_number_of_a_method_has_bounds():
    from kdrun.config.groups import group_files, read_yaml
    from kdrun.config.method_schema import read_method

    numbers = {}
    for path in group_files("method").values():
        source = read_method(read_yaml(path)["_target_"])
        numbers |= {
            key: method_rules(key, ours=True) for key, kind in source.parameters.items() if kind in ("int", "float")
        }
    assert len(numbers) > 40
    assert [key for key, rules in numbers.items() if not bounded(rules)] == []
    assert method_rules("alpha", ours=False) == {}  # a user's alpha may mean something else
    assert not METHOD_RULES.keys() & OUR_METHOD_RULES.keys()
    assert len(method_settings()) > 40
    assert KINDS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.csv", ["a.csv"]),
        ("a.csv,b.json", ["a.csv", "b.json"]),
        ("a,b.csv,c.json", ["a,b.csv", "c.json"]),
        ("a.csv,", ["a.csv"]),
        ("~/a b,c.json", ["~/a b,c.json"]),
    ],
)
def test_commas_in_names_of_files_separate_nothing(text, found):
    assert parts_of(text, Path, {"suffixes": (".csv", ".json")}) == found


def test_a_file_that_is_there_may_have_any_commas(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert parts_of(str(tmp_path / "a,b"), Path, {}) == [str(tmp_path / "a,b")]
    assert parts_of("a,b", Path, {}) == ["a", "b"]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "table.csv"
    file.touch()
    folder.mkdir()
    for path, kind, line in (
        (file, "FOLDER", f"save={file}: {file} is a file, but a folder is needed."),
        (file / "x" / "table.csv", "FILE", f"{file} is a file, but a folder is needed."),
        (folder, "FILE", f"save={folder} is a folder: name a file in it."),
    ):
        with pytest.raises(ConfigError, match=re.escape(line)):
            check_place("save", path, kind)
    for path, kind in ((tmp_path / "new" / "folder", "FOLDER"), (tmp_path / "new" / "a.csv", "FILE"), (file, "FILE")):
        check_place("save", path, kind)
    check_place("save", folder, "FILE|FOLDER")
