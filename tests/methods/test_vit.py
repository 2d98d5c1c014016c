"""OFA, DeiT, CSKD, VLFKD and CAPD: stored values, published shapes, identities, and what the seam shows of tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.compose import load
from kdrun.draws import Draws
from kdrun.errors import ConfigError, PairingError
from kdrun.methods.capd import (
    CAPD,
    GroupLinear,
    adversarial_losses,
    attend,
    attention_loss,
    discriminator,
)
from kdrun.methods.cskd import CSKD, DECAYS, cskd_loss, dense_logits
from kdrun.methods.deit import DeiT, deit_loss
from kdrun.methods.ofa import OFA, Merge, TokenProjector, map_projector, ofa_loss
from kdrun.methods.views import transformed
from kdrun.methods.vlfkd import VLFKD, decoupled_error, feature_divergence, grid_tokens
from kdrun.models.features import Tap, measure
from kdrun.models.zoo import create_model
from kdrun.structures import DataSpec, Outputs, Progress, Spec
from kdrun.training.method_trial import CLASSES, SIDE, TinyCNN, tiny_vit
from kdrun.training.method_trial import batch_of as image_batch
from tests.methods.cases import (
    CASES,
    Definitions,
    batch_of,
    logits,
    make_lane,
    tensor,
)

DATA = DataSpec(8, torch.zeros(8, dtype=torch.long), 10, 32)
LATER = Progress(3, 30, 1, 10)
NO_TOKENS = Spec(10, 32, maps=((8, 8, 8), (16, 4, 4)), stems=1, pooled=16, classifier=nn.Linear(16, 10))


def make_cskd(**settings) -> CSKD:
    usual = {
        "alpha": 0.5,
        "cskd_weight": 1.0,
        "temperature": 1.0,
        "variant": "hard",
        "deit_variant": "hard",
        "decay": "linear",
    }
    return CSKD(**{**usual, **settings})


def make_ofa() -> OFA:
    return OFA(temperature=1.0, eps=1.0, ce_weight=1.0, kd_weight=1.0, stage_weight=1.0)


def make_vlfkd(attention: bool = True) -> VLFKD:
    return VLFKD(
        ce_weight=1.0,
        global_weight=0.5,
        patch_weight=0.3,
        linguistic_weight=0.2,
        pixel_weight=1.0,
        words=16,
        attention=attention,
    )


def make_capd(**settings) -> CAPD:
    usual = {
        "ce_weight": 1.0,
        "attention_weight": 1.0,
        "token_weight": 1.0,
        "adversarial_weight": 0.1,
        "replaced": 0.5,
        "transformed": 0.5,
        "dropout": 0.1,
    }
    return CAPD(**{**usual, **settings})


def cskd_part(inputs: dict[str, Tensor], params: dict) -> Tensor:
    local = DECAYS[params["decay"]](params["epoch"] / params["max_epoch"])
    return cskd_loss(inputs["d"], inputs["t"], local=local, variant=params["loss"], temperature=params["tau"])


def cskd_total(inputs: dict[str, Tensor], params: dict) -> Tensor:
    """The method itself, where both heads are the identity: a token is its logits."""
    method = make_cskd(alpha=params["alpha"], cskd_weight=params["cskd_weight"])
    classes = inputs["o"].shape[1]
    student = Spec(
        classes, 224, ((classes, 14, 14),), tokens=(196, classes), heads=("dist",), head_modules={"dist": nn.Identity()}
    )
    teacher = Spec(classes, 224, ((classes, 7, 7),), pooled=classes, classifier=nn.Identity())
    method.build(student, teacher, DATA)
    ours = Outputs(inputs["o"], tokens=inputs["d"], heads={"dist": inputs["sd"]})
    theirs = Outputs(inputs["t"].mean((2, 3)), maps=(inputs["t"],))
    terms = method.losses(batch_of(inputs["y"]), ours, theirs, Progress(params["epoch"], params["max_epoch"], 0, 1))
    return torch.stack(list(terms.values())).sum()


DEFINITIONS: Definitions = {
    "ofa/": lambda x, p: ofa_loss(x["s"], x["t"], x["y"], eps=p["eps"], temperature=p["T"]),
    "deit/": lambda x, p: deit_loss(x["s"], x["t"], variant="hard", temperature=p["tau"]),
    "cskd/": cskd_part,
    "cskd_total/": cskd_total,
}


@pytest.mark.parametrize("variant", ["hard", "soft"])
def test_cskd_is_finite_at_fifty_times_the_logits(variant):
    case = CASES["cskd/hard/linear/e75"]
    student, teacher = (50 * tensor(case["inputs"][key]) for key in ("d", "t"))
    student.requires_grad_()
    loss = cskd_loss(student, teacher, local=0.75, variant=variant, temperature=1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


# OFA


def test_ofa_identities():
    s, t, y = logits()
    soft = -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()
    assert ofa_loss(s, t, y, eps=1.0, temperature=1.0).item() == pytest.approx(soft.item(), rel=1e-5)
    entropy = -(t.softmax(1) * t.log_softmax(1)).sum(1).mean()
    assert ofa_loss(t, t, y, eps=1.0, temperature=1.0).item() == pytest.approx(entropy.item(), rel=1e-5)
    p = (t / 2).softmax(1)
    target = p.square() + F.one_hot(y, 10) * 2 * p  # (p + m)² - m, as m² = m
    raised = -(target * (s / 2).log_softmax(1)).sum(1).mean()
    assert ofa_loss(s, t, y, eps=2.0, temperature=2.0).item() == pytest.approx(raised.item(), rel=1e-5)


def test_ofa_projectors_of_a_cnn_are_the_published_ones():
    """Stage i of four: 4 - i halvings that double the channels, the last to the wider network's width."""
    student = Spec(10, 224, ((8, 112, 112), (16, 56, 56), (32, 28, 28), (64, 14, 14), (128, 7, 7)), stems=1, pooled=128)
    method = make_ofa()
    method.build(student, Spec(10, 224, pooled=192), DATA)
    widths = [
        [block[5].out_channels for block in projector[:-3] if isinstance(block, nn.Sequential)]
        for projector in method.projectors
    ]
    assert widths == [[32, 64, 192], [64, 192], [192], []]
    last = method.projectors[3][0]
    assert (last.in_channels, last.out_channels, last.kernel_size) == (128, 192, (1, 1))
    assert [projector[-1].in_features for projector in method.projectors] == [192] * 4
    block = method.projectors[2][0]
    assert sum(parameter.numel() for parameter in block.parameters()) == 2 * 9 * 64 + 64 * 64 + 64 * 192 + 2 * (
        64 + 192
    )
    assert block(torch.zeros(1, 64, 14, 14)).shape == (1, 192, 7, 7)
    assert block(torch.zeros(1, 64, 7, 7)).shape == (1, 192, 4, 4)


