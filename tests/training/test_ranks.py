"""Several processes that train one run: their shares of a batch, and every method's losses on two of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdrun.config.compose import load
from kdrun.config.groups import choices
from kdrun.errors import ConfigError
from kdrun.methods.base import Method
from kdrun.methods.kd import KD
from kdrun.shares import Part
from kdrun.structures import Batch
from kdrun.sweeps.slurm import per_node
from kdrun.training import ranks
from kdrun.training.method_ranks import differences
from kdrun.training.precision import refuse_shared_gpu, resolve, resolve_device
from tests.methods.cases import settings

METHODS = choices("method")
FEW = ["kd", "crd", "fitnet"]  # the others: slow


@pytest.mark.parametrize(
    ("count", "size", "unit", "counts"),
    [
        (32, 2, 1, (16, 16)),
        (13, 2, 1, (6, 7)),
        (13, 4, 1, (3, 3, 3, 4)),
        (13, 2, 2, (6, 7)),
        (6, 2, 2, (2, 4)),
        (4, 4, 1, (1,) * 4),
    ],
)
def test_a_batch_is_shared_out_in_its_own_order(count, size, unit, counts):
    places, shares = [], []
    for rank in range(size):
        window, share = Part(rank, size).cut(100, 100 + count, unit)
        assert share is not None and share.rank == rank and share.counts == counts and share.total == count
        assert (window.start - 100) % unit == 0
        assert share.rows == slice(window.start - 100, window.stop - 100)
        places += range(window.start, window.stop)
        shares.append(share.own)
        assert share.own <= Part(rank, size).most(count, unit)
    assert places == list(range(100, 100 + count))
    assert max(shares) <= Part(0, size).most(count, unit) < max(shares) + unit


@pytest.mark.parametrize(("count", "size", "unit"), [(1, 2, 1), (3, 4, 1), (2, 2, 2), (3, 1, 1)])
def test_every_process_takes_the_whole_of_a_batch_that_is_too_small(count, size, unit):
    for rank in range(size):
        assert Part(rank, size).cut(0, count, unit) == (slice(0, count), None)


class Relates(KD):
    """KD whose soft term looks at the other samples, and says nothing of it."""

    def losses(self, batch, student, teacher, progress):
        terms = super().losses(batch, student, teacher, progress)
        spread = student.logits - student.logits.mean(dim=0)
        return {**terms, "kd": terms["kd"] + spread.square().sum(dim=0).sqrt().sum()}


class Claims(Relates):
    """The same, with a claim that it does not."""

    batch_terms = "sample"


class Picks(KD):
    """KD on images of its own choice: half of them twice."""

    def forward(self, batch: Batch, student, teacher, progress) -> dict[str, Tensor]:
        images = torch.cat([batch.image, batch.image[: len(batch.image) // 2]])
        return {"ce": student(images).logits.square().mean() * self.ce_weight}


def own(kind: type) -> dict:
    return {"_target_": f"{__name__}.{kind.__name__}", "temperature": 4.0, "ce_weight": 1.0, "kd_weight": 1.0}


@pytest.mark.parametrize("names", [FEW, pytest.param(METHODS, marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_method_on_two_processes_is_what_it_is_on_one(names):
    """One pair of processes for all, and for sums of those that relate samples and those that do not."""
    nodes = {name: settings(name) for name in names}
    for parts in ("[kd,crd]", "[capd,dist]"):
        nodes[parts] = load(["method=combine", f"method.parts={parts}"]).method
    nodes |= {kind.__name__: own(kind) for kind in (Relates, Claims, Picks)}
    found = dict(zip(nodes, differences(list(nodes.values())), strict=True))
    claims, picks = found.pop("Claims"), found.pop("Picks")
    assert not any(found.values()), {name: line for name, line in found.items() if line}
    assert "on 2 processes it differs from one: the loss by" in claims
    assert claims.endswith('it relates samples to each other: batch_terms = "batch"')
    assert "Picks.forward (test_ranks.py, line" in picks and "must pass whole batches" in picks


def test_a_class_that_does_not_say_relates_samples():
    """Regardless of the class that it is derived from: a wrong `sample` would silently be another loss."""
    assert (KD.batch_terms, Relates.batch_terms, Claims.batch_terms) == ("sample", "batch", "sample")
    assert Method.batch_terms == "batch"


def test_images_of_this_process_keep_their_index_beside_the_labels_of_all():
    image = torch.zeros(2, 3, 4, 4)
    _, share = Part(1, 2).cut(0, 4)
    gathered = Batch(image, torch.arange(4), torch.arange(10, 14), image, share=share)
    assert gathered.image_index.tolist() == [12, 13]
    own = Batch(image, torch.arange(2), torch.arange(12, 14), image, share=share)
    assert own.image_index.tolist() == [12, 13]


def test_the_environment_says_which_process_this_is(monkeypatch):
    for rank, size, expected in ((None, None, (0, 1)), ("0", "1", (0, 1)), ("2", "4", (2, 4))):
        for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        assert ranks.announced() == expected
    for rank, size in (("4", "4"), ("one", "2"), ("0", "-1")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(ConfigError, match=f"RANK={rank} WORLD_SIZE={size}: unset them"):
            ranks.announced()


def test_several_processes_refuse_what_is_of_one_device(monkeypatch):
    group = ranks.Together(1, 2, str)
    group.local = 1
    monkeypatch.setattr(ranks, "now", group)
    with pytest.raises(ConfigError, match="graphs=true: a graph records the steps of one device"):
        resolve("cpu", "fp32", "false", 1, False, "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda:1"
    with pytest.raises(ConfigError, match="device=cuda:0 is one GPU, but 2 processes train"):
        resolve_device("cuda:0")
    group.local = 2
    with pytest.raises(ConfigError, match=r"which has 2 GPUs: start one process for each GPU"):
        resolve_device("cuda")


def meet(rank: int, store: str, found: Any) -> None:
    """Be one of three processes, two of which have the same GPU."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, 3), rank=rank, world_size=3)
    ranks.now = ranks.Together(rank, 3, str)
    try:
        refuse_shared_gpu("two" if rank == 1 else "one")
    except ConfigError as error:
        found.put(str(error))
    refuse_shared_gpu(str(rank))


def test_two_processes_cannot_have_one_gpu(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    found = context.Queue()
    torch.multiprocessing.spawn(meet, (str(tmp_path / "store"), found), 3)
    line = "3 processes train one run, but have 2 GPUs: start one process for each GPU, or set device=cpu."
    assert [found.get(timeout=10) for _ in range(3)] == [line] * 3


def test_a_cluster_is_asked_for_a_process_on_each_gpu():
    assert per_node({"gpus_per_run": 16, "nodes": 2, "timeout_min": 5}, on_cpu=False) == {
        "nodes": 2,
        "timeout_min": 5,
        "tasks_per_node": 8,
        "gpus_per_node": 8,
    }
    assert per_node({"timeout_min": 5}, on_cpu=False) == {"timeout_min": 5}
    assert per_node({"gpus_per_run": 2}, on_cpu=True) == {"nodes": 1, "tasks_per_node": 2}
    with pytest.raises(ConfigError, match=r"launcher.gpus_per_run=3: cannot be spread evenly over launcher.nodes=2"):
        per_node({"gpus_per_run": 3, "nodes": 2}, on_cpu=False)
