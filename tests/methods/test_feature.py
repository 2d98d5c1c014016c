"""Hints, attention transfer, softmax regression and SimKD against stored values, and what they leave untouched."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.compose import load
from kdrun.errors import ConfigError, PairingError
from kdrun.methods.at import AT, attention_loss, attention_map
from kdrun.methods.cosine import cosine_loss, narrow
from kdrun.methods.dist import distv2_loss
from kdrun.methods.features import adaptor
from kdrun.methods.fitnet import FitNet, hint_loss, hint_pair, regressor
from kdrun.methods.fitnet_joint import FitNetJoint
from kdrun.methods.hint_regressor import HintRegressor
from kdrun.methods.kd import KD
from kdrun.methods.losses import kl_divergence
from kdrun.methods.simkd import Reused, SimKD
from kdrun.methods.srd import SRD, check_classifier, classified_map, feature_loss
from kdrun.methods.srd_dist import SRDDist
from kdrun.methods.srd_kl import SRDKL
from kdrun.methods.srd_pmse import SRDPMSE
from kdrun.models.features import Tap, measure
from kdrun.models.zoo import create_model
from kdrun.structures import DataSpec, Outputs, Progress, Spec
from kdrun.training.loop import Lane
from kdrun.training.method_trial import batch_of as image_batch
from kdrun.training.teacher import Teacher
from tests.methods.cases import (
    CASES,
    Definitions,
    batch_of,
    make_lane,
    tensor,
)

LATER = Progress(1, 240, 0, 1)  # past the first step, whose check of the teacher made-up features cannot pass
DATA = DataSpec(8, torch.zeros(8, dtype=torch.long), 100, 32)
SRD_FAMILY = (SRD, SRDDist, SRDKL, SRDPMSE)


def set_parameters(module: nn.Module, *values: Tensor) -> None:
    """Set the module's parameters in order; there must be no others."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)


def fitnet_regressor(inputs: dict[str, Tensor], params: dict) -> Tensor:
    made = regressor(inputs["s"].shape[1:], inputs["t"].shape[1:])
    set_parameters(made, inputs["w"], inputs["b"], inputs["bnw"], inputs["bnb"])
    return hint_loss(made(inputs["s"]), inputs["t"])


def tutorial_regressor(inputs: dict[str, Tensor], params: dict) -> Tensor:
    method = HintRegressor(ce_weight=0.0, hint_weight=1.0)
    method.build(spec(inputs["s"]), spec(inputs["t"]), DATA)
    set_parameters(method.regressor, inputs["w"], inputs["b"])
    logits, label = torch.zeros(len(inputs["s"]), 2), torch.zeros(len(inputs["s"]), dtype=torch.long)
    student, teacher = (Outputs(logits, maps=(inputs[key],)) for key in "st")
    return total(method.losses(batch_of(label), student, teacher, LATER))


def at_kd(inputs: dict[str, Tensor], params: dict) -> Tensor:
    method = AT(temperature=params["T"], ce_weight=1 - params["A"], kd_weight=params["A"], at_weight=params["B"])
    student, teacher = (Outputs(inputs[key], maps=(inputs[f"{key}1"], inputs[f"{key}2"])) for key in "st")
    method.build(spec(*student.maps), spec(*teacher.maps), DATA)
    return total(method.losses(batch_of(inputs["y"]), student, teacher, LATER))


def softmax_regression(kind: type[SRD]) -> object:
    def loss(inputs: dict[str, Tensor], params: dict) -> Tensor:
        method, student, teacher = srd_of(kind, inputs, params["A"], params["B"])
        return total(method.losses(batch_of(inputs["y"]), student, teacher, LATER))

    return loss


