"""The command line changes a named sweep's cells, but not what makes a row or a column itself."""

from __future__ import annotations

import pytest

from kdrun.config.compose import load
from kdrun.errors import ConfigError
from kdrun.sweeps.applying import applying
from kdrun.sweeps.definition import named_sweep


def configs(name: str, *words: str):
    """Composed cells of seed 0 by row."""
    specs = named_sweep(name, [*words, "seed=0"], None, None).specs
    return {spec.row: load(spec.overrides) for spec in specs if spec.chosen}


def test_another_teacher_with_its_weights_leaves_the_controls_theirs(tmp_path, capsys):
    """Self-distillation became distillation from the command line's teacher, under its own label."""
    weights = tmp_path / "resnet56.pth"
    found = configs("bias_cnn_to_vit_cifar10", "teacher=resnet56", f"teacher.checkpoint={weights}", "epochs=20")
    taught, alone, random = found["LM"], found["Self-distillation"], found["Random teacher"]
    assert (taught.teacher.name, taught.teacher.checkpoint) == ("resnet56", str(weights))
    assert (alone.teacher.name, alone.teacher.checkpoint) == ("vit_cifar_tiny", None)
    assert (random.teacher.name, random.teacher.checkpoint, random.teacher.random) == ("resnet56", None, True)
    assert {config.epochs for config in found.values()} == {20}
    assert capsys.readouterr().err.splitlines() == [
        "note: teacher=resnet56: not for Self-distillation, which chooses otherwise.",
        f"note: teacher.checkpoint={weights}: not for Self-distillation, Random teacher, which choose otherwise.",
    ]


def test_another_student_leaves_the_rows_theirs_that_need_a_token():
    found = configs("bias_cnn_to_vit", "student=resnet8")
    assert {row for row, config in found.items() if config.student.name != "resnet8"} == {
        *("CSKD", "DeiT", "Independent distilled"),
    }


def test_a_label_in_other_letters_is_recognised():
    with pytest.raises(ConfigError, match=r"no such row\. Did you mean KD\?"):
        named_sweep("digits_table", ["row=Kd"], None, None)


def test_a_part_of_a_sweep_is_the_same_cell_in_the_same_ledger():
    """A control alone, with the words of the whole sweep, some of which are not for it."""
    words = ["teacher.checkpoint=F", "epochs=3"]
    whole = named_sweep("bias_cnn_to_vit_short", words, None, None)
    part = named_sweep("bias_cnn_to_vit_short", [*words, "row=Self-distillation"], None, None)
    assert part.name == whole.name
    assert [spec.overrides for spec in part.specs] == [spec.overrides for spec in whole.specs]


def test_a_columns_teacher_takes_a_file():
    """One column at a time: the file fits its network, or is refused when it is loaded."""
    words = ["column=ResNet-56 → ResNet-14", "teacher.checkpoint=resnet56.pth"]
    chosen = [spec for spec in named_sweep("capacity", words, None, None).specs if spec.chosen]
    assert chosen and all("teacher.checkpoint=resnet56.pth" in spec.overrides for spec in chosen)


def test_pretrained_files_are_for_one_network():
    words = ["teacher.pretrained=resnet50.pth", "student.pretrained=vit.pth"]
    specs = {spec.row: spec.overrides for spec in named_sweep("bias_cnn_to_vit_224", words, None, None).specs}
    assert set(words) <= set(specs["LM"])
    assert words[0] not in specs["Self-distillation"] and words[1] not in specs["CSKD"]


def test_runs_that_others_start_from_stay_what_they_are():
    """The file is for the assistant's teacher; the students' teacher is the assistant."""
    sweep = named_sweep("teacher_assistant", ["teacher.checkpoint=resnet110.pth", "epochs=2"], None, None)
    assert all("teacher.checkpoint=resnet110.pth" not in spec.overrides for spec in sweep.specs)
    assert all("teacher.checkpoint=<assistant>" in spec.overrides for spec in sweep.specs)
    assert {"epochs=2", "teacher.checkpoint=resnet110.pth"} <= set(sweep.before["assistant"])


def test_a_column_keeps_its_weights(capsys):
    found = named_sweep("colour_invariance", ["teacher.checkpoint=usual.pth"], None, None).specs
    words = {spec.column: [word for word in spec.overrides if "checkpoint" in word] for spec in found}
    assert list(words.values()) == [["teacher.checkpoint=usual.pth"], ["teacher.checkpoint=<colour>"]]
    assert "not for Colour-invariant VGG-16 → VGG-11, which chooses otherwise." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("digits_table", "method=dkd"),
        ("capacity", "teacher=resnet8"),
        ("cifar100_table", "pair=wrn_40_2_wrn_40_1"),
    ],
)
def test_a_word_that_would_make_all_rows_or_columns_the_same_is_refused(name, word):
    with pytest.raises(ConfigError, match=f"^{word}: every row or column of sweep {name} has its own"):
        named_sweep(name, [word], None, None)


@pytest.mark.parametrize(
    ("own", "given", "left"),
    [
        (["method=kd"], ["method.kd_weight=2", "epochs=3"], ["method.kd_weight=2", "epochs=3"]),
        (["student=a"], ["student.kwargs.x=1", "student.checkpoint=f"], ["student.kwargs.x=1"]),
        (["student=a"], ["student=b", "student.kwargs.x=1", "student.mean=[0,0,0]"], []),
        (["teacher=a"], ["teacher=b", "teacher.recipe.epochs=5", "teacher.seed=1"], ["teacher.recipe.epochs=5", "teacher.seed=1"]),
        (["teacher.random=true"], ["teacher=b", "teacher.pretrained=f", "teacher.checkpoint=f"], ["teacher=b"]),
        (["optimizer@teacher.recipe=a"], ["optimizer@teacher.recipe=b", "optimizer=c"], ["optimizer=c"]),
    ],
)  # fmt: skip
def test_what_a_row_sets_itself_stays(own, given, left):
    assert applying(own, [], given) == left
