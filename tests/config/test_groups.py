"""Every YAML in conf/ composes and passes the check, and every number in an overlay is the one that is used."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from kdrun.config.compose import load
from kdrun.config.groups import choices, conf_dir, group_file, published_methods
from kdrun.config.method_schema import hyperparameters, read_method, sections
from kdrun.config.options import RunConfig
from kdrun.config.schema import to_yaml
from kdrun.config.words import ALIASES
from kdrun.errors import ConfigError
from kdrun.models.zoo import ZOO, create_model
from kdrun.runs.identity import teacher_identity, teachers_images

CONF = conf_dir()
FILES = sorted(
    path.relative_to(CONF)
    for path in CONF.rglob("*.yaml")
    if path.name != "config.yaml" and path.parent.name != "sweep"
)


def flat(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {prefix: node}
    found: dict[str, object] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def content(path: Path) -> dict[str, object]:
    """A file's own values by dotted key, without its defaults list and the pairs that share a recipe."""
    loaded = yaml.safe_load((CONF / path).read_text()) or {}
    loaded.pop("defaults", None)
    loaded.pop("pairs", None)
    return flat(loaded)


def composed(config: RunConfig) -> dict[str, object]:
    return flat(OmegaConf.to_container(OmegaConf.create(to_yaml(config, {}))))


def number(value: object) -> object:
    """YAML 1.1 reads 5e-4 as a string; OmegaConf does not."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return value


@cache
def cells() -> list[tuple[str, str, str]]:
    """Every published cell: benchmark, pair, method."""
    return [
        (benchmark, pair, method)
        for benchmark in choices("benchmark")
        for pair in choices("pair")
        for method in published_methods(benchmark, pair)
    ]


@cache
def of_experiments() -> dict[Path, tuple[str, str]]:
    """Every recipe of an experiment: file -> experiment, method."""
    named = {
        CONF / "recipe" / f"{experiment}_{method}.yaml": (experiment, method)
        for experiment in choices("experiment")
        for method in choices("method")
    }
    return {path: found for path, found in named.items() if path.is_file()}


@cache
def shared_or_own(cell: tuple[str, str, str]) -> Path | None:
    return group_file("recipe", "_".join(cell), CONF)


def request(path: Path) -> tuple[list[str], str]:
    """(overrides that select the file, prefix of its values in the configuration)."""
    group, name = path.parts[0], path.stem
    if CONF / path in of_experiments():
        experiment, method = of_experiments()[CONF / path]
        return [f"experiment={experiment}", f"method={method}"], ""
    if group == "recipe":
        cell = next(cell for cell in cells() if shared_or_own(cell) == CONF / path)
        return [f"{key}={value}" for key, value in zip(("benchmark", "pair", "method"), cell, strict=True)], ""
    if group == "model":
        return [f"teacher={name}", *(["teacher.name=resnet8"] if name == "any" else [])], "teacher."
    if group == "optimizer":
        return [f"optimizer={name}", f"optimizer@teacher.recipe={name}"], "optimizer."
    return [f"{group}={name}"], "" if group in ("benchmark", "pair", "experiment") else f"{group}."


@pytest.mark.parametrize("path", FILES, ids=str)
def test_composes_and_wins(path):
    overrides, prefix = request(path)
    found = composed(load(overrides))
    for key, value in content(path).items():
        if value == "???":
            continue
        if key == "parts":  # names stand for whole methods
            assert [read_method(part["_target_"]).name for part in found[f"{prefix}{key}"]] == value
            continue
        wanted = value if isinstance(value, list | bool | str) and number(value) == value else number(value)
        assert number(found[f"{prefix}{key}"]) == wanted, f"{path}: {key}"


def test_recipes_win_over_the_method_and_lose_to_the_command_line():
    cell = ["benchmark=mdistiller", "pair=wrn_40_2_wrn_40_1", "method=dkd"]
    assert load(["method=dkd"]).method["nckd_weight"] == 8.0
    assert load(cell).method["nckd_weight"] == 6.0
    assert load([*cell, "method.nckd_weight=3"]).method["nckd_weight"] == 3.0


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_has_an_independent_student(experiment):
    """An experiment's values are those of its own method; as its own settings they made method=none an error."""
    assert set(load([f"experiment={experiment}", "method=none"]).method) == {"_name_", "_target_"}


def test_another_method_in_an_experiment_keeps_its_own_values():
    assert load(["experiment=p4_vit_to_resnet", "method=dkd"]).method == load(["method=dkd"]).method


def test_epochs_come_from_the_data_set_and_give_way_to_the_command_line():
    assert load([]).epochs == 10
    assert load(["dataset=cifar100"]).epochs == 240
    short = load(["dataset=cifar100", "epochs=2", "batch_size=128"])
    assert (short.epochs, short.batch_size) == (2, 128)
    # A student's short trial must not change the teacher that every run shares.
    assert (short.teacher.recipe.epochs, short.teacher.recipe.batch_size) == (240, 64)


