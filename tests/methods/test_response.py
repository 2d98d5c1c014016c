"""DIST, logit standardisation, NKD, CTKD, MLKD and SSKD against stored values, and their identities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.compose import load
from kdrun.methods.ctkd import cosine_ramp
from kdrun.methods.dist import DIST, correlation_distances, dist_loss, distv2_loss
from kdrun.methods.dkd import DKD, dkd_loss
from kdrun.methods.factory import make_method
from kdrun.methods.losses import kl_divergence
from kdrun.methods.lskd import lskd_loss, standardise
from kdrun.methods.mlkd import batch_loss, class_loss, instance_loss, unsure
from kdrun.methods.nkd import nkd_loss
from kdrun.methods.sskd import kept_divergence, kept_rows, own_image, rank_of, rotations, similarity
from kdrun.structures import Batch, Outputs, Progress
from tests.methods.cases import (
    CASES,
    Definitions,
    batch_of,
    logits,
    tensor,
    total,
)


def dist_part(inputs: dict[str, Tensor], params: dict) -> Tensor:
    inter, intra = dist_loss(inputs["s"], inputs["t"], temperature=params["tau"])
    return params["beta"] * inter + params["gamma"] * intra


def distv2_part(inputs: dict[str, Tensor], params: dict) -> Tensor:
    if params["beta"] == params["gamma"] == 1:
        return distv2_loss(inputs["s"], inputs["t"])
    rows, columns = correlation_distances(inputs["s"], inputs["t"])
    return params["beta"] * rows + params["gamma"] * columns


def dist_total(inputs: dict[str, Tensor], params: dict) -> Tensor:
    method = DIST(
        temperature=params["tau"], ce_weight=params["alpha"], inter_weight=params["beta"], intra_weight=params["gamma"]
    )
    return total(method, inputs)


def standardised_dkd(inputs: dict[str, Tensor], params: dict) -> Tensor:
    method = DKD(
        temperature=params["T"],
        ce_weight=0.0,
        tckd_weight=params["alpha"],
        nckd_weight=params["beta"],
        warmup_epochs=0,
        standardize=True,
    )
    return total(method, inputs)


DEFINITIONS: Definitions = {
    "dist/": dist_part,
    "distv2/": distv2_part,
    "dist_total/": dist_total,
    "lskd_kd/": lambda x, p: lskd_loss(x["s"], x["t"], temperature=p["T"]),
    "lskd_dkd/": standardised_dkd,
    "mlkd_cc/": lambda x, p: class_loss(x["s"], x["t"], p["T"]),
    "mlkd_bc/": lambda x, p: batch_loss(x["s"], x["t"], p["T"]),
}


# --- DIST


def test_dist_of_equal_logits_is_not_quite_zero():
    """1e-8 is added to the product of norms, and softmax at T = 4 over 100 classes is nearly flat."""
    t = tensor(CASES["dist/base/b2_g2_T4"]["inputs"]["t"])
    inter, intra = dist_loss(t, t, temperature=4.0)
    assert 2 * (inter + intra).item() == pytest.approx(1.75e-3, rel=0.02)


def test_dist_in_a_batch_of_one_has_no_classwise_part():
    s, t, _ = logits(n=1)
    s.requires_grad_()
    inter, intra = dist_loss(s, t, temperature=4.0)
    assert intra.item() == 16.0
    (inter + intra).backward()
    assert torch.isfinite(s.grad).all()
    assert s.grad.abs().sum() > 0


def test_pearson_is_numpys():
    s, t, _ = (x.double() for x in logits())
    rows, columns = correlation_distances(s, t)
    assert 1 - rows.item() == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)]))
    assert 1 - columns.item() == pytest.approx(
        np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    )


def test_distv2_is_blind_to_scale_and_shift():
    s, t, _ = (x.double() for x in logits())
    assert distv2_loss(50 * s + 7, t).item() == pytest.approx(distv2_loss(s, t).item(), rel=1e-6)
    assert distv2_loss(t, t).item() == pytest.approx(0, abs=1e-6)
    assert distv2_loss(-t, t).item() == pytest.approx(4, abs=1e-6)


def test_shift_of_a_row_changes_neither_dist_nor_lskd_nor_nkd():
    s, t, y = (x.double() if x.is_floating_point() else x for x in logits())
    shifted = s + torch.randn(8, 1, dtype=torch.float64)
    for loss in (
        lambda z: sum(dist_loss(z, t, temperature=4.0)),
        lambda z: lskd_loss(z, t, temperature=2.0),
        lambda z: sum(nkd_loss(z, t, y, temperature=1.0)),
    ):
        assert loss(shifted).item() == pytest.approx(loss(s).item(), rel=1e-9)


# --- Logit standardisation


def test_standardised_logits():
    s, t, _ = logits()
    z = standardise(s)
    assert torch.allclose(z.mean(1), torch.zeros(8), atol=1e-6)
    assert torch.allclose(z.var(1), torch.ones(8), atol=1e-5)  # over K - 1
    assert lskd_loss(50 * s + 3, t, temperature=2.0).item() == pytest.approx(
        lskd_loss(s, t, temperature=2.0).item(), rel=1e-4
    )
    assert abs(lskd_loss(t, t, temperature=20.0).item()) < 2e-5


def test_constant_logits_stay_finite():
    s, t, _ = logits()
    s = torch.zeros_like(s).requires_grad_()
    loss = lskd_loss(s, t, temperature=2.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()


def test_standardize_of_dkd():
    s, t, y = logits()

    def value(student: Tensor, standardize: bool) -> Tensor:
        method = DKD(
            temperature=2.0, ce_weight=0.0, tckd_weight=9.0, nckd_weight=72.0, warmup_epochs=0, standardize=standardize
        )
        return total(method, {"s": student, "t": t, "y": y})

    assert value(s, True).item() == pytest.approx(value(5 * s, True).item(), rel=1e-4)
    assert value(s, False).item() != pytest.approx(value(5 * s, False).item(), rel=1e-4)
    tckd, nckd = dkd_loss(standardise(s), standardise(t), y, temperature=2.0)
    assert value(s, True).item() == pytest.approx((9 * tckd + 72 * nckd).item())


# --- NKD


def test_nkd_by_hand():
    s, t, y = (x.double() if x.is_floating_point() else x for x in logits())
    temperature, target, others = 2.0, 0.0, 0.0
    for n in range(8):
        rest = [k for k in range(10) if k != y[n]]
        target -= t[n].softmax(0)[y[n]] * s[n].log_softmax(0)[y[n]] / 8
        others -= 4 * ((t[n, rest] / 2).softmax(0) * (s[n, rest] / 2).log_softmax(0)).sum() / 8
    found = nkd_loss(s, t, y, temperature=temperature)
    assert found[0].item() == pytest.approx(target.item())
    assert found[1].item() == pytest.approx(others.item())


def test_nkd_of_two_classes_has_no_other_part():
    s, t, y = logits(k=2)
    assert nkd_loss(s, t, y, temperature=1.0)[1].item() == 0


def test_nkd_and_others_are_finite_at_fifty_times_the_logits():
    s, t, y = (50 * x if x.is_floating_point() else x for x in logits())
    mask = torch.ones(8)
    for loss in (
        lambda z: sum(nkd_loss(z, t, y, temperature=1.0)),
        lambda z: instance_loss(z, t, 2.0, mask),
        lambda z: kept_divergence(z, t, 0.5, mask),
    ):
        z = s.clone().requires_grad_()
        value = loss(z)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()


# --- CTKD


def ctkd(epoch: int, s: Tensor, t: Tensor, y: Tensor):
    method = make_method(load(["method=ctkd"]).method)
    method.build(None, None, None)
    terms = method.losses(batch_of(y), Outputs(s), Outputs(t), Progress(epoch, 240, 0, 1))
    return method, terms


def test_ctkd_is_kd_at_its_temperature():
    s, t, y = logits()
    _, terms = ctkd(20, s, t, y)
    temperature = 1 + 20 / (1 + math.exp(-1))
    assert terms["kd"].item() == pytest.approx(0.9 * kl_divergence(s, t, temperature).item(), rel=1e-5)


def test_ctkd_ascends_for_theta_and_descends_for_the_student():
    s, t, y = logits()
    gradients = {}
    for epoch in (0, 5, 10, 200):
        z = s.clone().requires_grad_()
        method, terms = ctkd(epoch, z, t, y)
        terms["kd"].backward()
        gradients[epoch] = method.theta.grad
        plain = s.clone().requires_grad_()
        (0.9 * kl_divergence(plain, t, 1 + 20 / (1 + math.exp(-1)))).backward()
        assert torch.allclose(z.grad, plain.grad, atol=1e-6)
    theta = torch.tensor(1.0, requires_grad=True)
    temperature = 1 + 20 * torch.sigmoid(theta)
    (0.9 * temperature**2 * kl_divergence(s / temperature, t / temperature, 1.0)).backward()
    assert gradients[0].item() == 0
    assert gradients[5].item() == pytest.approx(-0.5 * theta.grad.item(), rel=1e-5)
    assert gradients[10].item() == gradients[200].item() == pytest.approx(-theta.grad.item(), rel=1e-5)


def test_cosine_ramp():
    assert [cosine_ramp(epoch, 10) for epoch in (0, 5, 10, 50)] == pytest.approx([0, 0.5, 1, 1])
    assert cosine_ramp(1, 10) < 0.1
    assert cosine_ramp(0, 0) == 1.0


# --- MLKD


def test_mlkd_masks():
    s, t, _ = logits()
    sample, kind = unsure(t)
    assert sample.sum() == 4
    assert kind.sum() == 5
    p = t.softmax(1)
    assert p.amax(1)[sample == 1].max() < p.amax(1)[sample == 0].min()
    assert p.sum(0)[kind == 1].max() < p.sum(0)[kind == 0].min()
    parts = [instance_loss(s[i : i + 1], t[i : i + 1], 3.0) for i in range(8)]
    expected = torch.stack(parts)[sample == 1].sum() / 8
    assert instance_loss(s, t, 3.0, sample).item() == pytest.approx(expected.item())
    assert instance_loss(s, t, 3.0).item() == pytest.approx(kl_divergence(s, t, 3.0).item())
    for loss, mask in ((class_loss, kind), (batch_loss, sample)):
        both = loss(s, t, 3.0, mask) + loss(s, t, 3.0, 1 - mask)
        assert both.item() == pytest.approx(loss(s, t, 3.0).item(), rel=1e-5)
        assert loss(t, t, 3.0, mask).item() == 0


def test_mlkd_sums_two_views_and_five_temperatures():
    (s, t, y), (s_strong, t_strong, _) = logits(), logits(seed=1)
    usual, strong = torch.zeros(8, 3, 2, 2), torch.ones(8, 3, 2, 2)
    batch = Batch(usual, y, torch.arange(8), usual, strong)
    order = []

    def student(image: Tensor) -> Outputs:
        order.append(image is usual)
        return Outputs(s if image is usual else s_strong)

    terms = make_method(load(["method=mlkd"]).method)(
        batch, student, lambda image: Outputs(t if image is usual else t_strong), Progress(0, 240, 0, 1)
    )
    sample, kind = unsure(t)
    temperatures = (2, 3, 4, 5, 6)
    expected = {
        "ce": 0.1 * (F.cross_entropy(s, y) + F.cross_entropy(s_strong, y)),
        "kd": 0.9 * sum(instance_loss(s, t, each, sample) for each in temperatures),
        "kd_strong": 0.9 * sum(kl_divergence(s_strong, t_strong, each) for each in temperatures),
        "class": 0.9 * sum(class_loss(s, t, each, kind) for each in temperatures),
        "batch": 0.9 * sum(batch_loss(s, t, each, sample) for each in temperatures),
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )
    assert order == [False, True]  # the accuracy in training is of the usual view, which the student sees last


# --- SSKD


def test_rotations_and_similarity():
    image = torch.randn(2, 3, 4, 4)
    turned = rotations(image)
    assert torch.equal(turned[:2], image)
    assert torch.equal(turned[2:4].rot90(-1, (2, 3)), image)
    assert torch.equal(turned[4:6], image.flip(2, 3))
    assert torch.equal(turned[6:].rot90(1, (2, 3)), image)
    embedding = torch.randn(8, 5)
    found = similarity(embedding)
    assert found.shape == (6, 2)
    for i in range(6):
        for j in range(2):
            assert found[i, j].item() == pytest.approx(
                F.cosine_similarity(embedding[2 + i], embedding[j], 0).item(), abs=1e-6
            )
    assert own_image(6, image.device).tolist() == [0, 1, 0, 1, 0, 1]


def test_rank_of_the_true_column():
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert rank_of(scores, torch.tensor([0, 1, 2])).tolist() == [0, 2, 0]


def test_kept_rows_are_the_right_ones_and_the_least_wrong():
    rank = torch.tensor([0, 5, 1, 0, 3, 2])
    assert kept_rows(rank, 0.0).tolist() == [1] * 6
    assert kept_rows(rank, 0.25).tolist() == [1, 0, 1, 1, 1, 1]
    assert kept_rows(rank, 0.5).tolist() == [1, 0, 1, 1, 0, 1]
    assert kept_rows(rank, 1.0).tolist() == [1, 0, 0, 1, 0, 0]
    assert kept_rows(torch.tensor([4]), 0.25).tolist() == [0]


def test_kept_divergence_is_a_mean_over_what_is_kept():
    s, t, _ = logits()
    kept = torch.tensor([1.0, 0, 1, 0, 0, 0, 0, 0])
    expected = kl_divergence(s[[0, 2]], t[[0, 2]], 4.0)
    assert kept_divergence(s, t, 4.0, kept).item() == pytest.approx(expected.item())
    assert kept_divergence(s, t, 4.0).item() == pytest.approx(kl_divergence(s, t, 4.0).item())
    assert kept_divergence(s, t, 4.0, torch.zeros(8)).item() == 0
