"""RandAugment, erasing and mixing: timm's images for the same numbers, drawn from nothing but (seed, epoch, sample)."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment, random_erasing
from timm.data.mixup import Mixup
from torch.utils._python_dispatch import TorchDispatchMode

from kdrun.config.augment import Augment
from kdrun.data import erasing, mixing, policy
from kdrun.data.decode import read_image
from kdrun.data.image_tree import scan
from kdrun.data.resident import ResidentTrain
from kdrun.data.splits import ArraySet
from kdrun.data.stream import StreamTrain
from kdrun.draws import uniform
from kdrun.methods.losses import hard_label_loss
from kdrun.structures import Batch, Mixed
from tests.data.test_augment import CPU, STATS, by_sample, data, loader, photo

EVERYTHING = Augment(flip=0.5, randaugment=2, erasing=0.5, mixup=0.8, cutmix=1.0)
MANY = torch.arange(40_000)


def mixed(**settings) -> mixing.Mixing:
    return mixing.Mixing(Augment(**settings), 0, 0, MANY, 32, CPU)


@pytest.mark.parametrize("alpha", [0.1, 0.8, 1.0, 4.0])
def test_shares_of_mixup_are_beta_distributed(alpha):
    draws = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    found = mixing.beta(draws, alpha, mixing.quantiles(alpha))
    assert np.abs(found.numpy() - stats.beta.ppf(draws.numpy(), alpha, alpha)).max() < 1e-6
    share = mixed(mixup=alpha).share.double()
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_mixup_and_cutmix_take_turns():
    found = mixed(mixup=0.8, cutmix=1.0, cutmix_share=0.3, mix_probability=0.6)
    cut = (found.box[:, 2] > found.box[:, 0]) & (found.box[:, 3] > found.box[:, 1])
    blended = found.kept < 1
    assert not (cut & blended).any()
    assert blended.float().mean().item() == pytest.approx(0.6 * 0.7, abs=0.01)
    assert (cut | blended).float().mean().item() == pytest.approx(0.6, abs=0.02)  # a box may be empty
    area = (found.box[:, 2] - found.box[:, 0]) * (found.box[:, 3] - found.box[:, 1]) / 32**2
    assert torch.allclose(found.share[cut], 1 - area[cut].float())
    assert (found.share[~cut & ~blended] == 1).all()
    assert (mixed(cutmix=1.0).kept == 1).all()
    assert (mixed(mixup=1.0).box == 0).all()


def test_mixed_images_are_timms(monkeypatch):
    """timm pairs the first with the last, here neighbours are paired: batches of two."""
    made, options = mixed(mixup=0.8, cutmix=1.0), Augment(mixup=0.8, cutmix=1.0)
    draws = uniform(mixing.key_of(0, 0, mixing.MIX), MANY[:40], 5)
    image, label = torch.randn(40, 3, 32, 32), torch.arange(40) % 7
    own, others = made(image, label, slice(0, 40))
    theirs = Mixup(0.8, 1.0, mode="elem", label_smoothing=0.1, num_classes=7)
    for first in range(0, 40, 2):
        rows = draws[first : first + 2]
        cut = (rows[:, 1] < options.cutmix_share).numpy()
        amounts = [mixing.beta(rows[:, 2], alpha, mixing.quantiles(alpha)).numpy() for alpha in (0.8, 1.0)]
        monkeypatch.setattr(theirs, "_params_per_elem", lambda _, a=amounts, c=cut: (np.where(c, a[1], a[0]), c))
        centres = iter([int(rows[i, j] * 32) for i in range(2) if cut[i] for j in (4, 3)])
        monkeypatch.setattr(np.random, "randint", lambda *_, at=centres, **__: next(at))
        expected, target = theirs(image[first : first + 2].clone(), label[first : first + 2])
        pair = slice(first, first + 2)
        assert torch.allclose(own[pair], expected, atol=1e-6)
        logits = torch.randn(2, 7)
        ours = hard_label_loss(
            logits, Batch(image, label[pair], label, image, None, Mixed(*(x[pair] for x in others))), 0.1
        )
        assert ours.item() == pytest.approx(-(target * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)


def test_the_last_image_of_an_odd_batch_stays_as_it_is():
    image = torch.randn(5, 3, 32, 32)
    found, other = mixed(mixup=1.0)(image, torch.arange(5), slice(0, 5))
    assert torch.allclose(found[4], image[4], atol=1e-6)
    assert other.label.tolist() == [1, 0, 3, 2, 4]
    assert not torch.allclose(found[:4], image[:4], atol=1e-2)


@pytest.mark.parametrize("name", list(policy.OPERATIONS)[:-1])
def test_operations_are_timms(name, monkeypatch):
    """With the nearest pixel and black, which is what differs."""
    before = photo()
    for at in (0.0, 4.3, 9.0, 9.9):
        monkeypatch.setattr(random, "random", lambda: 0.4)  # not negated, and applied
        hparams = {"img_mean": (0, 0, 0), "interpolation": Image.Resampling.NEAREST}
        operation = auto_augment.AugmentOp(name, 0.5, at, hparams)
        found = policy.OPERATIONS[name](before, torch.full((20, 1, 1, 1), at, dtype=torch.float64))
        assert found.dtype == torch.uint8
        for i in range(0, 20, 5):
            image = operation(Image.fromarray(before[i].permute(1, 2, 0).numpy()))
            expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            assert ((found[i].int() - expected.int()).abs() > 1).float().mean() < 0.01, (at, i)


def test_the_policy_is_timms_strings():
    """rand-m9-mstd0.5-inc1: the same operations, each applied half of the time, at 9 give or take 0.5 of 10."""
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert [operation.name for operation in theirs.ops] == list(policy.OPERATIONS)[:-1]
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in theirs.ops} == {(policy.APPLIED, 9, 0.5)}
    assert theirs.num_layers == 2
    chosen, level = policy.policy_draws(Augment(randaugment=2), 5, MANY)
    counts = torch.bincount(chosen.flatten(), minlength=16)
    assert counts[-1] / counts.sum() == pytest.approx(0.5, abs=0.01)
    assert counts[:-1].min() > 0.9 * counts[:-1].max()
    assert (level > 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    usual = (9 + 0.5 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))).clamp(0, 10)
    assert level.abs().mean().item() == pytest.approx(usual.mean().item(), abs=0.01)
    assert level.abs().std().item() == pytest.approx(usual.std().item(), abs=0.01)
    assert level.abs().max() <= 10


def test_erased_boxes_are_timms(monkeypatch):
    draws = uniform(3, MANY[:300], erasing.SIZES.stop)
    found = erasing.erased_boxes(0.6, draws, 24)
    for row, box in zip(draws.tolist(), found.tolist(), strict=True):
        sizes = iter(row[erasing.SIZES])
        corner = iter([row[erasing.TOP], row[erasing.LEFT]])
        monkeypatch.setattr(random, "random", lambda at=row[0]: at)
        monkeypatch.setattr(random, "uniform", lambda low, high, at=sizes: low + (high - low) * next(at))
        monkeypatch.setattr(random, "randint", lambda low, high, at=corner: low + int(next(at) * (high - low + 1)))
        image = torch.zeros(3, 24, 24)
        monkeypatch.setattr(random_erasing, "_get_pixels", lambda *_, **__: torch.ones(()))
        random_erasing.RandomErasing(0.6, mode="pixel", device="cpu")(image)
        assert torch.equal(image[0] > 0, erasing.within(torch.tensor([box]), 24, 24)[0, 0])


def test_a_share_of_the_images_gets_a_box_of_noise():
    noise = erasing.noise_store(0, 3 * 16 * 16, CPU)
    erased = erasing.Erasing(Augment(erasing=0.25), 1, torch.arange(4000), 16, noise)
    image = torch.full((4000, 3, 16, 16), 7.0).contiguous(memory_format=torch.channels_last)
    found = erased(image, slice(None))
    assert found.is_contiguous(memory_format=torch.channels_last)
    changed = found != 7
    touched = changed.flatten(1).any(dim=1)
    assert touched.float().mean().item() == pytest.approx(0.25, abs=0.02)
    share = changed[touched].float().mean().item()
    assert 0.1 < share < 0.25  # of areas between 0.02 and 1/3
    assert found[changed].mean().item() == pytest.approx(0, abs=0.01)
    assert found[changed].std().item() == pytest.approx(1, abs=0.01)
    box = found[touched][0][changed[touched][0]]
    assert box.unique().numel() == box.numel()  # pixel by pixel


def test_views_depend_on_seed_epoch_and_sample_alone():
    made = data(side=16)
    first = by_sample(loader(made, EVERYTHING).epoch(3))
    for same in (
        loader(made, EVERYTHING, batch_size=4).epoch(3),
        loader(made, EVERYTHING, batch_size=50).epoch(3),
        loader(made, EVERYTHING).epoch(3, start=2),  # a resume
        loader(made, EVERYTHING, views=("strong",)).epoch(3),
    ):
        assert all(torch.allclose(first[i], image, atol=1e-6) for i, image in by_sample(same).items())
    for other in (loader(made, EVERYTHING).epoch(4), loader(made, EVERYTHING, seed=1).epoch(3)):
        changed = [not torch.allclose(first[i], image, atol=1e-3) for i, image in by_sample(other).items()]
        assert sum(changed) > 40


def test_both_networks_see_the_same_mixed_image():
    for batch in loader(data(side=16), EVERYTHING).epoch(0):
        assert batch.teacher_image is batch.image
        assert batch.mixed is not None
        assert torch.equal(batch.mixed.label[:2], batch.label[:2].flip(0))


@pytest.mark.parametrize("view", ["clean", "independent", "fixed"])
def test_the_teachers_own_view(view):
    options = replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    made = data(side=16)
    plain = by_sample(loader(made, Augment(crop="none", flip=0.0)).epoch(0))
    same = by_sample(loader(made, options).epoch(0))
    for batch in loader(made, options, teacher_view=view).epoch(0):
        assert batch.mixed is None
        for i, image, other in zip(batch.index.tolist(), batch.image, batch.teacher_image, strict=True):
            assert torch.equal(image, same[i])
            assert torch.equal(other, plain[i]) == (view == "clean")


def test_a_fixed_view_is_the_one_that_is_kept():
    """Computed once in the set's own order, shown in any epoch and order."""
    options = replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    made = loader(data(side=16), options, teacher_view="fixed")
    kept = torch.cat(list(made.teacher_images()))
    for batch in made.epoch(3):
        assert torch.allclose(batch.teacher_image, kept[batch.index], atol=1e-6)


