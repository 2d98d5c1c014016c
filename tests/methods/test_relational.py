"""RKD, SP, PKT, NST, VID, CC, ReviewKD and CRD against stored values, and properties that must hold."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.draws import Draws
from kdrun.errors import PairingError
from kdrun.methods.cc import cc_loss
from kdrun.methods.crd import CRD, draw_negatives, log_partition, nce_loss
from kdrun.methods.crd_inbatch import info_nce
from kdrun.methods.nst import nst_loss
from kdrun.methods.pkt import pkt_loss
from kdrun.methods.reviewkd import Fusion, ReviewKD, hcl_loss
from kdrun.methods.rkd import rkd_loss
from kdrun.methods.sp import sp_loss
from kdrun.methods.vid import Regressor, vid_loss
from kdrun.structures import DataSpec, Outputs, Progress, Spec
from tests.methods.cases import Definitions, batch_of


def rkd(x: dict[str, Tensor], p: dict) -> Tensor:
    distance, angle = rkd_loss(x["s"], x["t"])
    return p["distance_weight"] * distance + p["angle_weight"] * angle


def vid(x: dict[str, Tensor], p: dict) -> Tensor:
    mean = F.conv2d(F.conv2d(F.conv2d(x["s"], x["w0"]).relu(), x["w1"]).relu(), x["w2"])
    return vid_loss(mean, x["t"], x["ls"])


def fusion(x: dict[str, Tensor], p: dict) -> Tensor:
    level = Fusion(x["x"].shape[1], p["mid"], p["out"], (p["out_shape"], p["out_shape"]), fuses=True)
    renamed = {key.replace("__", ".").replace("att_conv.0", "gate"): value for key, value in x.items()}
    left = level.load_state_dict({key: value for key, value in renamed.items() if "." in key}, strict=False)
    assert not left.unexpected_keys
    assert all("running" in key or "tracked" in key for key in left.missing_keys)
    return F.mse_loss(level(x["x"], x["y"])[0], x["t"])


def crd_memory(x: dict[str, Tensor], p: dict) -> Tensor:
    s = F.normalize(F.linear(x["s"], x["ws"], x["bs"]), dim=1)
    t = F.normalize(F.linear(x["t"], x["wt"], x["bt"]), dim=1)
    loss = torch.zeros(())
    for anchor, bank in ((s, x["mem_v2"]), (t, x["mem_v1"])):
        scores = torch.einsum("nd,nkd->nk", anchor, bank[x["cidx"]]) / p["T"]
        positive, negative = scores[:, 0], scores[:, 1:]
        weight = torch.ones_like(negative)
        log_z = log_partition(positive, negative, weight, samples=p["n_data"]).detach()
        loss = loss + nce_loss(positive, negative, weight, log_z, count=p["K"], samples=p["n_data"])
    return loss


DEFINITIONS: Definitions = {
    "rkd/": rkd,
    "sp/": lambda x, p: sp_loss(x["s"], x["t"]),
    "pkt/": lambda x, p: pkt_loss(x["s"], x["t"]),
    "nst/": lambda x, p: nst_loss(x["s"], x["t"]),
    "vid/": vid,
    "cc/": lambda x, p: cc_loss(x["s"], x["t"]),
    "reviewkd_hcl/": lambda x, p: hcl_loss(x["s"], x["t"]),
    "reviewkd_abf/": fusion,
    "crd_memory/": crd_memory,
    "crd_inbatch/": lambda x, p: info_nce(x["s"], x["t"], temperature=p["tau"], symmetric=p["symmetric"]),
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [sp_loss, pkt_loss, nst_loss, hcl_loss, cc_loss, lambda s, t: sum(rkd_loss(s, t))])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_zero_for_the_teacher_itself(loss, count):
    shape = (count, 6, 4, 4) if loss in (sp_loss, nst_loss, hcl_loss) else (count, 6)
    s = randn(*shape).requires_grad_()
    value = loss(s, s.detach().clone())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(s.grad).all()


def test_rkd_of_equal_samples_is_finite_and_small():
    s = randn(5, 8)
    s[3] = s[1]
    s.requires_grad_()
    distance, angle = rkd_loss(s, randn(5, 4, seed=1))
    (distance + angle).backward()
    assert torch.isfinite(distance + angle)
    assert s.grad.norm().item() < 10
    same = torch.ones(4, 8, requires_grad=True)
    total = sum(rkd_loss(same, randn(4, 8)))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(same.grad).all()


def test_rkd_does_not_see_motion_or_scale():
    s, t = randn(6, 8), randn(6, 5, seed=1)
    rotation = torch.linalg.qr(randn(8, 8, seed=2))[0]
    moved = 7 * s @ rotation + 3
    assert torch.allclose(torch.stack(rkd_loss(s, t)), torch.stack(rkd_loss(moved, t)), atol=1e-5)


def naive_nst(s: Tensor, t: Tensor) -> Tensor:
    s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] * b[:, :, None]).sum(-1).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


@pytest.mark.parametrize("channels", [(3, 5), (12, 30), (30, 3)])
def test_nst_is_the_naive_formula(channels):
    """On a 3x3 grid both Gram matrices get their turn."""
    s, t = randn(4, channels[0], 3, 3).requires_grad_(), randn(4, channels[1], 3, 3, seed=1)
    gradient = torch.autograd.grad(nst_loss(s, t), s)[0]
    expected = torch.autograd.grad(naive_nst(s, t), s)[0]
    assert nst_loss(s, t).item() == pytest.approx(naive_nst(s, t).item(), rel=1e-4)
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_maps_of_other_grids():
    large, small = randn(3, 4, 8, 8), randn(3, 6, 4, 4, seed=1)
    assert nst_loss(large, small).item() == pytest.approx(nst_loss(F.avg_pool2d(large, 2), small).item())
    assert torch.isfinite(sp_loss(large, small))


def test_pkt_survives_a_dead_vector():
    s = randn(4, 6)
    s[2] = 0
    s.requires_grad_()
    pkt_loss(s, randn(4, 6, seed=1)).backward()
    assert torch.isfinite(s.grad).all()


def test_vid_starts_at_its_variance_and_learns_it():
    regressor = Regressor(4, 6, 5.0)
    assert torch.allclose(F.softplus(regressor.log_scale) + 1e-5, torch.full((6,), 5.0))
    regressor(randn(2, 4, 8, 8), randn(2, 6, 4, 4)).backward()
    assert regressor.log_scale.grad.abs().min() > 0
    perfect = torch.ones(1, 1, 2, 2)
    assert vid_loss(perfect, perfect, torch.tensor([-20.0])).item() < 0


def test_cc_depends_on_the_order():
    s, t = randn(5, 6), randn(5, 6, seed=1)
    order = torch.tensor([0, 2, 4, 1, 3])
    assert cc_loss(s, t).item() != pytest.approx(cc_loss(s[order], t[order]).item())


def review_specs() -> tuple[Spec, Spec]:
    student = Spec(5, 32, ((4, 32, 32), (6, 16, 16), (8, 8, 8), (10, 4, 4)), None, 1, 10)
    teacher = Spec(5, 32, ((3, 32, 32), (5, 12, 12), (7, 7, 7)), ((3, 32, 32), (5, 12, 12), (7, 7, 7)), 1, 7)
    return student, teacher


def outputs_of(spec: Spec, seed: int, n: int = 3) -> Outputs:
    preact = tuple(randn(n, *shape, seed=seed) for shape in spec.maps)
    maps = tuple(item.relu() for item in preact)
    assert spec.pooled is not None
    return Outputs(
        randn(n, spec.num_classes, seed=seed), maps, preact if spec.preact else None, randn(n, spec.pooled, seed=seed)
    )


@pytest.mark.parametrize("count", [1, 3])
def test_reviewkd_on_any_levels_and_grids(count):
    student, teacher = review_specs()
    for a, b in ((student, teacher), (teacher, student)):
        method = ReviewKD(ce_weight=1.0, review_weight=5.0, warmup_epochs=20)
        method.build(a, b, DataSpec(10, torch.arange(10) % 5, 5, 32))
        assert len(method.levels) == 3
        terms = method.losses(
            batch_of(torch.zeros(count, dtype=torch.int64)),
            outputs_of(a, 1, count),
            outputs_of(b, 2, count),
            Progress(0, 240, 0, 1),
        )
        terms["review"].backward()
        assert torch.isfinite(terms["review"])
        assert all(parameter.grad is not None for parameter in method.parameters())


def test_reviewkd_looks_before_the_last_activation():
    student, teacher = review_specs()
    method = ReviewKD(ce_weight=1.0, review_weight=5.0, warmup_epochs=20)
    method.build(student, teacher, DataSpec(10, torch.arange(10) % 5, 5, 32))
    method.eval()
    s, t = outputs_of(student, 1), outputs_of(teacher, 2)
    blind = t._replace(maps=tuple(torch.zeros_like(item) for item in t.maps or ()))
    assert method.review(s, t).item() == method.review(s, blind).item()
    assert method.review(s, t).item() != method.review(s, t._replace(preact=None)).item()


LABELS = torch.cat([torch.full((size,), kind) for kind, size in enumerate((40, 7, 23, 1))])


def draw(count: int, seed: int = 0, labels: Tensor = LABELS) -> tuple[Tensor, Tensor, Tensor]:
    label = torch.arange(4)
    candidates, weight = draw_negatives(
        labels,
        label,
        Draws(seed, 0, 0).order(0, len(labels), labels.device),
        count=count,
        largest_class=int(labels.bincount().max()),
        num_classes=4,
    )
    return label, candidates, weight


@pytest.mark.parametrize("count", [1, 10, 30])
def test_negatives_are_count_samples_of_other_classes(count):
    for seed in range(20):
        label, candidates, weight = draw(count, seed)
        assert len(candidates.unique()) == len(candidates)
        assert ((weight == 0) | (weight == 1)).all()
        assert (weight.sum(dim=1) == count).all()
        own = LABELS[candidates] == label[:, None]
        assert (weight[own] == 0).all()


def test_few_others_are_all_taken_at_the_weight_of_all_negatives():
    label, candidates, weight = draw(1000)
    assert len(candidates) == len(LABELS)
    assert torch.allclose(weight.sum(dim=1), torch.full((4,), 1000.0))
    for kind, row in zip(label, weight, strict=True):
        others = LABELS[candidates] != kind
        assert torch.allclose(row[others], 1000.0 / others.sum())
        assert (row[~others] == 0).all()


def test_every_other_sample_is_drawn_equally_often():
    drawn, times = torch.zeros(4, len(LABELS)), 2000
    for seed in range(times):
        _, candidates, weight = draw(10, seed)
        drawn[:, candidates] += weight
    for kind, row in enumerate(drawn / times):
        others = row[kind != LABELS]
        share = 10 / len(others)
        assert (others - share).abs().max() < 5 * math.sqrt(share * (1 - share) / times)


def test_negatives_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, again, other = draw(10, 3), draw(10, 3), draw(10, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[1], other[1])


def crd_method(samples: int = 30, negatives: int = 12) -> CRD:
    method = CRD(negatives=negatives, temperature=0.07, momentum=0.5, embedding=8, ce_weight=1.0, crd_weight=0.8)
    torch.manual_seed(0)
    method.build(Spec(5, 8, pooled=6), Spec(5, 8, pooled=4), DataSpec(samples, torch.arange(samples) % 5, 5, 8))
    return method


def crd_step(method: CRD, step: int, count: int = 4) -> Tensor:
    s, t = Outputs(randn(count, 5), pooled=randn(count, 6, seed=step)), Outputs(randn(count, 5), pooled=randn(count, 4))
    progress = Progress(0, 240, step, 9, Draws(0, 0, step))
    return method.losses(batch_of(torch.arange(count) % 5), s, t, progress)["crd"]


def test_crd_bank_rows_are_unit_vectors_once_seen():
    method = crd_method()
    before = method.bank_s.clone()
    crd_step(method, 0)
    mixed = 0.5 * before[:4] + 0.5 * method.embed_student(randn(4, 6))
    assert torch.allclose(method.bank_s[:4], F.normalize(mixed, dim=1), atol=1e-6)
    for step in (1, 2):
        crd_step(method, step).backward()
    for bank in (method.bank_s, method.bank_t):
        assert torch.allclose(bank[:4].norm(dim=1), torch.ones(4))
    assert torch.equal(before[4:], method.bank_s[4:])


def test_crd_estimates_z_once_and_again_after_loading_an_unused_state():
    method = crd_method()
    unused = copy.deepcopy(method.state_dict())
    assert method.log_z.isinf().all()
    crd_step(method, 0)
    first = method.log_z.clone()
    assert first.isfinite().all()
    crd_step(method, 1)
    assert torch.equal(method.log_z, first)
    method.load_state_dict(method.state_dict())
    crd_step(method, 2)
    assert torch.equal(method.log_z, first)
    method.load_state_dict(unused)
    crd_step(method, 0)
    assert torch.equal(method.log_z, first)


def test_crd_scores_against_the_banks_before_their_update():
    """Gradient and loss are those of rows copied before the batch is written."""
    method = crd_method()
    before = copy.deepcopy(method)
    value = crd_step(method, 0)
    value.backward()
    before.update = lambda *_: None
    expected = crd_step(before, 0)
    expected.backward()
    assert value.item() == expected.item()
    for name, parameter in method.named_parameters():
        assert torch.equal(parameter.grad, before.get_parameter(name).grad)


def test_crd_of_equal_banks_cannot_tell_the_positive():
    method = crd_method()
    for bank in (method.bank_s, method.bank_t):
        bank.copy_(bank[:1].expand_as(bank))
    anchor = F.normalize(randn(4, 8), dim=1)
    values = [method.scores(anchor, method.bank_s, torch.arange(4) + shift, torch.arange(12))[0] for shift in (0, 9)]
    assert torch.equal(*values)


def test_crd_is_finite_at_a_small_temperature():
    weight, log_z = torch.ones(2, 3), torch.tensor(-90.0)
    positive, negative = torch.tensor([200.0, -200.0]), torch.tensor([[200.0, -200.0, 0.0]]).expand(2, 3)
    assert torch.isfinite(nce_loss(positive, negative, weight, log_z, count=3, samples=50))
    assert torch.isfinite(log_partition(positive, negative, weight, samples=50))


def test_crd_says_how_large_its_banks_are():
    assert crd_method(samples=2**15).note() == "crd keeps two banks of 32,768 x 8 embeddings: 2.0 MiB"


def test_info_nce_of_equal_embeddings_is_the_logarithm_of_the_batch():
    ones = torch.ones(6, 4)
    assert info_nce(ones, ones, temperature=0.07, symmetric=True).item() == pytest.approx(math.log(6), rel=1e-5)
    assert info_nce(ones[:1], ones[:1], temperature=0.07, symmetric=False).item() == 0


def test_networks_without_pooled_vectors_are_refused_in_one_line():
    method = CRD(negatives=4, temperature=0.07, momentum=0.5, embedding=8, ce_weight=1.0, crd_weight=0.8)
    with pytest.raises(PairingError, match="method crd") as refused:
        method.build(Spec(5, 8), Spec(5, 8, pooled=4), DataSpec(10, torch.arange(10) % 5, 5, 8))
    assert "\n" not in str(refused.value)