def srd_of(kind: type[SRD], inputs: dict[str, Tensor], a: float, b: float) -> tuple[SRD, Outputs, Outputs]:
    """The method with a case's adaptor and classifier, and both networks' outputs."""
    method = kind(ce_weight=1.0, feature_weight=a, srd_weight=b)
    classifier = nn.Linear(*reversed(inputs["fcw"].shape))
    method.build(spec(inputs["fs"]), spec(inputs["ft"], classifier=classifier), DATA)
    set_parameters(method.adaptor, inputs["cw"], inputs["bnw"], inputs["bnb"])
    method.classifier = (lambda pooled: F.linear(pooled, inputs["fcw"], inputs["fcb"]),)
    return method, Outputs(inputs["s"], maps=(inputs["fs"],)), Outputs(inputs["t"], maps=(inputs["ft"],))


def spec(*maps: Tensor, classifier: nn.Module | None = None) -> Spec:
    shapes = tuple((m.shape[1], m.shape[2], m.shape[3]) for m in maps)
    return Spec(100, 32, maps=shapes, pooled=shapes[-1][0], classifier=classifier)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


DEFINITIONS: Definitions = {
    "hint_mse/": lambda x, p: hint_loss(x["s"], x["t"]),
    "fitnet_convreg/": fitnet_regressor,
    "regressor_mse/": tutorial_regressor,
    "cosine_embedding/": lambda x, p: cosine_loss(x["s"], x["t"]),
    "at/p2/": lambda x, p: attention_loss(x["s"], x["t"]),
    "combo/at_kd_table": at_kd,
    "srd/total/": softmax_regression(SRD),
    "srdwithdist/": softmax_regression(SRDDist),
    "srdwithpmse/": softmax_regression(SRDPMSE),
}


def test_every_prefix_has_a_case():
    assert all(any(name.startswith(prefix) for name in CASES) for prefix in DEFINITIONS)


# --- softmax regression ---------------------------------------------------------------------------------------------


def srd_inputs() -> dict[str, Tensor]:
    return {key: tensor(array) for key, array in CASES["srd/total/A1_B2"]["inputs"].items()}


def test_kl_takes_the_softmax_once():
    """The published code takes it twice; written out here, as no fixture has it once."""
    inputs = srd_inputs()
    method, student, teacher = srd_of(SRDKL, inputs, 1.0, 2.0)
    terms = method.losses(batch_of(inputs["y"]), student, teacher, LATER)
    z = F.linear(method.adaptor(inputs["fs"]).mean((2, 3)), inputs["fcw"], inputs["fcb"]).double()
    p = inputs["t"].double().softmax(1)
    expected = (p * (p.log() - z.log_softmax(1))).sum(1).mean().item()
    assert terms["srd"].item() == pytest.approx(2 * expected, rel=1e-5)
    twice = CASES["srdwithkl/total/A1_B2/peer"]["expected_f64"]
    assert total(terms).item() != pytest.approx(twice, rel=1e-2)


@pytest.mark.parametrize("kind", SRD_FAMILY)
def test_srd_of_spatial_means(kind):
    """As the authors' code compares maps."""
    inputs = srd_inputs()
    method, student, teacher = srd_of(kind, inputs, 1.0, 2.0)
    everywhere = method.losses(batch_of(inputs["y"]), student, teacher, LATER)
    method.feature_means = True
    means = method.losses(batch_of(inputs["y"]), student, teacher, LATER)
    by_hand = (method.adaptor(inputs["fs"]).mean((2, 3)) - inputs["ft"].mean((2, 3))).square().mean()
    assert means["feature"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert means["feature"] < everywhere["feature"] / 2
    assert all(means[key].item() == pytest.approx(everywhere[key].item(), rel=1e-5) for key in ("ce", "srd"))


def test_perfect_cross_logits_cost_nothing():
    z = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    for kind in SRD_FAMILY:
        assert abs(kind(ce_weight=1.0, feature_weight=1.0, srd_weight=1.0).regression(z, z).item()) < 1e-5
    assert distv2_loss(50 * z + 3, z).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["srd", "srd_dist", "srd_kl", "srd_pmse"])
