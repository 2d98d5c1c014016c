"""Properties of every method, discovered from conf/method: a new YAML is a tested method."""

from __future__ import annotations

import time

import pytest
import torch

from kdrun.commands.list import field_name
from kdrun.config.compose import load
from kdrun.config.groups import choices
from kdrun.errors import ConfigError, PairingError, RunError
from kdrun.methods.kd import KD
from kdrun.structures import Batch
from kdrun.training.method_check import CHECKS, PAIR_CHECKS, CheckFailed, all_checks, mixes_labels
from kdrun.training.method_trial import PAIRS, Subject, Trial
from tests.methods.cases import settings

METHODS = choices("method")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("check", PAIR_CHECKS)
def test_on_every_pair(check, pair, name):
    """A pair that the method refuses is a skipped test whose reason is the method's own line."""
    reason = ""
    try:
        PAIR_CHECKS[check](Subject(settings(name)), pair)
    except PairingError as error:
        reason = str(error)
    if reason:
        assert "\n" not in reason
        assert f"method {name}" in reason
        pytest.skip(reason)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("check", CHECKS)
def test_on_the_first_pair(check, name):
    CHECKS[check](Subject(settings(name)))


@pytest.mark.parametrize("name", ["crd", "dkd", "mlkd", "nkd", "ofa", "sskd", "vlfkd"])
def test_a_method_refuses_mixed_images_only_where_it_reads_labels(name):
    assert not mixes_labels(Subject(settings(name)))


class Broken(KD):
    """KD with one fault."""

    def __init__(self, *, fault: str):
        super().__init__(temperature=4.0, ce_weight=1.0, kd_weight=1.0)
        self.fault = fault
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = 0
        self.exceptions = {"exceptions": {"ce": "told so"}, "typo": {"cee": "told so"}}.get(fault, {})

    def losses(self, batch: Batch, student, teacher, progress):
        terms = super().losses(batch, student, teacher, progress)
        self.calls += 1
        if self.fault != "idle part":
            terms["kd"] = terms["kd"] * self.scale
        if self.fault == "hidden state":
            terms["kd"] = terms["kd"] * self.calls
        if self.fault == "own randomness":
            terms["kd"] = terms["kd"] * time.perf_counter()
        if self.fault == "small batch":
            terms["kd"] = (
                terms["kd"] * student.logits.sub(student.logits.mean(dim=0)).square().sum() / (len(batch.label) - 1)
            )
        if self.fault == "name":
            terms["hard"] = terms.pop("ce")
        return terms


def broken(fault: str) -> dict:
    """fault -> each of its checks."""
    subject = Subject({"_target_": f"{Broken.__module__}.Broken", "fault": fault})
    return {name: run for name, _, run in all_checks(subject)}


FAULTS = {
    "idle part": ("one step, CNN to CNN", "scale: a step does not change them"),
    "hidden state": ("resumes", "some state is not in a buffer"),
    "own randomness": ("repeats", "different weights"),
    "small batch": ("small batches, CNN to CNN", "a batch of 1: loss/kd is nan"),
    "name": ("hard-label term", "terms: kd, hard; `exceptions` lacks ce"),
    "exceptions": ("hard-label term", "`exceptions` has ce"),
    "typo": ("hard-label term", "exceptions: cee: known are ce, reload, frozen teacher, first step moves all"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault):
    """Each by its own check; others pass."""
    where, sentence = FAULTS[fault]
    checks = broken(fault)
    with pytest.raises(CheckFailed) as failed:
        checks[where]()
    assert sentence in str(failed.value)
    checks["averages"]()


@pytest.fixture
def one_process(monkeypatch):
    """Two processes start in ten seconds of CPU; tests/training/test_ranks.py compares them."""
    monkeypatch.setattr("kdrun.training.method_check.differences", lambda nodes: [""] * len(nodes))


def test_a_sound_method_passes(one_process):
    checks = broken("none")
    assert len(checks) == len(PAIRS) * len(PAIR_CHECKS) + len(CHECKS) + 1 == 15
    for run in checks.values():
        run()


WRONG_TERMS = {
    "None": (lambda terms: None, "returns None, not a dictionary of loss terms"),
    "a tensor": (lambda terms: terms["kd"], "returns a Tensor, not a dictionary"),
    "empty": (lambda terms: {}, "returns an empty dictionary"),
    "shape": (lambda terms: {"mse": terms["kd"].expand(6, 4)}, r"the term 'mse' of shape \[6, 4\]; a term is a scalar"),
    "number": (lambda terms: {"mse": 1.5}, "the term 'mse' of type float"),
    "constant": (lambda terms: {**terms, "mse": terms["kd"].detach()}, "the term 'mse' without a gradient"),
}


@pytest.mark.parametrize("case", WRONG_TERMS)
def test_terms_are_a_dictionary_of_scalars(case, monkeypatch):
    change, sentence = WRONG_TERMS[case]
    usual = KD.losses
    monkeypatch.setattr(KD, "losses", lambda self, *rest: change(usual(self, *rest)))
    trial: Trial = Subject(settings("kd")).trial("CNN to CNN")
    with pytest.raises(RunError, match=rf"KD\.losses \(test_properties\.py, line \d+\) .*{sentence}"):
        trial.steps(1)


OWN = """
import torch.nn.functional as F
from kdrun.methods.base import Method


class LogitMSE(Method):
    def __init__(self, *, weight: float):
        super().__init__()
        self.weight = weight

    def losses(self, batch, student, teacher, progress):
        return {"ce": F.cross_entropy(student.logits, batch.label), "mse": BODY}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(body) writes a method `mine` and its YAML and returns the arguments that choose it."""
    monkeypatch.chdir(tmp_path)

    def write(body: str, module: str) -> list[str]:
        (tmp_path / f"{module}.py").write_text(OWN.replace("BODY", body))
        (tmp_path / "conf" / "method").mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / "method" / "mine.yaml").write_text(f"_target_: {module}.LogitMSE\nweight: 1.0\n")
        return ["method=mine", "--config-dir", "conf"]

    return write