def test_ofa_projectors_of_a_vit_are_the_published_ones():
    method = make_ofa()
    method.build(
        Spec(10, 224, ((24, 14, 14),) * 4, pooled=24, tokens=(196, 24), prefix=1), Spec(10, 224, pooled=99), DATA
    )
    assert [len(projector.blocks) for projector in method.projectors] == [3, 2, 1, 1]
    assert [len(projector.merge) for projector in method.projectors] == [1] * 4
    assert all(projector.blocks[0].attn.num_heads == 4 for projector in method.projectors)
    merge = method.projectors[0].merge[0]
    assert merge(torch.zeros(2, 14, 14, 24)).shape == (2, 7, 7, 24)
    assert isinstance(merge.activation, nn.GELU) and merge.reduction.bias is None


def test_merge_is_swins():
    torch.manual_seed(0)
    merge, x = Merge(6, nn.GELU()), torch.randn(2, 4, 6, 6)
    corners = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    assert torch.equal(merge(x), F.gelu(merge.reduction(merge.norm(corners))))
    odd = x[:, :3, :5]
    assert torch.equal(merge(odd), merge(F.pad(odd, (0, 0, 0, 1, 0, 1))))


@pytest.mark.parametrize(
    ("grid", "merges", "left"), [(3, 0, 3), (8, 0, 8), (14, 1, 7), (15, 1, 8), (28, 2, 7), (29, 2, 8)]
)
def test_ofa_on_every_grid(grid, merges, left):
    projector = TokenProjector(12, grid, 1, 10)
    assert len(projector.merge) == merges
    x = torch.randn(1, 12, grid, grid)
    assert projector.merge(x.permute(0, 2, 3, 1)).shape == (1, left, left, 12)
    assert projector(x, torch.randn(1, 2, 12)).shape == (1, 10)
    assert torch.equal(projector(x, None), projector(x, torch.zeros(1, 0, 12)))


