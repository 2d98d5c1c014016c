"""Bias measures against independent oracles, and the grid of a real sweep, from training to the picture."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kdrun.cli import main
from kdrun.commands.eval import change_words
from kdrun.errors import DataError
from kdrun.evaluation.bias import (
    above_chance,
    agreement,
    agreement_on_errors,
    change_of,
    divergence,
    error_consistency,
    shape_bias,
)
from kdrun.evaluation.bias_grid import AT_CHANCE, CLEAN, Column, Row, column_entries
from kdrun.evaluation.predictions import Answers, read_answers, write_answers
from kdrun.evaluation.shape_bias_csv import read_decisions
from kdrun.evaluation.testsets.registry import SETS, parse_list, title
from kdrun.runs.published import published
from tests.conftest import TINY

N, K = 400, 5


def answers(seed: int, right: float, labels: np.ndarray | None = None) -> Answers:
    """Return the answers of a network that is right with probability `right`."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(K, size=N) if labels is None else labels
    predicted = np.where(generator.random(N) < right, labels, (labels + generator.integers(1, K, size=N)) % K)
    logits = generator.normal(size=(N, K))
    logits[np.arange(N), predicted] += 6
    return Answers(torch.tensor(logits).log_softmax(1).half().numpy(), logits.argmax(1), labels)


def told(predicted: list[int], labels: list[int], textures: list[int] | None = None) -> Answers:
    """Return the measures of hard decisions."""
    hard = np.log(np.full((len(labels), K), 1e-4, dtype=np.float16))
    hard[np.arange(len(labels)), predicted] = 0
    return Answers(hard, np.array(predicted), np.array(labels), None if textures is None else np.array(textures))


# --- measures -------------------------------------------------------------------------------------------------------


def test_error_consistency_is_cohens_kappa():
    from sklearn.metrics import cohen_kappa_score

    for seed in range(5):
        one, other = answers(seed, 0.7), answers(seed + 50, 0.55)
        assert error_consistency(one, other) == pytest.approx(cohen_kappa_score(one.right, other.right), abs=1e-9)
    assert error_consistency(told([0, 1], [0, 1]), told([0, 0], [0, 1])) is None


def test_divergence_is_torchs():
    teacher, student = answers(1, 0.8), answers(2, 0.6)
    p, q = (torch.tensor(one.log_probabilities.astype(np.float64)) for one in (teacher, student))
    wanted = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    assert divergence(teacher, student) == pytest.approx(float(wanted), rel=1e-3)
    assert divergence(teacher, teacher) == 0


def test_agreement_on_the_teachers_errors_by_hand():
    labels = [0] * 20
    teacher = told([1] * 10 + [2] * 4 + [0] * 6, labels)  # 14 errors
    student = told([1] * 5 + [3] * 5 + [2] * 4 + [1] * 6, labels)  # 9 of them are repeated, class and all
    assert agreement_on_errors(teacher, student) == pytest.approx(100 * 9 / 14)
    assert agreement(teacher, student) == pytest.approx(100 * 9 / 20)
    assert agreement_on_errors(told([1] * 9 + [0] * 11, labels), student) is None  # a handful of errors says nothing


@pytest.mark.parametrize(("right", "above"), [(100, True), (40, True), (24, False), (20, False), (0, False)])
def test_above_chance(right, above):
    """100 images of five classes: chance is 20 %, and 24 % is no evidence."""
    labels = np.arange(100) % 5
    predicted = np.where(np.arange(100) < right, labels, (labels + 1) % 5)
    assert above_chance(told(predicted.tolist(), labels.tolist())) is above


def test_always_the_most_frequent_class_is_chance():
    labels = [0] * 90 + [1] * 10
    assert not above_chance(told([0] * 100, labels))
    assert above_chance(told(labels, labels))


def test_shape_bias_by_hand():
    found = shape_bias(told([0, 1, 2, 3, 0, 0], [0, 0, 0, 0, 1, 0], [1, 1, 1, 1, 0, 0]))  # the last is no conflict
    assert (found.shape, found.texture, found.count) == (1, 2, 5)
    assert found.bias == pytest.approx(100 / 3)
    assert found.coverage == pytest.approx(60)
    assert shape_bias(told([3], [0], [1])).bias is None


def test_change():
    labels = [0, 1, 2, 0] * 20
    clean, derived = told([0, 1, 2, 3] * 20, labels), told([0, 1, 0, 1] * 20, labels)
    found = change_of(clean, derived)
    assert (found.clean_top1, found.top1, found.flipped) == (75, 50, 50)
    assert found.ratio == pytest.approx(2 / 3)
    assert change_of(clean, told([0, 1], [0, 1])).flipped is None
    always = told([0] * 80, labels)
    assert change_of(always, always).ratio is None  # all of nothing
    assert "no ratio: accuracy on the clean images is at chance" in change_words(change_of(always, always))


