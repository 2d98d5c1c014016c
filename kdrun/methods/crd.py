"""Contrastive representation distillation with a memory bank."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Method
from kdrun.methods.features import Embed, need_pooled
from kdrun.structures import Batch, DataSpec, Outputs, Progress, Spec

EPS = 1e-7


def draw_negatives(
    labels: Tensor, label: Tensor, order: Tensor, *, count: int, largest_class: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return (candidates [S], weight [N, S]): for each sample a uniform draw of `count` training samples of other
    classes.

    labels [n]: of the training set; label [N]: of the batch; order [n]: a random order of the training set. Each
    sample takes the first `count` members of other classes in it: weight 1, all others 0. That is a draw without
    replacement for each sample, and a batch scores S <= count + largest_class rows of the bank instead of N times
    count. Where a sample has fewer than `count` others, it takes them all at a weight that sums to `count`: what the
    published draw with replacement is on average.
    """
    size = min(len(labels), count + largest_class)
    candidates = order[:size]
    kinds = labels[candidates]
    # A class's cut is the column after its `count`-th sample of another class: `count` plus its own members before
    # that.
    position = torch.arange(size, device=labels.device)
    grouped, order = kinds.sort(stable=True)
    first = torch.searchsorted(grouped, torch.arange(num_classes, device=labels.device))
    strangers_before = order - (position - first[grouped])
    cut = torch.full_like(first, count).scatter_add_(0, grouped, (strangers_before < count).long())
    taken = (kinds != label[:, None]) & (position < cut[label][:, None])
    weight = taken.float()
    return candidates, weight * (count / weight.sum(dim=1, keepdim=True).clamp(min=1))


def log_partition(positive: Tensor, negative: Tensor, weight: Tensor, *, samples: int) -> Tensor:
    """Return the log of Z = mean(exp score) times the size of the training set, from one batch; shapes as in
    `nce_loss`."""
    scores = torch.cat([positive, (negative + weight.log()).flatten()])
    return scores.logsumexp(dim=0) - (len(positive) + weight.sum()).log() + math.log(samples)


