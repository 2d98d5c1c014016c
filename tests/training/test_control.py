"""An untrained teacher is a function of its images, also where it is deep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdrun.config.compose import load
from kdrun.files import read_json, write_json
from kdrun.runs.plan import make_plan
from kdrun.streams import Streams
from kdrun.training.build import load_data, make_eval_loader, make_network
from kdrun.training.control import measure_norms
from kdrun.training.precision import Numerics
from tests.conftest import TINY
from tests.ready import train

NUMERICS = Numerics("cpu", "fp32", False, 1, False)


def untrained(*words: str):
    config = load([*TINY, *words])
    data = load_data(make_plan(config, []))
    return make_network(config.teacher, data, Streams("teacher", 0), NUMERICS, 32), data


def logits_of(network, data):
    image, _ = next(iter(make_eval_loader(data, data.splits.test, NUMERICS).batches()))
    with torch.no_grad():
        return network.tap.eval()(image).logits


def test_a_deep_network_answers_by_the_image():
    network, data = untrained("teacher=resnet56")
    assert logits_of(network, data).abs().mean() > 100  # one class for every image
    measure_norms(network, data, seed=0)
    logits = logits_of(network, data)
    assert logits.abs().mean() < 5
    assert logits.std(0).mean() > logits.abs().mean() / 10
    assert not network.tap.training
    assert all(norm.momentum == 0.1 for norm in network.tap.modules() if isinstance(norm, nn.BatchNorm2d))


def test_the_statistics_are_those_of_training_images():
    """72 images are a batch of 64 and one of eight; the mean is over both."""
    network, data = untrained("teacher=resnet8")
    measure_norms(network, data, seed=3)
    images, _ = zip(*make_eval_loader(data, data.splits.train, NUMERICS).batches(), strict=True)
    order = np.random.default_rng(3).permutation(72)
    with torch.no_grad():
        maps = network.tap.model.conv1(torch.cat(images)[torch.from_numpy(order)])
    expected = torch.stack([part.mean((0, 2, 3)) for part in maps.split(64)]).mean(0)
    torch.testing.assert_close(network.tap.model.bn1.running_mean, expected)


@pytest.mark.parametrize("count", [1, 65])
def test_a_single_image_is_in_no_batch(count):
    """VGG has maps with one position, of which a batch of one has no variance."""
    network, data = untrained("teacher=vgg8", f"dataset.fake_train={count}", "dataset.image_size=32")
    measure_norms(network, data, seed=0)
    assert logits_of(network, data).isfinite().all()


def test_controls_of_older_versions_are_not_compared(kdrun, outputs):
    train(kdrun, "teacher.random=true")
    (run,) = (outputs / "runs").glob("*/*/*/*")
    found = read_json(run / "provenance.json")
    assert found["teacher"]["kind"] == "untrained control, norms measured"
    found["teacher"]["kind"] = "untrained control"
    write_json(run / "provenance.json", found)
    code, out, err = kdrun("eval", str(run))
    assert code == 0
    assert "whose batch norm had its initial statistics" in out + err