def streamed(root, options: Augment, **changes) -> StreamTrain:
    settings = {"image_size": 16, "resize": "stretch", "batch_size": 4, "seed": 0, "stats": STATS, "workers": 0}
    settings |= {"augment": options, "teacher_view": "same", "device": CPU}
    return StreamTrain(scan(root).files(), **{**settings, **changes})


def test_streamed_images_are_the_resident_ones(image_folder):
    root = image_folder("set", size=(16, 16))
    tree, options = scan(root), replace(EVERYTHING, crop="none")
    pixels = np.stack([read_image(root / path, None) for path in tree.paths])
    resident = loader(ArraySet(pixels, tree.labels), options, batch_size=4)
    for changes in ({}, {"workers": 2}, {"teacher_view": "independent"}, {"teacher_view": "fixed"}):
        without = replace(options, mixup=0.0, cutmix=0.0) if changes.get("teacher_view") else options
        resident = loader(
            ArraySet(pixels, tree.labels), without, batch_size=4, teacher_view=changes.get("teacher_view", "same")
        )
        for ours, theirs in zip(streamed(root, without, **changes).epoch(1), resident.epoch(1), strict=True):
            assert torch.equal(ours.index, theirs.index)
            assert torch.allclose(ours.image, theirs.image, atol=1e-6)
            assert torch.allclose(ours.teacher_image, theirs.teacher_image, atol=1e-6)
            assert (ours.mixed is None) == (theirs.mixed is None)
            if ours.mixed is not None and theirs.mixed is not None:
                assert torch.equal(ours.mixed.label, theirs.mixed.label)
                assert torch.equal(ours.mixed.share, theirs.mixed.share)


class Reads(TorchDispatchMode):
    """Counts the operations for which a host waits for its device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "item")
        return function(*args, **(kwargs or {}))


def test_steps_on_resident_images_wait_for_no_device():
    options = replace(EVERYTHING, randaugment=0)  # whose counts are told to the host, from a copy that it has
    batches = loader(data(side=16), options).epoch(0)
    next(batches)
    with Reads() as reads:
        list(batches)
    assert reads.count == 0


def test_warped_and_coloured_images_too():
    options = replace(EVERYTHING, crop="resized", brightness=0.4, rotation=10.0)
    for batch in ResidentTrain(
        data(side=16), batch_size=16, seed=0, stats=STATS, augment=options, teacher_view="same", device=CPU
    ).epoch(0):
        assert torch.isfinite(batch.image).all()
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
