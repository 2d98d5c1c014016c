"""P1, P2 and P4 as experiments and scripts: what the projects state is what composes, and every step of the scripts
runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.config.compose import load
from kdrun.errors import KdrunError
from kdrun.files import read_json
from kdrun.runs.checkpoints import weights_file
from kdrun.runs.curves import draw_curves
from kdrun.runs.directory import RunDirectory
from kdrun.sweeps.definition import named_sweep
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
FOUND = 'case "$1" in where) echo "place-of-$2";; esac\necho "kdrun $*" >> "$KDRUN_CALLS"'


def test_p1_is_as_published():
    """P1's README: 50 epochs, rate 5e-5, batch 128, weights 0.25 and 0.75, ImageNet's mean and std."""
    config = load(["experiment=p1_deepnn_lightnn"])
    assert (config.teacher.name, config.student.name, config.dataset.name) == ("deepnn", "lightnn", "cifar10")
    for recipe in (config.optimizer, config.teacher.recipe):
        assert (recipe.name, recipe.epochs, recipe.batch_size, recipe.lr) == ("adam", 50, 128, 5e-5)
        assert (recipe.schedule, recipe.weight_decay) == ("constant", 0.0)
    assert (config.epochs, config.batch_size) == (50, 128)
    assert (config.dataset.mean, config.dataset.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    augment = config.dataset.augment
    assert augment.crop == "none" and augment.flip == 0 and not augment.warps and not augment.jitters
    assert (config.method["ce_weight"], config.method["cosine_weight"]) == (0.75, 0.25)
    regressor = load(["experiment=p1_deepnn_lightnn", "method=hint_regressor"]).method
    assert (regressor["ce_weight"], regressor["hint_weight"]) == (0.75, 0.25)
    assert load(["experiment=p1_deepnn_lightnn", "method=none"]).method["_target_"].endswith("none.Independent")


@pytest.mark.parametrize("method", ["none", "kd", "ls", "dkd", "fitnet_joint", "crd_inbatch"])
def test_p2_is_as_published(method):
    """P2's README: VGG-16 → VGG-11, CIFAR-100, batch 128, SGD momentum 0.9, cosine annealing, T = 4."""
    config = load(["experiment=p2_vgg", f"method={method}"])
    assert (config.teacher.name, config.student.name, config.dataset.name) == ("vgg16", "vgg11", "cifar100")
    for recipe in (config.optimizer, config.teacher.recipe):
        assert (recipe.name, recipe.momentum, recipe.schedule, recipe.batch_size) == ("sgd", 0.9, "cosine", 128)
        assert 0.001 <= recipe.lr <= 0.05 and 40 <= recipe.epochs <= 200
    if method in ("kd", "dkd"):
        assert config.method["temperature"] == 4.0
    if method == "kd":
        assert 0.5 <= config.method["kd_weight"] <= 1.0


def test_p2_colour():
    """The teacher is trained on from a file, on jittered images; the student sees none, and is CRD's."""
    teacher = load(["experiment=p2_colour_teacher", "student.checkpoint=x"])
    assert (teacher.student.name, teacher.dataset.name) == ("vgg16", "cifar100")
    assert teacher.dataset.augment.jitters and teacher.dataset.augment.crop == "padded"
    assert 0.001 <= teacher.optimizer.lr <= 0.05 and 40 <= teacher.epochs <= 200
    student = load(["experiment=p2_colour_student", "teacher.checkpoint=x"])
    assert student.method == load(["experiment=p2_vgg", "method=crd_inbatch"]).method
    assert not student.dataset.augment.jitters


def test_p2_colour_is_a_sweep_without_a_typed_path():
    """The usual teacher is trained on with jittered images, and that run teaches the second column."""
    found = named_sweep("colour_invariance", [], None, None)
    assert list(found.before) == ["usual", "colour"]
    assert found.before["colour"][-1] == "student.checkpoint=<usual.teacher>"
    cells = {(spec.row, spec.column.partition(" ")[0]): spec.overrides for spec in found.specs}
    assert len(found.specs) == 4 * 3 and len(cells) == 4
    assert ["teacher.checkpoint=<colour>" in cells["CRD", column] for column in ("VGG-16", "Colour-invariant")] == [
        0,
        1,
    ]
    crd, usual = load(cells["CRD", "Colour-invariant"]), load(cells["CRD", "VGG-16"])
    assert (crd.method, crd.optimizer) == (usual.method, usual.optimizer)
    with pytest.raises(KdrunError, match="no such file"):
        weights_file(str(crd.teacher.checkpoint), "teacher.checkpoint")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("p2_colour_teacher", "student.checkpoint=TEACHER/teacher.safetensors: no such file."),
        ("p2_colour_student", "teacher.checkpoint=RUN: no such file."),
    ],
)
def test_p2_colour_never_trains_without_its_start(kdrun, name, line):
    """The usual teacher in the place of a forgotten file would be taken for the colour-invariant one."""
    code, _, err = kdrun("train", f"experiment={name}", "dataset=fake")
    assert (code, err.count("\n")) == (2, 1) and line in err