def nce_loss(positive: Tensor, negative: Tensor, weight: Tensor, log_z: Tensor, *, count: int, samples: int) -> Tensor:
    """Return the noise-contrastive loss of recognising the sample's own score, averaged over the batch.

    positive [N], negative [N, S]: inner products over temperature; weight [N, S] sums to `count` in each row; samples:
    size of the training set. With o = exp(score)/Z and c = count/samples + 1e-7:
    -log(o_0/(o_0 + c)) - Σ_j w_j log((c - 1e-7)/(o_j + c)). Tian et al. 2020, arXiv:1910.10699,
    as in RepDistiller's NCECriterion. In the log domain, so that no temperature overflows.
    """
    noise = count / samples
    offset = log_z + math.log(noise + EPS)
    own = _softplus(offset - positive)
    others = (weight * _softplus(negative - offset)).sum(dim=1)
    return (own + others).mean() + count * math.log1p(EPS / noise)


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)) without overflow.

    `F.softplus` and log1p take ten times as long on a CPU, and the precision that they add, 1e-7 per negative, is below
    a thousandth of the loss.
    """
    bounded = x.clamp(max=60)
    return (1 + bounded.exp()).log() + (x - bounded)


class CRD(Method):
    """Contrasts a sample's embedding in the other network with those of thousands of samples of other classes.

    Paper: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.

    Equation:
        L = ce_weight CE(z_s, y) + crd_weight (NCE(e_s, teacher bank) + NCE(e_t, student bank))
        NCE = -mean_n [ log(o_0 / (o_0 + K/n)) + sum_j log((K/n) / (o_j + K/n)) ]
        o = exp(<bank, e> / temperature) / Z
        e: linear embeddings of the pooled vectors, both trained, unit norm;   Z: mean exp(score) n of the first batch
        bank <- normalise(momentum bank + (1 - momentum) e) at the batch's samples, after the scores

    Hyperparameters:
        negatives: K, drawn per sample from other classes. 16384 in the paper. Where the training set has fewer, all
            are scored, at a weight that sums to K.
        temperature: 0.07 in the paper's code.
        momentum: of the banks. 0.5 in the paper's code.
        embedding: width of the embeddings. 128 in the paper.
        ce_weight: weight of the hard-label term. 1 in RepDistiller and mdistiller.
        crd_weight: 0.8 in RepDistiller and mdistiller.

    Disagreements:
        Public code draws each sample's negatives apart, in numpy in the data loader, from a seed per worker; kdrun
        draws one order of the training set per step on the device, from which each sample takes its first K of other
        classes: the same distribution for each sample, but shared within a batch. torchdistill's own sampler
        cannot run.
    """

    batch_terms = "batch"
    student_needs = frozenset({"pooled"})
    teacher_needs = frozenset({"pooled"})
    bank_s: Tensor
    bank_t: Tensor
    log_z: Tensor
    labels: Tensor

    def __init__(
        self,
        *,
        negatives: int,
        temperature: float,
        momentum: float,
        embedding: int,
        ce_weight: float,
        crd_weight: float,
    ):
        super().__init__()
        self.negatives, self.temperature, self.momentum, self.embedding = negatives, temperature, momentum, embedding
        self.ce_weight, self.crd_weight = ce_weight, crd_weight

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.embed_student = Embed(need_pooled(student, "student", "crd"), self.embedding)
        self.embed_teacher = Embed(need_pooled(teacher, "teacher", "crd"), self.embedding)
        self.samples, self.num_classes = data.num_samples, data.num_classes
        bound = math.sqrt(3 / self.embedding)
        for name in ("bank_s", "bank_t"):
            self.register_buffer(name, torch.empty(data.num_samples, self.embedding).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), math.inf))  # infinite: not estimated yet
        self.register_buffer("labels", data.labels.clone(), persistent=False)
        self.largest_class = int(data.labels.bincount().max())
        self.estimated = False
        self.register_load_state_dict_post_hook(_doubt)

    def note(self) -> str:
        size = (self.bank_s.nbytes + self.bank_t.nbytes) / 2**20
        return f"crd keeps two banks of {self.samples:,} x {self.embedding} embeddings: {size:.1f} MiB"

    def losses(self, batch: Batch, student: Outputs, teacher: Outputs | None, progress: Progress) -> dict[str, Tensor]:
        assert teacher is not None and student.pooled is not None and teacher.pooled is not None
        s, t = self.embed_student(student.pooled), self.embed_teacher(teacher.pooled)
        order = progress.draws.order(0, self.samples, self.labels.device)
        candidates, weight = draw_negatives(
            self.labels,
            batch.label,
            order,
            count=self.negatives,
            largest_class=self.largest_class,
            num_classes=self.num_classes,
        )
        scores = [
            self.scores(s, self.bank_t, batch.index, candidates),
            self.scores(t, self.bank_s, batch.index, candidates),
        ]
        self.estimate(scores, weight)
        sides = [
            nce_loss(positive, negative, weight, log_z, count=self.negatives, samples=self.samples)
            for (positive, negative), log_z in zip(scores, self.log_z.unbind(), strict=True)
        ]
        self.update(batch.index, s, t)
        return {
            "ce": self.ce_weight * F.cross_entropy(student.logits, batch.label),
            "crd": self.crd_weight * (sides[0] + sides[1]),
        }

    def scores(self, anchor: Tensor, bank: Tensor, index: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Return (positive [N], negative [N, S]) of unit anchors [N, D] against copies of bank rows, since the bank
        changes before the backward pass."""
        anchor = anchor / self.temperature
        return (anchor * bank[index]).sum(dim=1), anchor @ F.embedding(candidates, bank).T

    @torch.no_grad()
    def estimate(self, scores: list[tuple[Tensor, Tensor]], weight: Tensor) -> None:
        """Set Z from the first batch, and keep it from then on. After loading a checkpoint, the loaded buffer
        decides."""
        if not self.estimated:
            found = torch.stack([log_partition(*side, weight, samples=self.samples) for side in scores])
            self.log_z.copy_(torch.where(self.log_z.isinf(), found, self.log_z))
            self.estimated = True

    @torch.no_grad()
    def update(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        for bank, embedding in ((self.bank_s, student), (self.bank_t, teacher)):
            mixed = self.momentum * bank[index] + (1 - self.momentum) * embedding
            bank.index_copy_(0, index, F.normalize(mixed, dim=1))


def _doubt(module: torch.nn.Module, _: object) -> None:
    """Mark Z as unknown: loaded buffers may or may not hold an estimate."""
    assert isinstance(module, CRD)
    module.estimated = False