def test_gradient_passes_through_the_classifier_which_never_changes(name):
    """With the feature term off, whatever reaches the adaptor has come through the teacher's classifier."""
    settings = {"ce_weight": 0.0, "feature_weight": 0.0}
    lane, teacher = make_lane(name, "CNN to CNN", settings_of=settings)
    (classifier,) = lane.method.classifier
    assert classifier is teacher.network.tap.model.fc
    assert not any("classifier" in key for key in lane.method.state_dict())
    optimised = {id(parameter) for group in lane.optimizer.param_groups for parameter in group["params"]}
    assert not optimised & {id(parameter) for parameter in classifier.parameters()}
    assert {id(parameter) for parameter in lane.method.adaptor.parameters()} <= optimised
    before = copy.deepcopy(classifier.state_dict())
    weight = lane.method.adaptor[0].weight.detach().clone()
    batch = image_batch(6)
    terms = lane.method(batch, lane.student, teacher, Progress(0, 1, 0, 1))
    total(terms).backward()
    assert lane.method.adaptor[0].weight.grad.norm() > 0
    assert lane.model.conv1.weight.grad.norm() > 0
    for step in range(3):
        lane.step(image_batch(6, seed=step), teacher, 0, step, 10)
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not torch.equal(weight, lane.method.adaptor[0].weight)


@pytest.mark.parametrize("side", [2, 4, 16])
def test_srd_on_different_grids(side):
    """The cells that the table left blank; the classifier reads the mean of the student's own grid."""
    inputs = srd_inputs() | {"fs": torch.randn(8, 16, side, side, requires_grad=True)}
    inputs |= {key: inputs[key][:8] for key in ("s", "t", "y", "ft")}
    method, student, teacher = srd_of(SRD, inputs, 1.0, 2.0)
    terms = method.losses(batch_of(inputs["y"]), student, teacher, LATER)
    assert set(terms) == {"ce", "feature", "srd"}
    total(terms).backward()
    assert torch.isfinite(inputs["fs"].grad).all() and inputs["fs"].grad.norm() > 0
    adapted = method.adaptor(inputs["fs"])
    grid = min(side, 8)
    by_hand = (F.adaptive_avg_pool2d(adapted, grid) - F.adaptive_avg_pool2d(inputs["ft"], grid)).square().mean()
    assert feature_loss(adapted, inputs["ft"]).item() == pytest.approx(by_hand.item(), rel=1e-6)


def measured(name: str, **options) -> tuple[Tap, Spec]:
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, image_size=32, **options)
    tap = Tap(model.eval(), 32)
    return tap, measure(tap, 10)


STUDENT = Spec(10, 32, maps=((16, 32, 32), (24, 8, 8)), stems=1, pooled=24)


@pytest.mark.parametrize(
    "method", [SRD(ce_weight=1.0, feature_weight=1.0, srd_weight=2.0), SimKD(feature_weight=1.0, bottleneck=2)]
)
@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        ("vit_cifar_tiny", "class token"),
        ("vit_cifar_tiny_distilled", "class token"),
        ("shufflenet_v2", "last_tap"),
        ("deepnn", "2048 numbers"),
    ],
)
def test_classifiers_that_do_not_read_a_map_are_refused(method, teacher, reason):
    with pytest.raises(PairingError, match=reason) as caught:
        method.build(STUDENT, measured(teacher)[1], DATA)
    name = "srd" if isinstance(method, SRD) else "simkd"
    assert str(caught.value).startswith(f"method {name} ") and "\n" not in str(caught.value)


def test_networks_without_a_classifier_are_refused():
    teacher = Spec(10, 32, maps=((16, 32, 32), (24, 8, 8)), stems=1, pooled=24)
    with pytest.raises(PairingError, match=r"^method srd_kl .*single module"):
        SRDKL(ce_weight=1.0, feature_weight=1.0, srd_weight=2.0).build(STUDENT, teacher, DATA)
    with pytest.raises(PairingError, match="method srd "):
        SRD(ce_weight=1.0, feature_weight=1.0, srd_weight=2.0).build(STUDENT, Spec(10, 32), DATA)