def test_no_divergence_is_below_zero():
    """Probabilities are stored in 16 bits, and rounding could make a divergence seem negative."""
    for seed in range(50):
        logits = torch.randn(20, K, generator=torch.Generator().manual_seed(seed)) / 1000
        kept = [scores.log_softmax(1).half().numpy() for scores in (logits, logits + logits.flip(0) / 100)]
        one, other = (Answers(values, values.argmax(1), np.zeros(20, dtype=np.int64)) for values in kept)
        assert divergence(one, other) >= 0


# --- grid -----------------------------------------------------------------------------------------------------------


def column(**changes: object) -> Column:
    rows = [
        Row("KD", {seed: {CLEAN: answers(10 + seed, 0.85), "noise": answers(20 + seed, 0.7)} for seed in (0, 1)}),
        Row("CAPD", {0: {CLEAN: answers(30, 0.2), "noise": answers(31, 0.2)}}),
        Row(
            "Student",
            {seed: {CLEAN: answers(40 + seed, 0.8), "noise": answers(50 + seed, 0.5)} for seed in (0, 1)},
            control=True,
        ),
        Row("DKD"),
    ]
    teacher = {CLEAN: answers(1, 0.95), "noise": answers(2, 0.9)}
    return Column(
        **{
            "name": "a → b",
            "dataset": "digits",
            "teacher_name": "a",
            "teacher": teacher,
            "rows": rows,
            "testsets": [CLEAN, "noise"],
            "names": {CLEAN: "", "noise": "noise"},
            "baseline": "Student",
            **changes,
        }
    )  # type: ignore[arg-type]


def test_entries_of_a_column():
    found = {(entry.row, entry.testset): entry for entry in column_entries(column())}
    kd = found["KD", "noise"]
    each = [(answers(20 + seed, 0.7), answers(10 + seed, 0.85)) for seed in (0, 1)]
    assert kd.accuracy.mean == pytest.approx(np.mean([one.accuracy for one, _ in each]))
    assert kd.ratio.mean == pytest.approx(np.mean([one.accuracy / clean.accuracy for one, clean in each]))
    assert kd.against == "Student"
    assert kd.shift.value == pytest.approx(kd.kept.mean - found["Student", "noise"].kept.mean)
    assert kd.shift.low < kd.shift.value < kd.shift.high
    way = found["Teacher", "noise"].shift
    assert way.value == pytest.approx(found["Teacher", "noise"].kept.mean - found["Student", "noise"].kept.mean)
    assert kd.kl.mean == pytest.approx(np.mean([divergence(answers(2, 0.9), one) for one, _ in each]))
    assert found["Teacher", "noise"].ratio.mean == pytest.approx(answers(2, 0.9).accuracy / answers(1, 0.95).accuracy)
    assert found["CAPD", "noise"].reason.startswith("at chance: seed 0 (")
    assert found["CAPD", "noise"].accuracy.mean is None
    assert found["DKD", "noise"].reason == "no finished run"
    assert found["Student", "noise"].transfer.value is None
    assert found["Student", "noise"].agreement.mean is not None  # the measure of what no teacher gave


def test_nothing_to_take_over_where_the_teacher_is_at_chance():
    teacher = {CLEAN: answers(1, 0.95), "noise": answers(2, 0.2)}
    found = {(entry.row, entry.testset): entry for entry in column_entries(column(teacher=teacher))}
    assert found["KD", "noise"].transfer.reason == AT_CHANCE
    assert found["KD", "noise"].ratio.mean is not None


def test_published_ratios_stand_beside_ours():
    rows = [
        Row(
            "LM",
            {0: {CLEAN: answers(10, 0.85), "noise": answers(20, 0.7)}},
            method="kd",
            student="timm:vit_base_patch16_224",
            teacher="timm:resnet50",
        )
    ]
    entries = column_entries(column(rows=rows, dataset="cifar10", benchmark="p0", baseline=None))
    found = {(entry.row, entry.testset): entry for entry in entries}
    assert found["LM", "noise"].published == 0.6631
    assert found["LM", "noise"].published_seconds == 815.8
    assert found["LM", CLEAN].published is None
    p0 = [one for one in published() if one.benchmark == "p0"]
    assert len([one for one in p0 if one.metric == "ratio"]) == 50
    assert {one.testset for one in p0 if one.testset} <= set(SETS)