def test_p2_jitter_is_that_of_the_test_set():
    from kdrun.evaluation.testsets.colour import Colour

    augment = load(["experiment=p2_colour_teacher", "student.checkpoint=x"]).dataset.augment
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert getattr(augment, name) == getattr(Colour(), name), name


def test_p4_is_as_published():
    """P4's README: DeiT-S → ResNet-50, both pretrained, 224 px, Dropout + Linear, T = 5, StepLR, 20 epochs."""
    config = load(["experiment=p4_vit_to_resnet", "dataset.root=x"])
    assert config.teacher.name == "timm:deit_small_distilled_patch16_224"
    assert (config.student.name, config.student.head) == ("torchvision:resnet50", "dropout_linear")
    assert (config.teacher.pretrained, config.student.pretrained) == ("true", "true")
    assert (config.dataset.name, config.dataset.image_size, config.dataset.resize) == ("folder", 224, "stretch")
    augment = config.dataset.augment
    assert augment.crop == "none" and augment.flip == 0.5 and augment.rotation > 0 and augment.jitters
    assert (config.method["temperature"], config.epochs, config.optimizer.schedule) == (5.0, 20, "step")
    assert config.method["ce_weight"] + config.method["kd_weight"] == 1


def test_p4s_notebook_has_its_own_settings():
    """Final_Year_Project.ipynb: AdamW 1e-3, StepLR(5, 0.1), T = 5, alpha = 0.7, batch 32, a teacher's head as drawn."""
    config = load(["experiment=p4_notebook", "dataset.root=x"])
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 1e-3, 0.01)
    assert (optimizer.schedule, optimizer.step_epochs, optimizer.gamma) == ("step", 5, 0.1)
    assert [config.method[name] for name in ("temperature", "ce_weight", "kd_weight")] == [5.0, 0.3, 0.7]
    assert (config.epochs, config.batch_size, config.student.head_dropout) == (20, 32, 0.5)
    assert config.teacher.random and config.teacher.pretrained == "true"


# --- the scripts ---


def tree(tmp_path: Path, kdrun: str) -> Path:
    """The scripts beside a .venv/bin/kdrun of the given body, with nothing to set up."""
    root = tmp_path / "tree"
    (root / ".venv/bin").mkdir(parents=True)
    (root / "scripts").mkdir()
    for path in (ROOT / "scripts").iterdir():
        (root / "scripts" / path.name).write_text(path.read_text())
        (root / "scripts" / path.name).chmod(0o755)
    (root / "scripts/setup").write_text("#!/usr/bin/env bash\n")
    (root / ".venv/bin/kdrun").write_text(f"#!/usr/bin/env bash\n{kdrun}\n")
    (root / ".venv/bin/kdrun").chmod(0o755)
    return root


def calls(tmp_path: Path, script: str, *words: str) -> list[list[str]]:
    """Return the commands that the script gives kdrun, in order."""
    root = tree(tmp_path, FOUND)
    place = tmp_path / "calls"
    subprocess.run(
        [root / "scripts" / script, *words],
        check=True,
        env={**os.environ, "KDRUN_CALLS": str(place)},
        capture_output=True,
    )
    return [line.split()[1:] for line in place.read_text().splitlines()]