def test_ofa_reads_the_class_token():
    projector = TokenProjector(8, 4, 1, 5)
    projector.blocks = nn.Sequential()  # nothing mixes the tokens
    x, prefix = torch.randn(3, 8, 4, 4), torch.randn(3, 2, 8)
    assert torch.equal(projector(x, prefix), projector.classify(prefix[:, 0]))
    assert torch.allclose(projector(x, None), projector.classify(x.mean((2, 3))), atol=1e-6)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_x0_5", "shufflenet_v1"])
def test_ofa_on_zoo_networks(name):
    check_ofa(create_model(name, num_classes=10), 32)


@pytest.mark.parametrize(("size", "patch"), [(30, 2), (32, 4), (28, 2)])
def test_ofa_on_vits(size, patch):
    from timm.models.vision_transformer import VisionTransformer

    check_ofa(
        VisionTransformer(img_size=size, patch_size=patch, embed_dim=12, depth=5, num_heads=2, num_classes=10), size
    )


def check_ofa(model: nn.Module, size: int) -> None:
    """One stage's logits per tap, in a batch of one and of three, with gradients for every projector."""
    method = make_ofa()
    tap = Tap(model, size, method.student_needs).train()
    spec = measure(tap, 10)
    method.build(spec, Spec(10, size, pooled=20), DATA)
    for count in (1, 3):
        out = tap(torch.randn(count, 3, size, size))
        found = method.stage_logits(out)
        assert [tuple(x.shape) for x in found] == [(count, 10)] * (len(spec.maps) - spec.stems)
        y = torch.zeros(count, dtype=torch.long)
        terms = method.losses(batch_of(y), out, Outputs(torch.randn(count, 10)), LATER)
        torch.stack(list(terms.values())).sum().backward()
    assert all(math.isfinite(term.item()) for term in terms.values())
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_ofa_needs_stages():
    with pytest.raises(PairingError, match="method ofa"):
        make_ofa().build(Spec(10, 32), NO_TOKENS, DATA)


def test_ofa_of_a_single_stage_is_a_convolution():
    assert isinstance(map_projector(8, 0, 16, 10)[0], nn.Conv2d)


# What the taps show


@pytest.mark.parametrize("name", ["vit_cifar_tiny", "vit_cifar_tiny_distilled"])
def test_prefix_tokens_of_the_stages(name):
    """They are those of the same blocks as the maps, and travel only where maps and tokens were both asked for."""
    model = create_model(name, num_classes=5).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tap = Tap(model, 32, frozenset({"maps", "tokens"}))
    seen.clear()  # of the forward that finds the stages
    out = tap(torch.randn(2, 3, 32, 32))
    prefix = model.num_prefix_tokens
    chosen = [seen[i] for i in tap.adapter.indices]
    for tokens, found, x in zip(chosen, out.map_prefix, out.maps, strict=True):
        assert torch.equal(found, tokens[:, :prefix])
        assert torch.equal(x.flatten(2).transpose(1, 2), tokens[:, prefix:])
    for needs in ({"maps"}, {"tokens"}, {"heads"}):
        tap.needs = frozenset(needs)
        assert tap(torch.randn(2, 3, 32, 32)).map_prefix is None


def test_prefix_tokens_of_a_probed_transformer():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 4, 2, 12, 24, num_classes=10)
    tap = Tap(model, 32, frozenset({"maps", "tokens"})).eval()
    out = tap(torch.randn(2, 3, 32, 32))
    assert [tuple(x.shape) for x in out.map_prefix] == [(2, 1, 12)] * len(out.maps)
    assert torch.equal(out.map_prefix[-1], out.prefix)
    check_ofa(model, 32)