def test_answers_come_back_only_for_the_same_question(tmp_path):
    ours, place = answers(0, 0.5), tmp_path / "evals" / "noise.answers.npz"
    assert read_answers(place, {"a": 1}) is None
    write_answers(place, ours, {"a": 1})
    found = read_answers(place, {"a": 1})
    assert found is not None
    assert np.array_equal(found.predicted, ours.predicted)
    assert np.array_equal(found.log_probabilities, ours.log_probabilities)
    assert read_answers(place, {"a": 2}) is None
    place.write_bytes(place.read_bytes()[:100])
    assert read_answers(place, {"a": 1}) is None


def test_words_of_sets():
    chosen = parse_list("noise,scramble:grid=4,offset=true,colour")
    assert [title(one) for one in chosen] == ["noise", "scramble:grid=4,offset=true", "colour"]
    assert [one.name for one in parse_list("all")] == [name for name in SETS if name != "cifar_c"]


# --- decisions ------------------------------------------------------------------------------------------------------

HEAD = "subj,session,trial,rt,object_response,category,condition,imagename\n"


def test_decisions_of_the_public_layout(tmp_path):
    """Shape of an aeroplane with the texture of a bicycle and the like; 10 is no part of a name."""
    place = tmp_path / "cue-conflict_resnet50_session-1.csv"
    answered = [
        ("bottle", "airplane1-bicycle2"),
        ("airplane", "airplane10-bear3"),
        ("bear", "airplane2-bear1"),
        ("dog", "airplane2-dog1"),
        ("airplane", "airplane10-airplane1"),
    ]
    place.write_text(
        HEAD
        + "".join(
            f"resnet50,1,{number},NaN,{response},airplane,NaN,{image}.png\n"
            for number, (response, image) in enumerate(answered)
        )
    )
    found = read_decisions(place)["resnet50"]
    assert (found.shape, found.texture, found.count) == (1, 2, 4)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\n1,2\n", "no column subj, object_response, imagename"),
        (HEAD + "r,1,1,NaN,cat,dog,NaN,plain.png\n", "imagename plain.png: expected SHAPE-TEXTURE"),
        (HEAD + "r,1,1,NaN,3,dog,NaN,dog1-cat2.png\n", "no decision names the shape or the texture"),
    ],
)
def test_decisions_of_another_kind(tmp_path, text, line):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=line):
        read_decisions(tmp_path / "d.csv")


def test_decisions_on_the_screen(tmp_path, kdrun):
    place = tmp_path / "d.csv"
    place.write_text(HEAD + "human,1,1,NaN,cat,cat,NaN,cat1-dog2.png\nhuman,1,2,NaN,dog,cat,NaN,cat2-dog2.png\n")
    code, out, _ = kdrun("bias", f"decisions={place}")
    assert code == 0
    assert "50.0" in out
    assert kdrun("bias", f"decisions={place}.not")[0] == 2


# --- a sweep --------------------------------------------------------------------------------------------------------

SWEEP = {
    "title": "Bias of a tiny pair",
    "base": [*TINY, "epochs=4"],
    "seeds": [0, 1],
    "columns": {"resnet8 → resnet8": []},
    "rows": {"KD": ["method=kd"], "Student": ["method=none"], "Random": ["method=kd", "teacher.random=true"]},
    "table": {"baseline": "Student", "testsets": ["noise", "scramble:grid=2", "cue_conflict"]},
}


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bias")
    (root / "conf" / "sweep").mkdir(parents=True)
    (root / "conf" / "sweep" / "tiny.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRUN_OUTPUTS", str(root / "outputs"))
        words = ["train", "-m", "sweep=tiny", "launcher.processes=0", "--config-dir", str(root / "conf")]
        assert main(words) == 0
    return root / "outputs"


@pytest.fixture
def trained(trained_once, outputs) -> str:
    shutil.copytree(trained_once, outputs)
    return "tiny"