def outputs_of(tap: Tap, needs: frozenset[str]) -> Outputs:
    tap.needs = needs
    with torch.no_grad():
        return tap(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["wrn_16_1", "resnet8", "resnet18", "vgg8", "mobilenet_v2", "shufflenet_v1"])
def test_cifar_networks_classify_the_mean_of_their_last_map(name):
    tap, shapes = measured(name)
    out = outputs_of(tap, SRD.teacher_needs)
    check_classifier(shapes.classifier, out, "srd", Progress(0, 1, 0, 1))
    assert torch.allclose(shapes.classifier(classified_map(out).mean((2, 3))), out.logits, atol=1e-4)


def test_a_map_tapped_too_early_is_refused_at_the_first_step():
    """Shapes cannot tell RepDistiller's WRN taps from those before the classifier."""
    tap, shapes = measured("wrn_16_1", preact_last_map=True)
    tap.model.bn1.running_mean.fill_(0.5)
    out = outputs_of(tap, SRD.teacher_needs)
    with pytest.raises(PairingError, match=r"^method srd .*preact_last_map"):
        check_classifier(shapes.classifier, out, "srd", Progress(0, 1, 0, 1))
    check_classifier(shapes.classifier, out, "srd", Progress(0, 1, 1, 2))


def test_a_mean_pooled_transformer_teaches_by_its_final_tokens():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=10,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    tap = Tap(vit.eval(), 32)
    method = SRD(ce_weight=1.0, feature_weight=1.0, srd_weight=2.0)
    method.build(STUDENT, measure(tap, 10), DATA)
    teacher = outputs_of(tap, SRD.teacher_needs)
    student = Outputs(torch.randn(4, 10), maps=(torch.randn(4, 16, 32, 32), torch.randn(4, 24, 8, 8)))
    with torch.no_grad():
        terms = method.losses(batch_of(torch.zeros(4, dtype=torch.long)), student, teacher, Progress(0, 1, 0, 1))
    assert all(torch.isfinite(term) for term in terms.values())


# --- hints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "parameters"),
    [
        ((256, 8, 8), (256, 8, 8), 66_304),  # WRN-40-4 to WRN-16-4
        ((64, 8, 8), (128, 8, 8), 8_576),  # WRN-40-2 to WRN-40-1
        ((128, 8, 8), (256, 8, 8), 33_536),  # WRN-40-4 to WRN-16-2
        ((96, 4, 4), (256, 8, 8), 393_984),  # MobileNetV2 from both teachers
    ],
)
def test_regressors_are_as_large_as_published(ours, theirs, parameters):
    made = regressor(ours, theirs)
    assert sum(parameter.numel() for parameter in made.parameters()) == parameters
    assert made(torch.randn(2, *ours)).shape == (2, *theirs)


@pytest.mark.parametrize("side", [1, 2, 4, 5, 8, 14, 16, 32])
def test_a_hint_crosses_any_grid(side):
    made = regressor((6, side, side), (10, 8, 8))
    f_s, f_t = torch.randn(1, 6, side, side, requires_grad=True), torch.randn(1, 10, 8, 8)
    loss = hint_loss(made(f_s), f_t)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(f_s.grad).all() and f_s.grad.abs().sum() > 0
    if side in (4, 8, 16):  # the published convolutions end on the teacher's grid
        assert loss.item() == pytest.approx((made(f_s) - f_t).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "student", "stage", "ours", "theirs"),
    [
        ("wrn_40_2", "wrn_40_1", "f3", (64, 8, 8), (128, 8, 8)),
        ("wrn_40_2", "wrn_40_1", "f2", (32, 16, 16), (64, 16, 16)),
        ("wrn_40_2", "wrn_40_1", "f4", (64, 8, 8), (128, 8, 8)),  # no fourth stage: the deepest
        ("wrn_16_4", "mobilenet_v2", "f3", (96, 4, 4), (256, 8, 8)),
        ("resnet18", "mobilenet_v2", "f3", (96, 4, 4), (256, 8, 8)),
    ],
)
def test_hint_stages_are_the_published_ones(teacher, student, stage, ours, theirs):
    taught, own = measured(teacher)[1], measured(student)[1]
    i, j = hint_pair(own, taught, stage, "fitnet")
    assert (own.maps[i], taught.maps[j]) == (ours, theirs)