def test_check_on_a_method_of_ones_own(own, kdrun, one_process):
    words = own("self.weight * F.mse_loss(student.logits, teacher.logits)", "kdrun_sound_method")
    code, out, err = kdrun("check", *words)
    assert (code, err) == (0, ""), out + err
    assert "all 15 properties hold." in out
    words = own("F.mse_loss(student.logits, teacher.logits)", "kdrun_idle_method")
    code, out, _ = kdrun("check", *words)
    assert code == 1
    assert "FAILED hyperparameters: weight: twice the value changes nothing" in out
    assert "14 of 15 properties hold." in out
    words = own("F.mse_loss(student.logits, teacher.logits, reduction='none')", "kdrun_wide_method")
    code, out, _ = kdrun("check", *words)
    assert code == 1
    assert "LogitMSE.losses (kdrun_wide_method.py, line 11) returns the term 'mse' of shape [6, 5]" in out


def test_explain_and_list_know_it(own, kdrun):
    """A docstring without sections, or none, is no traceback."""
    words = own("self.weight * F.mse_loss(student.logits, teacher.logits)", "kdrun_explained_method")
    code, out, err = kdrun("explain", *words)
    assert (code, err) == (0, "")
    assert out.startswith("mine  has no docstring.")
    assert "method.weight" in out
    code, out, err = kdrun("list", "methods", *words[1:])
    assert (code, err) == (0, "")
    assert "mine" in out and "dkd" in out
    code, out, _ = kdrun("explain", "dkd")
    assert code == 0 and "CVPR 2022, arXiv:2203.08679" in out and "where public implementations disagree" in out
    code, out, _ = kdrun("explain", "kd")  # only accuracies: the bias report's ratios and seconds are none
    assert "74.92" in out and "p0" not in out


@pytest.mark.parametrize(
    ("comment", "name"),
    [
        ("# Logit matching (Hinton et al. 2015), weights", "Logit matching"),
        ("# my_conf/method/mine.yaml", ""),
        ("", ""),
    ],
)
def test_a_methods_common_name(comment, name, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"{comment}\n_target_: mine.Mine\n")
    assert field_name(tmp_path / "mine.yaml") == name


def test_list_methods_shows_name_paper_venue_and_year(kdrun):
    _, out, _ = kdrun("list", "methods")
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert rows["dkd"].startswith("dkd Decoupled knowledge distillation Zhao et al., CVPR 2022 Weights")
    assert rows["kd"].startswith("kd (lm) Logit matching Hinton et al., 2015 Matches")
    assert rows["pkt"].startswith("pkt Probabilistic knowledge transfer Passalis & Tefas, ECCV 2018")
    assert rows["crd_inbatch"].startswith("crd_inbatch Contrastive distillation Tian et al., ICLR 2020")
    assert rows["none"].startswith("none (si, independent) The independent student Trains")


@pytest.mark.parametrize(
    ("words", "pieces"),
    [
        (["explain", "kdd"], ["explain kdd: no such method or setting. Did you mean kd?"]),
        (["list", "methds"], ["list methds: no such list. Did you mean methods?"]),
        (["list", "outputroot=x"], ["outputroot: no such setting. Did you mean output_root?"]),
        (["check"], ["check needs method=NAME"]),
        (["check", "kdd"], ["method=kdd: no such method. Did you mean kd?"]),
        (["check", "kd", "seed=1"], ["check: seed=1: check takes only the method and its settings"]),
        (["check", "kd", "--all"], ["check: --all: no such flag"]),
    ],
)
def test_mistakes(kdrun, words, pieces):
    code, out, err = kdrun(*words)
    assert code == 2 and not out
    assert all(piece in err for piece in pieces), err


def test_settings_are_checked_as_for_training():
    with pytest.raises(ConfigError):
        load(["method=kd", "method.temperatur=2"])