@pytest.mark.pictures
def test_the_grid_of_a_sweep(trained, kdrun, outputs):
    code, out, err = kdrun("bias", trained)
    assert code == 0, out + err
    folder = outputs / "sweeps" / "tiny" / "bias"
    assert (folder / "grid.png").stat().st_size > 10_000
    with (folder / "grid.csv").open() as file:
        rows = {(row["row"], row["testset"]): row for row in csv.DictReader(file)}
    assert {row for row, _ in rows} == {"Teacher", "KD", "Student", "Random"}
    assert [rows[name, "noise"]["control"] for name in ("KD", "Student", "Random")] == ["false", "true", "true"]
    for seed in (0, 1):  # the same figures as `kdrun eval testset=…`
        run = next(outputs.glob(f"runs/*/none-resnet8/none/s{seed}-*"))
        assert kdrun("eval", str(run), "testset=noise")[0] == 0
    tops = [
        json.loads(place.read_text())["top1"] for place in outputs.glob("runs/*/none-resnet8/none/*/evals/noise.json")
    ]
    student = rows["Student", "noise"]
    if student["reason"].startswith("at chance"):
        assert student["accuracy"] == ""
    else:
        assert float(student["accuracy"]) == pytest.approx(np.mean(tops))
    stored = sorted(outputs.glob("runs/*/*/*/*/evals/*.answers.npz"))
    times = [place.stat().st_mtime_ns for place in stored]
    before = (folder / "grid.csv").read_bytes()
    assert kdrun("bias", trained, "value=kl")[0] == 0
    assert [place.stat().st_mtime_ns for place in stored] == times  # nothing is measured twice
    assert (folder / "grid.csv").read_bytes() == before


def test_one_set_that_cannot_be_made_leaves_the_others(trained, kdrun, outputs):
    code, out, err = kdrun("bias", trained, "testset=noise,scramble:grid=5")
    assert code == 0, err
    assert "testset=scramble:grid=5 is left out" in out + err
    assert "noise" in (outputs / "sweeps" / "tiny" / "bias" / "grid.csv").read_text()


def test_eval_on_derived_sets(trained, kdrun, outputs):
    run = next(outputs.glob("runs/*/none-resnet8/none/s0-*"))
    code, out, _ = kdrun("eval", str(run), "testset=cue_conflict")
    assert code == 0
    assert "shape bias" in out
    found = json.loads((run / "evals" / "cue_conflict.json").read_text())
    assert found["change"]["coverage"] is not None
    assert found["testset"]["set"] == "cue_conflict"
    assert found["top1"] == pytest.approx(found["change"]["top1"])
    assert kdrun("eval", str(run), "testset=noise", "split=train")[0] == 2


SMALL_VIT = "{depth: 2, embed_dim: 64, num_heads: 2, patch_size: 4}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (
            {"vlfkd": 15, "cskd": 25},
            [
                "teacher=resnet8",
                "student=timm:deit_tiny_distilled_patch16_224",
                f"student.kwargs={SMALL_VIT}",
                "optimizer=vit_scratch",
                "optimizer.lr=4e-3",
                "optimizer.warmup_epochs=1",
                "optimizer.epochs=8",
                "teacher.recipe.epochs=4",
            ],
        ),
        (
            {"capd": 50, "sskd method.prepare_epochs=1": 25},
            [
                "teacher=timm:vit_tiny_patch16_224",
                f"teacher.kwargs={SMALL_VIT}",
                "student=resnet8",
                "optimizer@teacher.recipe=vit_scratch",
                "optimizer.clip_norm=1",
                "optimizer.epochs=5",
                "teacher.recipe.epochs=10",
            ],
        ),
    ],
    ids=["CNN to ViT", "ViT to CNN"],
)
def test_methods_for_other_architectures_learn_the_digits(kdrun, outputs, methods, words):
    """Ten classes: chance is 10 %; a ViT learns slowly from scratch. In fp32, since bf16 is slow on some CPUs. methods:
    its words -> accuracy in per cent that it must exceed."""
    for method, least in methods.items():
        code, out, err = kdrun(
            "train",
            "dataset.image_size=16",
            *f"method={method}".split(),
            "compile=false",
            "threads=1",
            "eval_every=8",
            "precision=fp32",
            "teacher.precision=fp32",
            *words,
        )
        assert code == 0, out + err
        name = method.split()[0]
        (place,) = outputs.glob(f"runs/digits/*/{name}/*/result.json")
        result = json.loads(place.read_text())
        print(result["method"], result["top1_last"], result["teacher_top1"])
        assert result["top1_last"] > least, result


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nothing"], "nothing: no such sweep"),
        (["bias_vit_to_cnn"], "sweeps: start it with kdrun train -m sweep=bias_vit_to_cnn."),
        (["bias_vit_to_cnm"], "Did you mean bias_vit_to_cnn?"),
        ([], "bias needs the name of one sweep"),
        (["x", "value=ratoi"], "Did you mean ratio?"),
        (["x", "testsets=noise"], "Did you mean testset?"),
        (["x", "decisions=a.csv"], "takes no sweep and no other settings"),
    ],
)
def test_mistakes(kdrun, words, line):
    code, _, err = kdrun("bias", *words)
    assert code == 2
    assert line in err