def test_head_modules():
    model = create_model("vit_cifar_tiny_distilled", num_classes=5)
    spec = measure(Tap(model, 32), 5)
    assert spec.heads == tuple(spec.head_modules) == ("dist",)
    assert spec.head_modules["dist"] is model.head_dist
    assert measure(Tap(create_model("vit_cifar_tiny", num_classes=5), 32), 5).head_modules == {}


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1"])
def test_two_heads_on_one_vector_are_not_a_distillation_token(name):
    """timm calls these heads `head_dist` too; reading tokens 0 and 1 of such a network gives other logits."""
    import timm

    model = timm.create_model(name, num_classes=7).eval()
    tap = Tap(model, 224, frozenset({"maps"})).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(tap(image).logits, model(image), atol=1e-5)
    assert measure(tap, 7).heads == ()


# DeiT


def test_deit_variants():
    s, t, _ = logits()
    hard = -s.log_softmax(1)[torch.arange(8), t.argmax(1)].mean()
    assert deit_loss(s, t, variant="hard", temperature=1.0).item() == pytest.approx(hard.item(), rel=1e-5)
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    soft = 9 * (p * (p / q).log()).sum() / 80
    assert deit_loss(s, t, variant="soft", temperature=3.0).item() == pytest.approx(soft.item(), rel=1e-5)
    assert abs(deit_loss(t, t, variant="soft", temperature=3.0).item()) < 1e-6


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("method=deit method.variant=medium", r"^method\.variant=medium: must be hard or soft\.$"),
        ("method=cskd method.variant=medium", r"^method\.variant=medium: must be hard or soft\.$"),
        ("method=cskd method.decay=slow", r"^method\.decay=slow: must be linear or quadratic or cosine\.$"),
        ("method=cskd method.deit_variant=", r"^method\.deit_variant=: must be hard or soft\.$"),
    ],
)
def test_unknown_choices_are_one_line(word, line):
    with pytest.raises(ConfigError, match=line):
        load(word.split())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DeiT(variant="hard", alpha=0.5, temperature=1.0), "deit"),
        (make_cskd, "cskd"),
    ],
)
def test_students_without_a_distillation_token_are_refused(make, name):
    with pytest.raises(PairingError, match=f"method {name} .*vit_cifar_tiny_distilled") as caught:
        make().build(NO_TOKENS, NO_TOKENS, DATA)
    assert "\n" not in str(caught.value)


def test_deit_teaches_each_head_its_own():
    """The labels reach the class head alone, the teacher the distillation head alone."""
    lane, teacher = make_lane("deit", "CNN to ViT")
    batch = image_batch(6)
    out, taught = lane.student(batch.image), teacher(batch.image)
    terms = lane.method.losses(batch, out, taught, LATER)
    heads = (lane.model.head.weight, lane.model.head_dist.weight)
    of_ce = torch.autograd.grad(terms["ce"], heads, retain_graph=True, allow_unused=True)
    of_deit = torch.autograd.grad(terms["deit"], heads, allow_unused=True)
    assert of_ce[0].any() and of_ce[1] is None
    assert of_deit[0] is None and of_deit[1].any()


# CSKD


def test_cskd_target_goes_from_local_to_global():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 16, 5), torch.randn(2, 5, 2, 2)
    pooled = F.avg_pool2d(student.transpose(1, 2).reshape(2, 5, 4, 4), 2)
    local = F.cross_entropy(pooled, teacher.argmax(1))
    everywhere = teacher.mean((2, 3)).argmax(1)[:, None, None].expand(2, 2, 2)
    assert cskd_loss(student, teacher, local=1.0, variant="hard", temperature=1.0) == local
    found = cskd_loss(student, teacher, local=0.0, variant="hard", temperature=1.0)
    assert found.item() == pytest.approx(F.cross_entropy(pooled, everywhere).item(), rel=1e-6)
    p, q = (teacher / 2).softmax(1), (pooled / 2).softmax(1)
    soft = 4 * (p * (p / q).log()).sum() / 2  # summed over positions, averaged over samples
    found = cskd_loss(student, teacher, local=1.0, variant="soft", temperature=2.0)
    assert found.item() == pytest.approx(soft.item(), rel=1e-5)


def test_cskd_decays():
    for name, middle in (("linear", 0.5), ("quadratic", 0.25), ("cosine", math.sqrt(0.5))):
        assert DECAYS[name](0.0) == 1
        assert DECAYS[name](0.5) == pytest.approx(middle)
        assert abs(DECAYS[name](1.0)) < 1e-12