def fitnet_lane(settings: dict | None = None) -> tuple[Lane, Teacher]:
    lane, teacher = make_lane("fitnet", "CNN to CNN", settings_of=settings)
    assert teacher is not None
    return lane, teacher


def test_first_stage_trains_up_to_the_hint_and_the_regressor():
    lane, teacher = fitnet_lane({"hint_stage": "f1"})
    batch = image_batch(6)
    terms = lane.method.prepare_losses(batch, lane.student, teacher, Progress(0, 50, 0, 1))
    assert set(terms) == {"hint"}
    terms["hint"].backward()
    reached = {key for key, parameter in lane.model.named_parameters() if parameter.grad is not None}
    assert reached == {f"{part}.{kind}" for part in ("conv1", "conv2", "bn1", "bn2") for kind in ("weight", "bias")} - {
        "conv1.bias",
        "conv2.bias",
    }
    assert all(parameter.grad is not None for parameter in lane.method.regressor.parameters())


def test_second_stage_is_plain_kd():
    lane, teacher = fitnet_lane()
    batch = image_batch(6)
    student, taught = lane.student(batch.image), teacher(batch.teacher_image)
    found = lane.method.losses(batch, student, taught, Progress(0, 1, 0, 1))
    plain = KD(temperature=4.0, ce_weight=0.1, kd_weight=0.9).losses(batch, student, taught, Progress(0, 1, 0, 1))
    assert found == plain
    before = copy.deepcopy(lane.method.state_dict())
    lane.step(batch, teacher, 0, 0, 10)
    assert all(torch.equal(before[key], value) for key, value in lane.method.state_dict().items())


def test_first_stage_lasts_as_published():
    node = {key: value for key, value in load(["method=fitnet"]).method.items() if key[0] != "_"}
    options = FitNet(**node).preparation()
    assert (options.name, options.epochs, options.milestones, options.gamma) == ("sgd", 50, [20, 35], 0.1)
    short = FitNet(**{**node, "hint_epochs": 1}).preparation()
    assert short.milestones == [1, 1]


def test_joint_is_kd_plus_the_weighted_hint():
    method = FitNetJoint(temperature=4.0, ce_weight=0.1, kd_weight=0.9, hint_weight=2.0, hint_stage="f3")
    inputs = srd_inputs()
    method.build(spec(inputs["fs"]), spec(inputs["ft"]), DATA)
    student, teacher = Outputs(inputs["s"], maps=(inputs["fs"],)), Outputs(inputs["t"], maps=(inputs["ft"],))
    terms = method.losses(batch_of(inputs["y"]), student, teacher, LATER)
    assert terms["ce"].item() == pytest.approx(0.1 * F.cross_entropy(inputs["s"], inputs["y"]).item())
    assert terms["kd"].item() == pytest.approx(0.9 * kl_divergence(inputs["s"], inputs["t"], 4.0).item())
    by_hand = (method.regressor(inputs["fs"]) - inputs["ft"]).square().mean()
    assert terms["hint"].item() == pytest.approx(2 * by_hand.item(), rel=1e-5)


# --- attention, cosine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [2, 4, 8, 32])
def test_at_on_different_grids(side):
    f_s, f_t = torch.randn(3, 5, side, side, requires_grad=True), torch.randn(3, 7, 8, 8)
    loss = attention_loss(f_s, f_t)
    grid = min(side, 8)
    by_hand = (
        attention_map(F.adaptive_avg_pool2d(f_s, grid)) - attention_map(F.adaptive_avg_pool2d(f_t, grid))
    ).square()
    assert by_hand.shape == (3, grid * grid)
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    loss.backward()
    assert torch.isfinite(f_s.grad).all() and f_s.grad.norm() > 0


