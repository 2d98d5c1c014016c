"""Random numbers of training: SplitMix64's own, independent by purpose, the same for a sample in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdrun.config.augment import Augment
from kdrun.data.augment import area_shares, view_draws
from kdrun.data.resident import shuffled
from kdrun.draws import VIEW, Draws, bits, normal, permutation, seed_dropout, uniform
from kdrun.streams import Streams, key_of, mix
from tests.conftest import TINY

CPU = torch.device("cpu")
MANY = torch.arange(20_000)


def splitmix(x: np.ndarray) -> np.ndarray:
    """The generator's published form on unsigned 64-bit integers."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def test_mix_is_splitmix64():
    """The first outputs of the reference implementation for the seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    found = [mix((1234567 + step * golden) % 2**64) for step in range(3)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("words", [(0, 0, 0), (3, 17, 2), (2**31, 239, 1), (2**63 - 1, 0, 5)])
def test_tensors_hold_the_same_bits(words):
    key, counter = np.uint64(key_of(*words)), np.arange(1000, dtype=np.uint64)
    expected = splitmix(splitmix(counter + key) + key)
    before = torch.arange(1000)
    assert np.array_equal(bits(key_of(*words), before).numpy().view(np.uint64), expected)
    assert torch.equal(before, torch.arange(1000))
    numbers = (expected[:999] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    assert np.array_equal(uniform(key_of(*words), torch.arange(333), 3).numpy(), numbers.reshape(333, 3))
    assert torch.equal(
        uniform(key_of(*words), torch.arange(9), 3, 2), uniform(key_of(*words), torch.arange(9), 3)[:, :2]
    )


def test_draws_are_uniform_and_independent():
    draws = uniform(key_of(1, 2, 0), MANY, 4)
    assert draws.min() >= 0 and draws.max() < 1
    assert torch.allclose(draws.mean(0), torch.tensor(0.5, dtype=torch.float64), atol=0.01)
    assert torch.allclose(torch.corrcoef(draws.T), torch.eye(4, dtype=torch.float64), atol=0.03)
    for other in (key_of(2, 2, 0), key_of(1, 3, 0), key_of(1, 2, 1)):
        pair = torch.stack([draws[:, 0], uniform(other, MANY, 4)[:, 0]])
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.03


def test_normal_numbers():
    found = normal(7, MANY, 2)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.allclose(found.mean(0), torch.zeros(2), atol=0.03)
    assert torch.allclose(found.std(0), torch.ones(2), atol=0.03)
    assert abs((found.abs() < 1.96).float().mean() - 0.95) < 0.01


def test_permutations_are_uniform():
    first = torch.tensor([permutation(key_of(0, step), 10, CPU)[0] for step in range(4000)])
    assert sorted(permutation(3, 1000, CPU).tolist()) == list(range(1000))
    assert first.bincount(minlength=10).min() > 330 and first.bincount(minlength=10).max() < 470


def test_a_sample_draws_the_same_in_any_batch():
    draws, index = Draws(3, 1, 5), torch.tensor([40, 2, 17])
    assert torch.equal(draws.uniform(0, MANY[:50], 2, 3)[index], draws.uniform(0, index, 2, 3))
    assert torch.equal(draws.normal(1, MANY[:50], 4)[index], draws.normal(1, index, 4))
    assert torch.equal(draws.uniform(0, index, 2), Draws(3, 1, 6).uniform(0, index, 2))  # once an epoch
    assert not torch.equal(draws.order(0, 50, CPU), Draws(3, 1, 6).order(0, 50, CPU))  # once a step


def test_no_two_streams_coincide():
    """Also in the lower 32 bits, which are all that PyTorch's CPU generator keeps."""
    every = [
        seed % 2**32
        for number in (*range(100), 2**31, 2**32, 2**32 + 1, 1_000_000, 1_000_001)
        for streams in (Streams(role, number) for role in ("student", "teacher", "peer"))
        for seed in (streams.start, streams.parts, streams.data, streams.method, streams.dropout)
    ]
    assert len(set(every)) == len(every)


def test_dropout_is_a_function_of_the_step():
    def mask(*position: int) -> torch.Tensor:
        seed_dropout(*position, CPU)
        return torch.nn.functional.dropout(torch.ones(64))

    assert torch.equal(mask(1, 2, 3), mask(1, 2, 3))
    masks = [mask(*position) for position in ((1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3))]
    assert len({tuple(m.tolist()) for m in masks}) == 4


def test_teacher_and_student_of_one_seed_share_nothing(kdrun, outputs):
    """Two networks of one architecture and seed: other weights to start from, another order, other views."""
    student, teacher = Streams("student", 0), Streams("teacher", 0)
    assert not torch.equal(shuffled(200, student.data, 0, CPU), shuffled(200, teacher.data, 0, CPU))
    views = [view_draws(Augment(), streams.data, 0, VIEW, MANY[:200]) for streams in (student, teacher)]
    assert not torch.equal(*views)
    still = ["optimizer.lr=1e-12", "optimizer.weight_decay=0", "epochs=1"]
    recipe = [word.replace("optimizer", "teacher.recipe") for word in still[:2]]
    for words in (["method=kd", *recipe], ["method=none"]):
        assert kdrun("train", *TINY, *still, *words)[0] == 0
    teachers, students = (
        [load_file(path)["fc.weight"] for path in outputs.rglob(f"{role}.safetensors")]
        for role in ("teacher", "student")
    )
    assert (len(teachers), len(students)) == (1, 2)
    assert torch.allclose(*students)  # nothing has moved: all are as they started
    assert not torch.allclose(teachers[0], students[0])


def test_resized_areas_are_torchvisions():
    """In the distribution of their sides, for square images and for wide ones."""
    from torchvision.transforms import RandomResizedCrop

    augment = Augment(crop="resized", resized_scale=[0.08, 1.0])
    draws = view_draws(augment, 0, 0, VIEW, torch.arange(4000))
    for height, width in ((64, 64), (48, 96)):
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(4000)]
        expected = torch.tensor(theirs).float() / torch.tensor([height, width])
        found = torch.stack(area_shares(augment, draws, height / width)[::-1], dim=1).float()
        assert torch.allclose(found.mean(0), expected.mean(0), atol=0.015)
        assert torch.allclose(
            found.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0),
            expected.quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0),
            atol=0.03,
        )