def test_published_protocols():
    p3 = load(["benchmark=p3", "pair=resnet18_mobilenet_v2"])
    assert (p3.teacher.recipe.epochs, p3.teacher.recipe.batch_size, p3.teacher.recipe.lr) == (350, 128, 0.1)
    assert (p3.optimizer.lr, p3.epochs, p3.batch_size) == (0.01, 240, 64)
    assert p3.dataset.augment.crop_padding_mode == "reflect"
    assert not p3.teacher.preact_last_map
    rd = load(["benchmark=mdistiller", "pair=vgg13_mobilenet_v2_x0_5"])
    assert rd.student.preact_last_map
    assert rd.optimizer.lr == 0.01
    assert rd.teacher.recipe.lr == 0.05
    assert rd.optimizer.weight_decay == 5e-4
    assert rd.optimizer.milestones == [150, 180, 210]


REVIEWKD = {  # --kd-loss-weight of dvlab-research/ReviewKD CIFAR-100/script/reviewKD.sh
    "wrn_40_2_wrn_16_2": 5.0,
    "wrn_40_2_wrn_40_1": 5.0,
    "wrn_40_2_shufflenet_v1": 5.0,
    "resnet32x4_resnet8x4": 5.0,
    "resnet32x4_shufflenet_v1": 5.0,
    "resnet32x4_shufflenet_v2": 8.0,
    "resnet56_resnet20": 0.6,
    "resnet110_resnet32": 1.0,
}
MLKD = {  # EPOCHS, LR of Jin-Ying/Multi-Level-Logit-Distillation configs/cifar100/ours at 5ee473f
    "wrn_40_2_wrn_16_2": (240, 0.025),
    "wrn_40_2_wrn_40_1": (240, 0.025),
    "resnet56_resnet20": (240, 0.025),
    "resnet110_resnet32": (240, 0.025),
    "resnet32x4_resnet8x4": (240, 0.025),
    "vgg13_vgg8": (240, 0.025),
    "vgg13_mobilenet_v2_x0_5": (480, 0.01),
    "resnet50_mobilenet_v2_x0_5": (480, 0.01),
    "resnet32x4_shufflenet_v2": (960, 0.01),
    "resnet110_resnet20": (480, 0.025),  # sunshangquan/logit-standardization-KD configs/cifar100/mlkd
}


def cell(pair: str, method: str) -> RunConfig:
    return load(["benchmark=mdistiller", f"pair={pair}", f"method={method}"])


@pytest.mark.parametrize("pair", REVIEWKD)
def test_reviewkd_has_its_authors_weights_in_mdistillers_protocol(pair):
    config = cell(pair, "reviewkd")
    assert (config.method["review_weight"], config.method["warmup_epochs"]) == (REVIEWKD[pair], 20)
    assert (config.batch_size, config.optimizer.nesterov) == (64, False)


def test_sskds_student_alone_trains_without_flips():
    """As student.py and teacher.py of xuguodong03/SSKD; its teacher is the one that the other rows share."""
    ours, others = cell("wrn_40_2_wrn_16_2", "sskd"), cell("wrn_40_2_wrn_16_2", "kd")
    assert (ours.dataset.augment.flip, ours.teacher.flip, others.dataset.augment.flip) == (0.0, 0.5, 0.5)
    assert ours.method["similarity_dropped"] == 0.25 and ours.method["rotated_weight"] == 2.7
    assert teachers_images(ours.teacher, ours.dataset) == others.dataset
    teachers = [teacher_identity(config.teacher, config.dataset, "images", {}) for config in (ours, others)]
    assert teachers[0] == teachers[1]
    ours.teacher.flip = None
    assert teacher_identity(ours.teacher, ours.dataset, "images", {}) != teachers[1]


@pytest.mark.parametrize("pair", MLKD)
def test_mlkd_trains_as_long_as_its_authors_configurations(pair):
    config = cell(pair, "mlkd")
    assert (config.epochs, config.optimizer.lr) == MLKD[pair]
    assert config.optimizer.milestones == [150, 180, 210]


def test_every_published_cell_has_one_recipe():
    """246 cells: those of RepDistiller and mdistiller (189, on ImageNet 10), of P1, P2 and P3. No file lists a pair
    that has its own."""
    found = cells()
    assert Counter(benchmark for benchmark, _, _ in found) == {
        "mdistiller": 189,
        "imagenet": 10,
        "p1": 3,
        "p2": 8,
        "p3": 36,
    }
    files = [shared_or_own(cell) for cell in found]
    assert {*files, *of_experiments()} == set((CONF / "recipe").glob("*.yaml"))
    for benchmark, pair, method in found:
        shared = CONF / "recipe" / f"{benchmark}_{method}.yaml"
        own = CONF / "recipe" / f"{benchmark}_{pair}_{method}.yaml"
        listed = shared.is_file() and pair in yaml.safe_load(shared.read_text())["pairs"]
        assert listed != own.is_file(), (benchmark, pair, method)