@pytest.mark.parametrize("power", [1, 2, 4])
def test_attention_raises_magnitudes_to_its_power(power):
    f_s, f_t = torch.randn(3, 5, 4, 4), torch.randn(3, 7, 4, 4)
    rows = [sum(channel.abs() ** power for channel in f.unbind(1)).flatten(1) for f in (f_s, f_t)]
    unit = [row / row.norm(dim=1, keepdim=True) for row in rows]
    by_hand = (unit[0] - unit[1]).square().mean()
    assert attention_loss(f_s, f_t, power).item() == pytest.approx(by_hand.item(), rel=1e-4)
    method = AT(temperature=4, ce_weight=0, kd_weight=0, at_weight=1, power=power)
    method.build(spec(f_s), spec(f_t), DATA)
    logits = torch.zeros(3, 10)
    student, teacher = Outputs(logits, maps=(f_s,)), Outputs(logits, maps=(f_t,))
    terms = method.losses(batch_of(torch.zeros(3, dtype=torch.long)), student, teacher, LATER)
    assert terms["at"].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_attention_ignores_scale_and_survives_dead_maps():
    f = torch.randn(3, 5, 4, 4)
    assert attention_loss(7 * f, f).item() == pytest.approx(0, abs=1e-12)
    dead = torch.zeros(2, 5, 4, 4, requires_grad=True)
    attention_loss(dead, torch.randn(2, 3, 4, 4)).backward()
    assert torch.isfinite(dead.grad).all()


def test_at_pairs_networks_of_different_depth_by_resolution():
    """MobileNetV2 has four stages, a WRN three: the published code would pair 16x16 with 32x32, 8x8 with 16x16 …"""
    method = AT(temperature=4.0, ce_weight=1.0, kd_weight=0.0, at_weight=1000.0)
    (student, own), (teacher, taught) = measured("mobilenet_v2"), measured("wrn_16_2")
    method.build(own, taught, DATA)
    assert [(own.maps[i][1], taught.maps[j][1]) for i, j in method.pairs] == [(16, 32), (8, 16), (4, 8)]
    outputs = [outputs_of(tap, AT.student_needs) for tap in (student, teacher)]
    terms = method.losses(batch_of(torch.zeros(4, dtype=torch.long)), *outputs, LATER)
    assert terms["kd"].item() == 0 and 0 < terms["at"].item() < float("inf")


@pytest.mark.parametrize(("ours", "theirs"), [(64, 64), (64, 128), (128, 64), (48, 64), (64, 48)])
def test_cosine_of_any_two_widths(ours, theirs):
    a, b = torch.randn(5, ours, requires_grad=True), torch.randn(5, theirs)
    width = min(ours, theirs)
    loss = cosine_loss(a, b)
    by_hand = 1 - F.cosine_similarity(F.adaptive_avg_pool1d(a, width), F.adaptive_avg_pool1d(b, width)).mean()
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    loss.backward()
    assert a.grad.norm() > 0
    assert torch.allclose(narrow(b, width), F.adaptive_avg_pool1d(b, width), atol=1e-6)


def test_the_tutorials_pair_runs():
    """LightNN from DeepNN: 16 and 32 channels of 8x8, 1,024 and 2,048 numbers; the regressor has 4,640 parameters."""
    (student, own), (teacher, taught) = measured("lightnn"), measured("deepnn")
    needs = frozenset({"maps", "pooled"})
    outputs = outputs_of(student, needs), outputs_of(teacher, needs)
    assert (outputs[0].pooled.shape[1], outputs[1].pooled.shape[1]) == (1024, 2048)
    method = HintRegressor(ce_weight=0.75, hint_weight=0.25)
    method.build(own, taught, DATA)
    assert method.extra_parameters() == 4640
    assert torch.isfinite(total(method.losses(batch_of(torch.zeros(4, dtype=torch.long)), *outputs, LATER)))
    assert torch.isfinite(cosine_loss(outputs[0].pooled, outputs[1].pooled))


