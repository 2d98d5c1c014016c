"""Every class of mistake: one clear line that names the setting, the value and the remedy; exit code 2; no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kdrun.config.compose import load
from kdrun.sweeps.definition import multirun_sweep

MISTAKES = {
    "method=dkdd": ["method=dkdd: no such method", "Did you mean dkd?", "Available:", "kd"],
    "teacher=resnet200": ["teacher=resnet200: no such teacher", "timm:NAME"],
    "dataset=cifar": ["dataset=cifar: no such dataset", "cifar10"],
    "benchmark=mdistil": ["benchmark=mdistil: no such benchmark", "mdistiller"],
    "pair=wrn": ["pair=wrn: no such pair", "wrn_40_2_wrn_40_1"],
    "experiment=nope": ["experiment=nope: no such experiment"],
    "seeed=4": ["seeed: no such setting", "Did you mean seed?"],
    "+seeed=4": ["seeed: no such setting", "Did you mean seed?"],
    "+teacher.nme=x": ["teacher.nme: no such setting", "Did you mean teacher.name?"],
    "teacher.recipe.epoch=1": ["teacher.recipe.epoch: no such setting", "Did you mean teacher.recipe.epochs?"],
    "method.temprature=3": ["method.temprature: kd has no such setting", "Did you mean temperature?", "It takes:"],
    "+method.temprature=3": ["method.temprature: kd has no such setting"],
    "epochs=many": ["epochs=many: must be a whole number."],
    "deterministic=perhaps": ["deterministic=perhaps: must be true or false."],
    "method.temperature=hot": ["method.temperature=hot: must be a number."],
    "method.temperature=0": ["method.temperature=0.0: must be above 0"],
    "method.kd_weight=-1": ["method.kd_weight=-1.0: must be at least 0"],
    "epochs=-3": ["epochs=-3: must be at least 1"],
    "epochs=0": ["epochs=0: must be at least 1"],
    "seed=-1": ["seed=-1: must be at least 0"],
    "batch_size=0": ["batch_size=0: must be at least 1"],
    "optimizer.lr=0": ["optimizer.lr=0.0: must be above 0"],
    "optimizer.lr=nan": ["optimizer.lr=nan: must be a finite number"],
    "optimizer.momentum=1": ["optimizer.momentum=1.0: must be below 1"],
    "optimizer.schedule=cos": ["optimizer.schedule=cos: choose", "Did you mean cosine?"],
    "optimizer.name=sdg": ["optimizer.name=sdg: choose", "Did you mean sgd?"],
    "dataset.val_fraction=1": ["dataset.val_fraction=1.0: must be below 1"],
    "dataset.mean=[0.1]": ["dataset.mean=[0.1]: expected 3 numbers, got 1"],
    "dataset.std=[0,0,0]": ["dataset.std", "must be above 0"],
    "dataset.augment.crop_padding=40": ["dataset.augment.crop_padding=40: must be below image_size"],
    "dataset.augment.crop=random": ["dataset.augment.crop=random: choose none or padded or resized"],
    "precision=fp8": ["precision=fp8: choose auto or fp32 or tf32 or bf16"],
    "compile=maybe": ["compile=maybe: choose auto or true or false"],
    "device=gpu": ["device=gpu: choose auto, cpu, cuda or cuda:N"],
    "teacher_view=other": ["teacher_view=other: choose same or clean or independent or fixed"],
    "teacher.head=linear_dropout": ["teacher.head=linear_dropout: choose"],
    "seed=0,1": ["seed=0,1: several values need a multirun: kdrun train -m seed=0,1"],
    "epochs": ["epochs: a setting is written epochs=VALUE."],
    "~method": ["~method: a setting cannot be removed"],
    "teacher=any": ["teacher.name is not set"],
    "optimizer.epochs=null": ["optimizer.epochs"],
    "teacher.mean=[0.5,0.5,0.5]": ["teacher.mean and teacher.std go together"],
    "teacher.random=true teacher.checkpoint=x.pth": ["teacher.random=true and teacher.checkpoint are both set"],
    "student.pretrained=true student.checkpoint=x.pth": ["student.pretrained and student.checkpoint are both set"],
    "dataset.mean=null": ["dataset.mean and dataset.std are not set", "normalize=measure"],
    "method._target_=kdrun.methods.kd.KDD": ["kdrun.methods.kd has no class KDD", "Did you mean KD?"],
    "method._target_=kdrun.methods.absent.X": ["no module kdrun.methods.absent"],
    "benchmark=mdistiller pair=wrn_40_2_wrn_40_1 teacher=vgg16": [
        "pair=wrn_40_2_wrn_40_1 has the teacher wrn_40_2, not vgg16"
    ],
    "benchmark=p3 pair=wrn_40_2_wrn_40_1 method=dkd": [
        "benchmark=p3 publishes no dkd",
        "published:",
        "kd",
        "conf/recipe/",
    ],
    "--config-dir /absent": ["--config-dir /absent: no such folder"],
    "dataset=folder": ["dataset.root is not set"],
    "dataset=folder dataset.root=/absent": ["dataset.root=/absent: no such folder", "train/"],
    "dataset=cifar100 dataset.root=/absent": [
        "dataset.root=/absent (no such path) contains no cifar100",
        "cifar-100-python.tar.gz",
    ],
    "teacher.checkpoint=/absent.pth": ["teacher.checkpoint=/absent.pth: no such file"],
    "student.checkpoint=/absent.pth": ["student.checkpoint=/absent.pth: no such file"],
    "student.kwargs=3": ["student.kwargs: must be settings in braces, as 'student.kwargs={depth: 2}'."],
    "student.kwarg.depth=3": ["student.kwarg.depth: no such setting"],
    "lr=0.1": ["lr: no such setting. Did you mean optimizer.lr?"],
    "method.parts=[kd": ["method.parts=[kd: cannot be parsed. Write a list as [a,b]"],
    "teacher=[resnet8,resnet20]": [
        "teacher=[resnet8,resnet20]: a run has one teacher",
        "train -m teacher=resnet8,resnet20",
    ],
    "method=[kd,dkd]": ["kdrun train -m method=kd,dkd; for their sum: method=combine 'method.parts=[kd,at]'"],
    "method={a:1}": ["choose one by name"],
    "dataset=null": ["dataset=null: choose one by name"],
    "optimizer=": ["optimizer=: choose one by name"],
    "teacher=1": ["teacher=1: no such teacher"],
    "seed=[0,1]": ["seed=[0,1]: seed takes one value; for a run of each: kdrun train -m seed=0,1."],
    "epochs={a:1}": ["epochs={a:1}: epochs takes one value."],
    "logger=tensorboard": ["logger: must be a list, as logger=[tensorboard]."],
    "logger=[tensorbord]": ["logger=tensorbord: choose tensorboard or wandb. Did you mean tensorboard?"],
    "optimizer.betas=0.9": ["optimizer.betas: must be a list, as optimizer.betas=[1,2]."],
    "optimizer.betas=[0.9,a]": ["optimizer.betas[1]=a: must be a number."],
    "teacher.recipe=3": ["teacher.recipe: it is a group of settings: set teacher.recipe.name=… and so on."],
    "--epochs 3": ["train: --epochs: a setting is written without dashes: epochs=VALUE."],
    "--lr=3": ["settings are written without dashes, KEY=VALUE. Did you mean optimizer.lr?"],
    "--resume": ["--resume: no such flag: the same command resumes"],
    "--zzyzx": ["train: --zzyzx: no such flag"],
    "--cfg": ["train: --cfg: choose job or hydra or all."],
    "--cfg foo": ["train: --cfg foo: choose job or hydra or all."],
    "-m method=kd,at --cfg job": ["--cfg shows one run: leave out -m and sweep=."],
    "epochs 3": ["epochs: a setting is written epochs=VALUE."],
    "=3": ["=3: the name before = is missing"],
    "name=x": ["name=x: name is a setting of sweeps"],
    "-m seed=0,1 launcher.processes=-1": ["launcher.processes=-1: must be auto or a whole number, at least 0."],
    "output_root=": ["output_root= is empty"],
    "dataset.root=": ["dataset.root= is empty"],
    "output_root=${oc.env:KDRUN_ABSENT}": [
        "output_root=${oc.env:KDRUN_ABSENT}: the environment variable KDRUN_ABSENT is not"
    ],
    "output_root=${nope}": ["output_root=${nope}: the referenced setting nope does not exist."],
    "epochs=${epochs}": ["epochs=${epochs}: it refers to itself."],
    "epochs=${seed} seed=${epochs}": ["it refers to itself."],
    "epochs=${oc.env:KDRUN_ABSENT,xx}": ["epochs=${oc.env:KDRUN_ABSENT,xx}: must be a whole number."],
    "epochs=${foo:bar}": ["epochs=${foo:bar}: unknown kind of reference foo"],
    "epochs=${": ["epochs=${: cannot be parsed."],
    "student.kwargs.x=${nope}": ["student.kwargs.x=${nope}: the referenced setting nope does not exist."],
    "method.temperature=${sead}": ["setting sead does not exist. Did you mean seed?"],
    "~epochs": ["~epochs: a setting cannot be removed"],
    "~optimizer.lr": ["~optimizer.lr: a setting cannot be removed"],
    "seed=4294967296": ["seed=4294967296: must be at most 4294967295."],
    "seed=99999999999999999999999": ["must be at most 4294967295."],
    "teacher.seed=4294967296": ["teacher.seed=4294967296: must be at most"],
    "optimizer.momentum=2": ["optimizer.momentum=2.0: must be below 1."],
    "optimizer.lr=1e30": ["optimizer.lr=1e+30: must be at most 100."],
    "threads=10000": ["threads=10000: must be at most 1024."],
    "batch_size=1000000000000": ["batch_size=1000000000000: must be at most"],
    "dataset.image_size=100000": ["dataset.image_size=100000: must be at most 8192."],
    "recipe=nope": ["recipe=nope: no such recipe."],
    "method=crd method.negatives=0": ["method.negatives=0: must be at least 1."],
    "method.ce_weight=0 method.kd_weight=0": [
        "method.ce_weight=0: every weight of kd is 0, so nothing would be trained."
    ],
    "method._name_=x": ["choose it by name: method=NAME."],
    "pair.name=x": ["choose it by name: pair=NAME."],
    "@seed=1": ["@seed: no such setting."],
    "hydra.run.dir=xx": ["hydra.run.dir=xx: Hydra's settings are only for its launchers"],
    "teacher.pretrained=yes": ["teacher.pretrained=yes: no such file; give true, false or a weights file."],
    "student.pretrained=/absent.pth": ["student.pretrained=/absent.pth: no such file"],
    "dataset.augment.mixup=0.8 method=dkd": ["dataset.augment.mixup=0.8: method dkd uses one label per image"],
    "dataset.augment.cutmix=1 method=combine method.parts=[kd,crd]": ["dataset.augment.cutmix=1.0: method crd uses"],
    "dataset.augment.mixup=1 batch_size=33": ["mixes images in pairs, but batch_size=33 is odd"],
    "dataset.augment.mixup=1 teacher_view=clean": ["with teacher_view=clean the teacher would see other images"],
    "dataset.augment.randaugment=-1": ["dataset.augment.randaugment=-1: must be at least 0."],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words, kdrun, outputs):
    code, out, err = kdrun("train", *words.split())
    assert code == 2, out + err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for part in MISTAKES[words]:
        assert part in lines[0], lines[0]
    assert "Traceback" not in err
    assert not (outputs / "runs").exists()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["student.kwargs={depth: 2}"], {"depth": 2}),
        (["student.kwargs={depth: 2, parts: [1, {a: x}]}"], {"depth": 2, "parts": [1, {"a": "x"}]}),
        (["student.kwargs.depth=2"], {"depth": 2}),
        (["+student.kwargs.depth=2"], {"depth": 2}),
        (["++student.kwargs.depth=2"], {"depth": 2}),
        (["student.kwargs={depth: 2, width: 3}", "student.kwargs.width=4"], {"depth": 2, "width": 4}),
        (["student.kwargs={}"], {}),
    ],
)
def test_arguments_of_a_network_are_settings_as_any_other(words, found):
    for role in ("student", "teacher"):
        config = load([word.replace("student", role) for word in words])
        assert getattr(config, role).kwargs == found


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("student.kwargs.depth=2,4", [{"depth": 2}, {"depth": 4}]),
        ("+student.kwargs.depth=2,4", [{"depth": 2}, {"depth": 4}]),
        ("student.kwargs={depth: 2},{depth: 4}", [{"depth": 2}, {"depth": 4}]),
        ("student.kwargs={depth: 2, width: 3}", [{"depth": 2, "width": 3}]),
    ],
)
def test_arguments_of_a_network_in_a_sweep(word, found):
    specs = multirun_sweep(["seed=0", word], None).specs
    assert [load(spec.overrides).student.kwargs for spec in specs] == found


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "train method=dkdd",
        "train seeed=4",
        "train epochs=many",
        "train --help",
        "nothing",
        "train dataset=folder dataset.root=/absent",
        "list methods",
        "explain method=kd",
    ],
)
def test_answers_without_torch(words):
    """Importing torch takes seconds, so mistakes and help must not."""
    script = (
        "import sys; from kdrun.cli import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'timm', 'sklearn', 'pandas', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", script, *words.split()], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_mistake_in_an_overlay_is_named(tmp_path, kdrun):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nseeed: 5\n")
    code, _, err = kdrun("train", "experiment=typo", f"--config-dir={tmp_path}")
    assert code == 2
    assert "experiment/typo.yaml: seeed: no such setting. Did you mean seed?" in err
    (tmp_path / "experiment" / "bad.yaml").write_text("# @package _global_\nepochs: [1\n")
    code, _, err = kdrun("train", "experiment=bad", f"--config-dir={tmp_path}")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "bad.yaml" in err


def test_unknown_command(kdrun):
    code, _, err = kdrun("trian")
    assert code == 2
    assert "trian: no such command. Did you mean train?" in err


def test_help_and_version(kdrun):
    code, out, _ = kdrun("--help")
    assert code == 0
    assert "kdrun train" in out
    assert kdrun("--version")[1].startswith("kdrun ")
    from kdrun.cli import COMMANDS

    for name in COMMANDS:
        code, text, _ = kdrun(name, "--help")
        assert code == 0
        assert f"usage: kdrun {name}" in text
        assert f"{name} " in out


def test_cfg_job_prints_and_stops(kdrun, outputs):
    code, out, _ = kdrun("train", "--cfg", "job", "seed=3")
    assert code == 0
    assert "seed: 3" in out
    assert not outputs.exists()