def test_models_and_shared_recipes_of_ones_own(tmp_path):
    """A user's folder may hold model/, for both roles, and recipes that list their pairs."""
    for name, text in {
        "model/tiny.yaml": "name: my_package.nets:tiny\n",
        "benchmark/my_bench.yaml": "# @package _global_\nbenchmark: my_bench\n",
        "recipe/my_bench_kd.yaml": "# @package _global_\npairs: [vgg13_vgg8]\nmethod:\n  temperature: 7.0\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    config = load(["teacher=tiny", "student=tiny"], config_dir=str(tmp_path))
    assert config.teacher.name == config.student.name == "my_package.nets:tiny"
    cell = ["benchmark=my_bench", "pair=vgg13_vgg8"]
    assert load([*cell, "method=kd"], config_dir=str(tmp_path)).method["temperature"] == 7.0
    with pytest.raises(ConfigError, match=r"my_bench publishes no dkd for pair=vgg13_vgg8 \(published: kd\)"):
        load([*cell, "method=dkd"], config_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["with a space", "it's mine", "a,b=c"])
def test_the_users_folder_may_have_any_name(tmp_path, name):
    (tmp_path / name / "method").mkdir(parents=True)
    (tmp_path / name / "method" / "mine.yaml").write_text("_target_: kdrun.methods.none.Independent\n")
    assert load(["method=mine"], config_dir=str(tmp_path / name)).method["_name_"] == "mine"


@pytest.mark.parametrize("words", [["list"], ["list", "methods"], ["explain", "kd"], ["check", "kd"], ["train"]])
def test_a_users_folder_that_is_not_there(kdrun, words):
    code, out, err = kdrun(*words, "--config-dir", "nowhere")
    assert (code, out, err) == (2, "", "error: --config-dir nowhere: no such folder.\n")


def test_every_zoo_model_has_a_file():
    assert set(choices("teacher")) == set(choices("student")) == set(ZOO) | {"any"}


@pytest.mark.parametrize("name", ["resnet20", "wrn_40_2", "vgg16", "mobilenet_v2", "shufflenet_v2", "vit_cifar_tiny"])
def test_parameter_counts_in_comments(name):
    count = sum(parameter.numel() for parameter in create_model(name, num_classes=100).parameters())
    assert f"{count:,} parameters" in (CONF / "model" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("path", sorted((CONF / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_methods_are_documented(path):
    """One file and one YAML of one name; every hyperparameter in the YAML, all explained, and none with a default but
    those that are younger than their method."""
    settings = yaml.safe_load(path.read_text())
    source = read_method(settings.pop("_target_"))
    assert source.name == path.stem
    assert set(settings) == set(source.parameters)
    younger = {"at": {"power"}}.get(path.stem, {"feature_means"} if path.stem.startswith("srd") else set())
    assert set(source.defaults) == younger and all(settings[key] == source.defaults[key] for key in younger)
    parts = sections(source.doc)
    assert {"Paper", "Equation", "Hyperparameters", "Disagreements"} <= set(parts)
    assert set(hyperparameters(parts["Hyperparameters"])) - {"none."} >= set(settings)
    assert path.read_text().startswith("#")


def test_aliases():
    for alias, name in ALIASES.items():
        if (CONF / "method" / f"{name}.yaml").is_file():
            assert load([f"method={alias}"]).method == load([f"method={name}"]).method


def test_names_with_a_colon_are_models_everywhere(tmp_path):
    config = load(["teacher=timm:vit_tiny_patch16_224.augreg_in21k", "student=my_package.nets:small"])
    assert config.teacher.name == "timm:vit_tiny_patch16_224.augreg_in21k"
    assert config.student.name == "my_package.nets:small"
    (tmp_path / "experiment").mkdir()
    overlay = "# @package _global_\ndefaults:\n  - override /teacher: 'torchvision:resnet18'\nseed: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(overlay)
    config = load(["experiment=mine"], config_dir=str(tmp_path))
    assert (config.teacher.name, config.seed) == ("torchvision:resnet18", 7)


def test_a_method_of_ones_own(tmp_path, monkeypatch):
    """A YAML in --config-dir and a module in the current directory are enough."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("_target_: kdrun_own_method.Mine\ntemperature: 2\n")
    (tmp_path / "kdrun_own_method.py").write_text(
        "from kdrun.methods.kd import KD\n\n\nclass Mine(KD):\n"
        "    def __init__(self, *, temperature: float):\n"
        "        super().__init__(temperature=temperature, ce_weight=1.0, kd_weight=1.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load(["method=mine"], config_dir="conf")
    assert config.method == {"_name_": "mine", "_target_": "kdrun_own_method.Mine", "temperature": 2.0}
    assert read_method("kdrun_own_method.Mine").needs_teacher