# --- SimKD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["CNN to CNN", "CNN to ViT"])
def test_simkd_round_trip(pair):
    """Stored weights, loaded strictly into a network built afresh, give the same logits; the copy follows no teacher."""
    lane, teacher = make_lane("simkd", pair)
    for step in range(2):
        lane.step(image_batch(6, seed=step), teacher, 0, step, 10)
    state = copy.deepcopy(lane.deployed.state_dict())
    assert {key.partition(".")[0] for key in state} == {"student", "projector", "classifier"}
    fresh, other = make_lane("simkd", pair)
    with torch.no_grad():
        for parameter in (*fresh.deployed.parameters(), *other.network.tap.parameters()):
            parameter.fill_(0.3)
    fresh.deployed.load_state_dict(state, strict=True)
    image = image_batch(4, seed=9).image
    with torch.no_grad():
        logits = lane.deployed.eval()(image)
        assert torch.equal(fresh.deployed.eval()(image), logits)
    assert logits.shape == (4, 5) and logits.std() > 0


def test_simkd_deploys_what_it_trains():
    """Features that match the teacher's give the teacher's logits; the parts are the method's, the classifier frozen."""
    lane, teacher = make_lane("simkd", "CNN to CNN")
    deployed = lane.deployed
    assert isinstance(deployed, Reused) and deployed.projector is lane.method.projector
    assert not any(parameter.requires_grad for parameter in deployed.classifier.parameters())
    assert deployed.classifier is not teacher.network.tap.model.fc
    image = image_batch(4).image
    last = teacher.network.tap.adapter(image, frozenset({"maps"})).maps[-1]
    with torch.no_grad():
        same = deployed.classifier(last.mean((2, 3)))
        assert torch.allclose(same, teacher.network.tap.model(image), atol=1e-5)
    lane.step(image_batch(6), teacher, 0, 0, 10)
    assert lane.meter.names == ["feature"]
    assert lane.model.fc.weight.grad is None


@pytest.mark.parametrize(("ours", "theirs"), [(2, 8), (8, 8), (16, 8)])
def test_simkd_on_different_grids(ours, theirs):
    method = SimKD(feature_weight=1.0, bottleneck=2)
    f_s, f_t = torch.randn(3, 6, ours, ours), torch.randn(3, 10, theirs, theirs)
    method.build(spec(f_s), spec(f_t, classifier=nn.Linear(10, 100)), DATA)
    logits = torch.zeros(3, 100)
    terms = method.losses(
        batch_of(torch.zeros(3, dtype=torch.long)), Outputs(logits, maps=(f_s,)), Outputs(logits, maps=(f_t,)), LATER
    )
    grid = min(ours, theirs)
    by_hand = (method.projector(F.adaptive_avg_pool2d(f_s, grid)) - F.adaptive_avg_pool2d(f_t, grid)).square().mean()
    assert terms["feature"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert method.grid == (grid, grid)


def test_simkd_projector_is_the_published_one():
    method = SimKD(feature_weight=1.0, bottleneck=2)
    method.build(STUDENT, Spec(10, 32, maps=((40, 8, 8),), pooled=40, classifier=nn.Linear(40, 10)), DATA)
    convs = [layer for layer in method.projector if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs] == [(24, 20, 1), (20, 20, 3), (20, 40, 1)]
    assert method.extra_parameters() == 24 * 20 + 9 * 20 * 20 + 20 * 40 + 2 * (20 + 20 + 40)
    with pytest.raises(ConfigError, match=r"^method\.bottleneck=0: must be at least 1"):
        load(["method=simkd", "method.bottleneck=0"])


def test_adaptor_is_as_large_as_published():
    for ours, theirs, count in ((256, 256, 66_048), (64, 128, 8_448), (128, 256, 33_280)):
        assert sum(parameter.numel() for parameter in adaptor(ours, theirs).parameters()) == count