@pytest.mark.parametrize(
    ("script", "words", "wanted"),
    [
        ("reproduce_p1.sh", [], "train table where where where where testset predict predict predict predict export"),
        (
            "reproduce_p1.sh",
            ["images=photos"],
            "train table where where where where predict predict predict predict export",
        ),
        ("reproduce_p1.sh", ["row=Cosine"], "train table"),
        (
            "reproduce_p2.sh",
            ["methods", "seed=2"],
            "train table where where where where where where where eval gradcam",
        ),
        ("reproduce_p2.sh", ["capacity"], "train table"),
        ("reproduce_p2.sh", ["dry_run=true", "seed=0"], "train train train"),
        ("reproduce_p2.sh", ["colour", "seed=1"], "train table bias"),
        ("reproduce_p4.sh", ["dataset.root=x"], "train table where eval"),
        ("reproduce_p4.sh", ["dataset.root=x", "launcher=slurm"], "train"),
    ],
)
def test_the_scripts_steps(tmp_path, script, words, wanted):
    """Each step is there, and what it trains and asks for composes; the user's settings reach every run."""
    found = calls(tmp_path, script, *words)
    assert [call[0] for call in found] == wanted.split()
    for call in found:
        settings = [word for word in call[1:] if "=" in word and not word.startswith(("sweep=", "name=", "launcher="))]
        if call[0] == "where" or (call[0] == "train" and "-m" not in call):
            load(settings)
            assert all(word in settings for word in words if word.startswith("dataset."))
        if call[0] == "train" and "-m" in call and not any(word.startswith("sweep=") for word in call):
            load([word.partition(",")[0] for word in settings])
    seeds = [word for word in words if word.startswith("seed=")]
    students = [call for call in found if call[:2] == ["where", "run"]]
    assert all((seeds or ["seed=0"])[0] in call for call in students)


