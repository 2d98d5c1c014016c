"""KD, DKD and label smoothing against stored values, and their identities."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.dkd import DKD, dkd_loss
from kdrun.methods.kd import KD
from kdrun.methods.losses import hard_label_loss, kl_divergence
from kdrun.structures import Outputs, Progress
from tests.methods.cases import (
    Definitions,
    batch_of,
    logits,
    total,
)


def dkd_part(inputs: dict[str, Tensor], params: dict) -> Tensor:
    tckd, nckd = dkd_loss(inputs["s"], inputs["t"], inputs["y"], temperature=params["T"])
    return params["alpha"] * tckd + params["beta"] * nckd


def dkd_total(inputs: dict[str, Tensor], params: dict) -> Tensor:
    method = DKD(
        temperature=params["T"],
        ce_weight=params["ce_weight"],
        tckd_weight=params["alpha"],
        nckd_weight=params["beta"],
        warmup_epochs=params["warmup"],
        standardize=False,
    )
    return total(method, inputs, epoch=params["epoch"] - 1)


def kd_total(inputs: dict[str, Tensor], params: dict) -> Tensor:
    method = KD(temperature=params["T"], ce_weight=1 - params["alpha"], kd_weight=params["alpha"])
    return total(method, inputs)


DEFINITIONS: Definitions = {
    "ls/": lambda x, p: hard_label_loss(x["s"], batch_of(x["y"]), p["eps"]),
    "kd/": lambda x, p: kl_divergence(x["s"], x["t"], p["T"]),
    "kd_total/": kd_total,
    "dkd/": dkd_part,
    "dkd_total/": dkd_total,
}


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_identities_of_kd_and_dkd(temperature):
    s, t, y = (x.double() if x.is_floating_point() else x for x in logits())
    assert abs(kl_divergence(t, t, temperature).item()) < 1e-9
    assert all(abs(part.item()) < 1e-9 for part in dkd_loss(t, t, y, temperature=temperature))
    shifted = s + torch.randn(8, 1, dtype=torch.float64)
    assert kl_divergence(shifted, t, temperature).item() == pytest.approx(kl_divergence(s, t, temperature).item())
    # KD_T is TCKD plus NCKD weighted, per sample, by the teacher's doubt of the target (Zhao et al. 2022, eq. 6).
    doubt = 1 - (t / temperature).softmax(1).gather(1, y[:, None])[:, 0]
    parts = [dkd_loss(s[i : i + 1], t[i : i + 1], y[i : i + 1], temperature=temperature) for i in range(len(y))]
    combined = torch.stack([tckd + doubt[i] * nckd for i, (tckd, nckd) in enumerate(parts)]).mean()
    assert combined.item() == pytest.approx(kl_divergence(s, t, temperature).item(), rel=1e-9)


def test_dkd_of_two_classes_is_kd():
    s, t, y = logits(k=2)
    tckd, nckd = dkd_loss(s, t, y, temperature=3.0)
    assert nckd.item() == 0
    assert tckd.item() == pytest.approx(kl_divergence(s, t, 3.0).item(), rel=1e-5)


def test_gradient_of_kd_is_the_difference_of_probabilities():
    s, t, _ = logits()
    s.requires_grad_()
    kl_divergence(s, t, 4.0).backward()
    assert torch.allclose(s.grad, 4.0 * ((s / 4).softmax(1) - (t / 4).softmax(1)).detach() / len(s), atol=1e-6)


def test_label_smoothing_spreads_over_all_classes():
    s, _, y = logits(k=2)
    log_p = F.log_softmax(s, 1)
    target = F.one_hot(y, 2) * 0.9 + 0.05
    assert hard_label_loss(s, batch_of(y), 0.1).item() == pytest.approx(-(target * log_p).sum(1).mean().item())


def test_dkd_warm_up_counts_from_one():
    s, t, y = logits()
    method = DKD(temperature=4.0, ce_weight=1.0, tckd_weight=1.0, nckd_weight=8.0, warmup_epochs=20, standardize=False)
    terms = [
        method.losses(batch_of(y), Outputs(s), Outputs(t), Progress(epoch, 240, 0, 1)) for epoch in (0, 9, 19, 100)
    ]
    assert terms[1]["tckd"].item() == pytest.approx(10 * terms[0]["tckd"].item())
    assert terms[2]["nckd"].item() == pytest.approx(20 * terms[0]["nckd"].item())
    assert terms[3]["nckd"].item() == terms[2]["nckd"].item()
    assert terms[0]["ce"].item() == terms[3]["ce"].item()
    now = DKD(temperature=4.0, ce_weight=1.0, tckd_weight=1.0, nckd_weight=8.0, warmup_epochs=0, standardize=False)
    assert now.losses(batch_of(y), Outputs(s), Outputs(t), Progress(0, 240, 0, 1))["nckd"] == terms[3]["nckd"]