@pytest.mark.parametrize("grid", [1, 3, 4, 7])
def test_cskd_on_different_grids(grid):
    """A teacher coarser or finer than the student's patches: same positions, finite, a gradient for every patch."""
    student = torch.randn(1, 16, 5, requires_grad=True)
    loss = cskd_loss(student, torch.randn(1, 5, grid, grid), local=0.5, variant="soft", temperature=1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad.abs().sum(dim=(0, 2)).min() > 0


def test_dense_logits_average_to_the_logits():
    x, classifier = torch.randn(2, 6, 3, 4), nn.Linear(6, 5)
    dense = dense_logits(classifier, x)
    assert torch.allclose(dense.mean((2, 3)), classifier(x.mean((2, 3))), atol=1e-6)
    assert torch.allclose(dense[1, :, 2, 3], classifier(x[1, :, 2, 3]), atol=1e-6)


def test_cskd_deploys_three_heads_without_a_parameter_more():
    lane, teacher = make_lane("cskd", "CNN to ViT")
    lane.step(image_batch(6), teacher, 0, 0, 10)
    image = image_batch(4).image
    model, deployed = lane.model.eval(), lane.deployed.eval()
    with torch.no_grad():
        tokens = model.forward_features(image)
        wanted = model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1]) + model.head_dist(tokens[:, 2:]).mean(1)
        assert torch.allclose(deployed(image), wanted / 3, atol=1e-6)
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in model.parameters())
    assert lane.method.extra_parameters() == 0 and not lane.method.state_dict()
    own = {key.removeprefix("student."): value for key, value in deployed.state_dict().items()}
    tiny_vit().load_state_dict(own, strict=True)


def test_cskd_patches_train_the_distillation_head_and_not_the_teacher():
    lane, teacher = make_lane("cskd", "CNN to ViT")
    batch = image_batch(6)
    terms = lane.method.losses(batch, lane.student(batch.image), teacher(batch.image), LATER)
    lane.model.zero_grad()
    terms["cskd"].backward()
    assert lane.model.head_dist.weight.grad.any()
    assert lane.model.head.weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.network.tap.parameters())


def test_cskd_refuses_teachers_that_classify_a_class_token():
    student = measure(Tap(tiny_vit(), SIDE), CLASSES)
    with pytest.raises(PairingError, match=r"method cskd .*class token"):
        make_cskd().build(student, student, DATA)


# VLFKD


def test_vlfkd_parts_by_hand():
    s, t, y = logits()
    rows = range(len(y))
    target = sum((s[i, y[i]] - t[i, y[i]]) ** 2 for i in rows) / 8
    others = sum((s[i].sum() - s[i, y[i]] - t[i].sum() + t[i, y[i]]) ** 2 for i in rows) / 8
    assert decoupled_error(s, t, y).item() == pytest.approx((target + others).item(), rel=1e-4)
    p, q = t.softmax(1), s.softmax(1)
    assert feature_divergence(s, t).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(grid_tokens(x, 16), x.flatten(2).transpose(1, 2))
    assert grid_tokens(x, 49).shape == (2, 49, 3)


def test_vlfkd_of_equal_features_is_only_the_hard_label_term():
    """If the projections are identities and both sides agree, every other term vanishes."""
    method = make_vlfkd(attention=False)
    method.build(Spec(10, 32, tokens=(16, 6)), Spec(10, 32, maps=((6, 4, 4),)), DATA)
    for linear in (method.whole, method.patch):
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    method.teacher_words.load_state_dict(method.student_words.linear.state_dict())
    s, _, y = logits(3)
    tokens = torch.randn(3, 16, 6)
    ours = Outputs(s, tokens=tokens)
    theirs = Outputs(s, maps=(tokens.transpose(1, 2).reshape(3, 6, 4, 4),))
    terms = method.losses(batch_of(y), ours, theirs, LATER)
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(s, y).item())
    assert all(abs(term.item()) < 1e-6 for name, term in terms.items() if name != "ce")
    assert method.mix is None