def test_a_step_that_fails_ends_the_script(tmp_path):
    root = tree(tmp_path, '[ "$1" != where ] || exit 1\necho "kdrun $*"')
    done = subprocess.run([root / "scripts/reproduce_p1.sh"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "kdrun table tutorial" in done.stdout and "predict" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["resnet34_resnet18", "resnet50_mobilenet_v1"])
def test_imagenets_pairs_on_a_tree_of_a_hundred_classes(kdrun, outputs, tmp_path, pair):
    """The benchmark's own recipe and networks on small images, its teacher without the weights that it would fetch."""
    shades = np.random.default_rng(0).integers(0, 256, size=(100, 3), dtype=np.uint8)
    for split, count in (("train", 4), ("val", 1)):
        for label, shade in enumerate(shades):
            (tmp_path / split / f"n{label:08d}").mkdir(parents=True)
            for number in range(count):
                image = np.broadcast_to(shade, (80, 96, 3)) + np.uint8(number)
                Image.fromarray(image).save(tmp_path / split / f"n{label:08d}" / f"{number}.JPEG")
    words = [f"dataset.root={tmp_path}", "dataset.image_size=64", "epochs=1", "batch_size=64", "threads=1"]
    untrained = ["teacher.pretrained=false", "teacher.random=true", "precision=fp32"]
    code, out, err = kdrun("train", "benchmark=imagenet", f"pair={pair}", "method=dkd", *words, *untrained)
    assert (code, err) == (0, ""), out
    assert "100 classes" in out and "400 train, 100 test" in out
    (result,) = outputs.glob("runs/imagenet/*/dkd/s0-*/result.json")
    assert 0 <= read_json(result)["top1_last"] <= 100


def test_imagenets_teachers_stay_as_published():
    """torchvision's weights, not trained any further; recipes have their sources' batch and rate."""
    config = load(["benchmark=imagenet", "pair=resnet50_mobilenet_v1", "method=dkd", "dataset.root=x"])
    assert (config.teacher.pretrained, config.teacher.recipe.epochs) == ("true", 0)
    assert (config.epochs, config.batch_size, config.optimizer.lr) == (100, 512, 0.2)
    assert (config.method["nckd_weight"], config.method["temperature"]) == (2.0, 1.0)
    review = load(["benchmark=imagenet", "pair=resnet34_resnet18", "method=reviewkd", "dataset.root=x"])
    assert (review.batch_size, review.optimizer.lr, review.method["review_weight"]) == (256, 0.1, 1.0)
    assert review.optimizer.milestones == [30, 60, 90]


@pytest.mark.slow
def test_p4_from_images_to_curves(tmp_path):
    """The whole script on two classes of real pixels, by the real kdrun, in processes of their own as a sweep has them:
    decoding and streaming there must be allowed to start further ones."""
    for label, shade in (("B", 40), ("M", 200)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 40), (shade, 10 * number, 90)).save(tmp_path / "images" / label / f"{number}.png")
    root = tree(tmp_path, f'export PYTHONPATH={ROOT}\nexec {sys.executable} -m kdrun "$@"')
    words = [
        f"dataset.root={tmp_path}/images",
        f"output_root={tmp_path}/out",
        "seed=0",
        "epochs=2",
        "teacher=resnet8",
        "student=resnet8",
        "teacher.recipe.epochs=1",
        "teacher.pretrained=false",
        "student.pretrained=false",
        "dataset.image_size=32",
        "dataset.workers=1",
        "batch_size=8",
        "teacher.recipe.batch_size=8",
        "launcher.processes=1",
        "threads=1",
    ]
    done = subprocess.run([root / "scripts/reproduce_p4.sh", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "out/runs/folder/resnet8-resnet8/kd").iterdir()
    assert f"{run}/curves.png" in done.stdout
    rows = {(split, metric) for _, split, metric, _ in RunDirectory(run).read_metrics()}
    assert {("train", "loss"), ("train", "top1"), ("test", "nll"), ("test", "top1")} <= rows
    assert (run / "evals/test.json").is_file()


@pytest.mark.pictures
def test_curves_hold_loss_and_accuracy_of_every_split(tmp_path, monkeypatch):
    """The lines that are drawn, by their labels and last values."""
    import matplotlib.pyplot as plt

    drawn: dict[str, list[float]] = {}
    monkeypatch.setattr(
        plt,
        "close",
        lambda figure: drawn.update(
            {line.get_label(): list(line.get_ydata()) for axes in figure.axes for line in axes.lines}
        ),
    )
    run = RunDirectory(tmp_path)
    run.append_metrics(
        (epoch, split, metric, value / epoch)
        for epoch in (1, 2)
        for split, metric, value in [
            ("train", "loss", 3.0),
            ("train", "loss/ce", 2.0),
            ("train", "loss/kd", 1.0),
            ("train", "top1", 40.0),
            ("test", "nll", 2.5),
            ("test", "top1", 30.0),
            ("val", "nll", 2.6),
            ("val", "top1", 31.0),
        ]
    )
    draw_curves(run, "a run")
    assert {label: values[-1] for label, values in drawn.items()} == {
        "train: total": 1.5,
        "train: ce, weighted": 1.0,
        "train: kd, weighted": 0.5,
        "test: cross-entropy": 1.25,
        "val: cross-entropy": 1.3,
        "train (last 20.00 %)": 20.0,
        "test (last 15.00 %)": 15.0,
        "val (last 15.50 %)": 15.5,
    }
    assert (tmp_path / "curves.png").stat().st_size > 10_000


# --- kdrun where ---


def test_where_names_what_train_fills(kdrun, outputs):
    words = [*TINY, "epochs=1", "method=kd"]
    code, out, err = kdrun("where", "run", *words)
    assert (code, out) == (1, "") and "is not finished: kdrun train dataset=fake" in err
    assert kdrun("train", *words)[0] == 0
    for kind, pattern in (("run", "runs/*/*/*/*/result.json"), ("teacher", "teachers/*/*/*/result.json")):
        (found,) = outputs.glob(pattern)
        code, out, _ = kdrun("where", kind, *words)
        assert (code, Path(out.strip())) == (0, found.parent)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "where: give run or teacher"),
        (["rum"], "where rum: give run or teacher before any key=value. Did you mean run?"),
        (["teacher", "method=none"], "where teacher: it has no directory: method=none has no stored teacher."),
        (["teacher", "teacher.random=true"], "it has no directory: it is not trained."),
        (["run", "-m"], "where: -m: no such flag"),
        (["run", "method=kdd"], "method=kdd: no such method. Did you mean kd?"),
    ],
)
def test_where_mistakes(kdrun, words, line):
    code, out, err = kdrun("where", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_deits_recipe():
    config = load(["experiment=deit", "dataset.root=x"])
    assert config.optimizer.lr == pytest.approx(5e-4 * config.batch_size / 512)
    augment = config.dataset.augment
    assert (augment.mixup, augment.cutmix, augment.erasing, augment.randaugment) == (0.8, 1.0, 0.25, 2)
    assert (augment.mix_probability, augment.cutmix_share) == (1.0, 0.5)  # timm's defaults
    assert config.student.kwargs == {"drop_path_rate": 0.1}


def test_function_matching():
    config = load(["experiment=function_matching", "dataset.root=x"])
    assert (config.method["temperature"], config.method["ce_weight"], config.method["kd_weight"]) == (1.0, 0.0, 1.0)
    assert config.optimizer.lr * config.optimizer.weight_decay == pytest.approx(3e-4)
    assert (config.dataset.augment.mixup, config.teacher_view) == (1.0, "same")