def test_vlfkd_attention_is_trained():
    torch.manual_seed(0)
    method = make_vlfkd()
    method.build(Spec(10, 32, tokens=(16, 6)), Spec(10, 32, maps=((8, 5, 5),)), DATA)
    s, t, y = logits(2)
    tokens = torch.randn(2, 16, 6, requires_grad=True)
    terms = method.losses(batch_of(y), Outputs(s, tokens=tokens), Outputs(t, maps=(torch.randn(2, 8, 5, 5),)), LATER)
    terms["linguistic"].backward()
    assert method.mix.in_proj_weight.grad.any() and method.mix.out_proj.weight.grad.any()
    assert method.teacher_words.weight.grad.any() and tokens.grad.any()
    assert method.patch.weight.grad is None


def test_vlfkd_and_capd_say_what_they_need():
    vit = Spec(10, 32, maps=((8, 4, 4),) * 4, pooled=8, tokens=(16, 8), prefix=1, attention=(2, 17, 4))
    for method, student, teacher in (
        (make_vlfkd(), NO_TOKENS, NO_TOKENS),
        (make_vlfkd(), vit, Spec(10, 32)),
        (make_capd(), NO_TOKENS, NO_TOKENS),
        (make_capd(), Spec(10, 32), vit),
    ):
        name = type(method).__name__.lower()
        with pytest.raises(PairingError, match=f"^method {name} ") as caught:
            method.build(student, teacher, DATA)
        assert "\n" not in str(caught.value)


# CAPD


def qkv(seed: int, n: int = 2, heads: int = 2, length: int = 16, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, heads, length, width, generator=generator) for _ in range(3))  # type: ignore[return-value]


def test_capd_attention():
    ours, theirs = qkv(0), qkv(1)
    wanted = F.scaled_dot_product_attention(*ours)
    assert torch.allclose(attend(*ours), wanted, atol=1e-5)
    assert attention_loss(theirs, theirs, theirs).item() == 0
    values = (ours[2] @ ours[2].mT - theirs[2] @ theirs[2].mT) / 2  # √4
    assert attention_loss(theirs, ours, theirs).item() == pytest.approx(values.square().mean().item(), rel=1e-5)


def test_capd_splits_heads_as_the_teacher_does():
    """Channels are grouped by head, as timm reshapes qkv."""
    method = make_capd()
    method.build(NO_TOKENS, Spec(10, 32, tokens=(16, 8), attention=(2, 17, 4)), DATA)
    flat = torch.randn(3, 8, 16)
    split = method.cross.split(flat)
    assert torch.equal(split, flat.transpose(1, 2).reshape(3, 16, 2, 4).permute(0, 2, 1, 3))


@pytest.mark.parametrize(("side", "groups"), [(14, 16), (4, 1), (5, 4), (8, 4), (1, 1)])
def test_group_linear_position_by_position(side, groups):
    torch.manual_seed(0)
    linear, x = GroupLinear(3, 6, side), torch.randn(2, 3, side, side)
    assert len(linear.weight) == groups
    found = linear(x, torch.ones(()))
    assert found.shape == (2, side * side, 6)
    for row in range(side):
        for column in range(side):
            group = row // 4 * math.ceil(side / 4) + column // 4
            wanted = x[:, :, row, column] @ linear.weight[group] + linear.bias[group]
            assert torch.allclose(found[:, row * side + column], wanted, atol=1e-5)


def test_capd_drops_inputs_of_its_linear_maps():
    """Half of them zeroed and the others doubled, by draws of their own in each epoch."""
    lane, teacher = make_lane("capd", "ViT to CNN", settings_of={"dropout": 0.5, "transformed": 0.0})
    seen = []
    lane.method.groups.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    for epoch in (0, 0, 1):
        lane.method(image_batch(6), lane.student, teacher, Progress(epoch, 30, 0, 10, Draws(5, epoch, 0)))
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert abs(seen[0].mean() - 1) < 0.15
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_adversaries_share_an_optimizer_as_if_each_had_its_own():
    torch.manual_seed(0)
    source, teacher = torch.randn(3, 16, 8), torch.randn(3, 16, 8)

    def sides() -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(1)
        return nn.Linear(8, 8), discriminator(8)

    student, judge = sides()
    one = torch.optim.Adam([*student.parameters(), *judge.parameters()], lr=0.01)
    alone, other = sides()
    for_student = torch.optim.Adam(alone.parameters(), lr=0.01)
    for_judge = torch.optim.Adam(other.parameters(), lr=0.01)
    for _ in range(5):
        one.zero_grad()
        apart, fool = adversarial_losses(judge, student(source), teacher)
        (apart + 0.1 * fool).backward()
        one.step()
        for_student.zero_grad()
        for_judge.zero_grad()
        tokens = alone(source)
        (0.1 * torch.log(1 - other(tokens).sigmoid()).mean()).backward()
        other.zero_grad()  # what the student's loss would teach the discriminator
        (-torch.log(other(teacher).sigmoid()) - torch.log(1 - other(tokens.detach()).sigmoid())).mean().backward()
        for_student.step()
        for_judge.step()
    for a, b in zip(
        [*student.parameters(), *judge.parameters()], [*alone.parameters(), *other.parameters()], strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


def test_adversarial_losses_are_finite_for_any_discriminator():
    judge = nn.Linear(4, 1)
    nn.init.constant_(judge.weight, 1e4)
    losses = adversarial_losses(judge, torch.ones(1, 2, 4), -torch.ones(1, 2, 4))
    assert all(torch.isfinite(loss) for loss in losses)


def test_views():
    image = torch.randn(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def view(probability: float, seed: int = 0) -> Tensor:
        return transformed(image, probability, Draws(seed, 0, 0), torch.arange(64))

    def changed(probability: float) -> int:
        return int((view(probability) != image).flatten(1).any(dim=1).sum())

    assert torch.equal(view(0.0), image)
    assert changed(1.0) == 64
    assert 20 < changed(0.5) < 44
    assert torch.equal(view(0.5), view(0.5)) and not torch.equal(view(1.0), view(1.0, seed=1))
    assert view(1.0).is_contiguous(memory_format=torch.channels_last)
    moved = transformed(smooth(64), 1.0, Draws(0, 0, 0), torch.arange(64))
    assert F.cosine_similarity(moved.flatten(1), smooth(64).flatten(1)).median() > 0.5
    part = transformed(image[40:50], 1.0, Draws(0, 0, 0), torch.arange(40, 50))
    assert torch.allclose(part, view(1.0)[40:50])  # a sample looks the same in any batch


def smooth(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return F.interpolate(torch.randn(n, 3, 4, 4, generator=generator), size=(32, 32), mode="bilinear")


def test_capd_student_sees_the_view_and_the_teacher_the_image():
    lane, teacher = make_lane("capd", "ViT to CNN", settings_of={"transformed": 1.0})
    batch = image_batch(6)
    seen = []
    lane.student.tap.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    asked = []
    teacher.network.tap.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    lane.step(batch, teacher.for_batch(batch), 0, 0, 10)
    assert len(seen) == 1 and not torch.equal(seen[0], batch.image)
    assert len(asked) == 1 and torch.equal(asked[0], batch.image)


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright blob in one of five places on noise: easy."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 5, (count,), generator=generator)
    image = 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    places = torch.tensor([(3, 3), (3, 10), (10, 3), (10, 10), (6, 6)])
    for i, (row, column) in enumerate(places[label].tolist()):
        image[i, :, row : row + 3, column : column + 3] += 3
    return image.contiguous(memory_format=torch.channels_last), label


def test_capd_teaches_a_cnn():
    """A short training with projectors and discriminator beats chance (20 %) clearly, and the projection improves."""
    lane, teacher = make_lane("capd", "ViT to CNN")
    terms: list[dict[str, float]] = []
    for step in range(80):
        image, label = blobs(32, step)
        batch = image_batch(32)
        batch = type(batch)(image, label, batch.index, image)
        lane.step(batch, teacher, 0, step, 100)
        if step in (0, 79):
            found = lane.method(batch, lane.student, teacher, Progress(0, 30, step, 100))
            terms.append({name: term.item() for name, term in found.items()})
    first, last = terms
    image, label = blobs(200, 1000)
    with torch.no_grad():
        right = (lane.deployed.eval()(image).argmax(1) == label).float().mean().item()
    assert right > 0.6
    assert last["tokens"] < first["tokens"] and last["attention"] < first["attention"]
    assert isinstance(lane.model, TinyCNN)
