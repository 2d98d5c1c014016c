"""Augmented views: the same pixels as torchvision's transforms, drawn from nothing but (seed, epoch, sample)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torchvision.transforms import v2

from kdrun.config.options import Augment
from kdrun.data import augment, randaugment
from kdrun.data.image_tree import scan
from kdrun.data.resident import Normalise, PaddedImages, ResidentEval, ResidentTrain, measured_stats, shuffled
from kdrun.data.splits import ArraySet
from kdrun.data.stream import StreamTrain

CPU = torch.device("cpu")
STATS = ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])


def data(count: int = 50, side: int = 12) -> ArraySet:
    generator = np.random.default_rng(0)
    return ArraySet(generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 5)


def loader(made: ArraySet, options: Augment | None = None, **changes) -> ResidentTrain:
    settings = {"batch_size": 16, "seed": 0, "stats": STATS, "augment": options or Augment(), "teacher_view": "same"}
    return ResidentTrain(made, device=CPU, **{**settings, **changes})


def by_sample(batches) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.image, strict=True)}


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crop_is_torchvisions(mode):
    made = data()
    store = PaddedImages(made.images, Augment(crop_padding_mode=mode), CPU)
    index = torch.arange(20)
    row, column = torch.randint(0, 9, (2, 20))
    found = store.crop(index, row, column)
    padding_mode = "constant" if mode == "zeros" else "reflect"
    for i in range(20):
        image = torch.from_numpy(made.images[i]).permute(2, 0, 1)
        padded = v2.Pad(4, padding_mode=padding_mode)(image)
        expected = tv.crop(padded, int(row[i]), int(column[i]), 12, 12)
        assert torch.equal(found[i].permute(2, 0, 1), expected)


def test_normalise_is_torchvisions():
    made = data()
    found = Normalise(STATS, CPU)(torch.from_numpy(made.images))
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*STATS)])
    expected = torch.stack([transform(image) for image in made.images])
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_views_depend_on_seed_epoch_and_sample_alone():
    made = data()
    first = by_sample(loader(made).epoch(3))
    assert len(first) == 50
    other_batches = by_sample(loader(made, batch_size=7).epoch(3))
    assert all(torch.equal(first[i], other_batches[i]) for i in first)
    resumed = by_sample(loader(made).epoch(3, start=2))
    assert len(resumed) == 18
    assert all(torch.equal(first[i], resumed[i]) for i in resumed)
    assert any(not torch.equal(first[i], image) for i, image in by_sample(loader(made).epoch(4)).items())
    assert any(not torch.equal(first[i], image) for i, image in by_sample(loader(made, seed=1).epoch(3)).items())


def test_last_small_batch_is_kept():
    sizes = [len(batch.label) for batch in loader(data()).epoch(0)]
    assert sizes == [16, 16, 16, 2]
    assert loader(data()).steps_per_epoch == 4


def test_corners_and_flips_are_uniform():
    corners = augment.draw_views(Augment(), 0, 0, 20_000, 0, CPU)
    counts = torch.bincount(corners.row * 9 + corners.column, minlength=81)
    assert counts.min() > 170
    assert counts.max() < 330
    assert abs(corners.flip.float().mean() - 0.5) < 0.02


def test_flip_off_and_crop_off():
    made = data()
    plain = loader(made, Augment(crop="none", flip=0.0))
    expected = {int(i): image for i, image in enumerate(plain.normalise(torch.from_numpy(made.images)))}
    assert all(torch.equal(image, expected[i]) for i, image in by_sample(plain.epoch(0)).items())
    flipped = loader(made, Augment(crop="none", flip=1.0))
    assert all(torch.equal(image, expected[i].flip(2)) for i, image in by_sample(flipped.epoch(0)).items())


def test_teacher_views():
    made = data()
    for batch in loader(made).epoch(0):
        assert batch.teacher_image is batch.image
    clean = {
        int(i): image
        for batch in loader(made, teacher_view="clean").epoch(0)
        for i, image in zip(batch.index, batch.teacher_image, strict=True)
    }
    plain = Normalise(STATS, CPU)(torch.from_numpy(made.images))
    assert all(torch.equal(image, plain[i]) for i, image in clean.items())
    batch = next(iter(loader(made, teacher_view="independent").epoch(0)))
    assert not torch.equal(batch.image, batch.teacher_image)
    same = next(iter(loader(made).epoch(0)))
    assert torch.equal(batch.image, same.image)


def test_a_fixed_view_is_one_augmented_view_of_each_image():
    made, shown = loader(data(), teacher_view="fixed"), []
    for epoch in (0, 5):
        of_epoch = {}
        for batch in made.epoch(epoch):
            of_epoch |= {int(i): image for i, image in zip(batch.index, batch.teacher_image, strict=True)}
            assert not torch.equal(batch.image, batch.teacher_image)
        shown.append(of_epoch)
    assert all(torch.equal(image, shown[1][i]) for i, image in shown[0].items())
    kept = torch.cat(list(made.teacher_images()))
    assert all(torch.equal(image, kept[i]) for i, image in shown[0].items())
    clean = torch.cat(list(loader(data(), teacher_view="clean").teacher_images()))
    assert not torch.equal(kept, clean)
    first = next(iter(loader(data(), teacher_view="independent").epoch(0)))
    assert all(torch.equal(shown[0][int(i)], one) for i, one in zip(first.index, first.teacher_image, strict=True))


def test_jitter_is_torchvisions():
    image = torch.rand(6, 3, 8, 8)
    factors = torch.tensor(
        [
            [1.3, 1.0, 1.0, 0.0],
            [1.0, 0.6, 1.0, 0.0],
            [1.0, 1.0, 1.7, 0.0],
            [1.0, 1.0, 1.0, 0.2],
            [0.7, 1.4, 0.5, -0.3],
            [1.0, 1.0, 1.0, 0.0],
        ]
    )
    found = augment.jitter(image, factors)
    for i, (brightness, contrast, saturation, hue) in enumerate(factors.tolist()):
        expected = tv.adjust_brightness(image[i], brightness)
        expected = tv.adjust_contrast(expected, contrast)
        expected = tv.adjust_saturation(expected, saturation)
        expected = tv.adjust_hue(expected, hue)
        assert torch.allclose(found[i], expected, atol=2e-3), i


def test_rotation_and_resized_crop():
    made = data(side=16)
    turned = by_sample(loader(made, Augment(crop="none", flip=0.0, rotation=30.0)).epoch(0))
    again = by_sample(loader(made, Augment(crop="none", flip=0.0, rotation=30.0), batch_size=5).epoch(0))
    assert all(torch.allclose(turned[i], again[i], atol=1e-6) for i in turned)
    plain = Normalise(STATS, CPU)(torch.from_numpy(made.images))
    assert any(not torch.allclose(turned[i], plain[i]) for i in turned)
    identity = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]])
    image = torch.rand(1, 3, 16, 16)
    assert torch.allclose(augment.warp(image, identity), image, atol=1e-5)
    resized = by_sample(loader(made, Augment(crop="resized", flip=0.0)).epoch(0))
    assert all(torch.isfinite(image).all() for image in resized.values())
    views = augment.draw_views(Augment(crop="resized", resized_scale=[0.25, 1.0]), 0, 0, 2000, 0, CPU)
    area = views.theta[:, 0, 0] * views.theta[:, 1, 1]
    assert area.min() >= 0.24
    assert area.max() <= 1.001
    reach = views.theta[:, :, :2].abs().sum(dim=2) + views.theta[:, :, 2].abs()
    assert reach.max() <= 1.001  # the area lies within the image


def test_jittered_training_is_finite_and_coloured():
    made = data()
    options = Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    for batch in loader(made, options).epoch(0):
        assert torch.isfinite(batch.image).all()


def test_eval_keeps_order_and_pixels():
    made = data()
    evaluated = ResidentEval(made, batch_size=16, stats=STATS, device=CPU)
    images, labels = zip(*evaluated.batches(), strict=True)
    assert torch.equal(torch.cat(labels), torch.from_numpy(made.labels))
    assert torch.equal(torch.cat(images), Normalise(STATS, CPU)(torch.from_numpy(made.images)))


def test_measured_stats():
    made = data(count=2500)
    mean, std = measured_stats(made.images)
    scaled = made.images.reshape(-1, 3) / 255
    assert np.allclose(mean, scaled.mean(axis=0), atol=1e-5)
    assert np.allclose(std, scaled.std(axis=0), atol=1e-5)


def test_order_is_a_permutation_per_epoch():
    orders = [shuffled(100, 0, epoch, CPU) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[1], shuffled(100, 0, 1, CPU))


def strong_by_sample(batches) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.strong, strict=True)}


@pytest.mark.parametrize("options", [Augment(), Augment(crop="none", flip=0.0, rotation=10.0, brightness=0.2)])
def test_strong_view_depends_on_seed_epoch_and_sample_alone(options):
    made = data(side=16)
    first = strong_by_sample(loader(made, options, views=("strong",)).epoch(3))
    assert len(first) == 50
    for same in (
        loader(made, options, views=("strong",), batch_size=7).epoch(3),
        loader(made, options, views=("strong",), batch_size=1).epoch(3),
        loader(made, options, views=("strong",)).epoch(3, start=2),
    ):
        assert all(torch.allclose(first[i], image, atol=1e-6) for i, image in strong_by_sample(same).items())
    for other in (
        loader(made, options, views=("strong",)).epoch(4),
        loader(made, options, views=("strong",), seed=1).epoch(3),
    ):
        changed = [not torch.equal(first[i], image) for i, image in strong_by_sample(other).items()]
        assert sum(changed) > 45


def test_strong_view_is_another_view_and_changes_nothing_else():
    made = data(side=16)
    for batch, usual in zip(loader(made, views=("strong",)).epoch(1), loader(made).epoch(1), strict=True):
        assert usual.strong is None
        assert torch.equal(batch.image, usual.image)
        assert batch.strong.shape == batch.image.shape
        assert batch.strong.is_contiguous(memory_format=torch.channels_last)
        assert (batch.strong != batch.image).flatten(1).any(dim=1).all()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATS)
        pixels = 255 * (batch.strong * std + mean)
        assert torch.allclose(pixels, pixels.round(), atol=1e-3)
        assert pixels.min() > -0.5
        assert pixels.max() < 255.5


def levels(count: int) -> torch.Tensor:
    return ((torch.arange(count) + 0.37) / count).view(-1, 1, 1, 1)


def photo(count: int = 20, side: int = 32) -> torch.Tensor:
    """Smooth images of little contrast, uint8 [count, 3, side, side]: noise would hide what an operation does."""
    rough = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(rough, size=(side, side), mode="bilinear")
    return (40 + 150 * smooth).to(torch.uint8)


def pillow(name: str, image, level: float):
    from PIL import Image, ImageEnhance, ImageOps

    factor, size, span = 0.05 + 0.9 * level, image.size, -0.3 + 0.6 * level
    affine = {
        "shear_x": (1, span, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, span, 1, 0),
        "translate_x": (1, 0, span * size[0], 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, span * size[1]),
    }
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in affine:
        return image.transform(size, Image.Transform.AFFINE, affine[name])
    if name in enhance:
        return enhance[name](image).enhance(factor)
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(4 + 4 * level)),
        "rotate": lambda: image.rotate(-30 + 60 * level),
        "solarize": lambda: ImageOps.solarize(image, 256 * level),
    }[name]()


@pytest.mark.parametrize("operation", randaugment.OPERATIONS, ids=lambda operation: operation.__name__)
def test_operations_are_pillows(operation):
    from PIL import Image

    before, drawn = photo(), levels(20)
    found = operation(before, drawn)
    assert found.dtype == torch.uint8
    for i in range(20):
        image = Image.fromarray(before[i].permute(1, 2, 0).numpy())
        expected = torch.from_numpy(np.array(pillow(operation.__name__, image, drawn[i].item()))).permute(2, 0, 1)
        apart = (found[i].int() - expected.int()).abs() > 1  # rounding; a nearest neighbour on the border of two
        assert apart.float().mean() < 0.01, i


def test_strong_draws_each_operation_equally_often(monkeypatch):
    seen = []
    counting = tuple(lambda image, level, i=i: (seen.append((i, len(image))), image)[1] for i in range(14))
    monkeypatch.setattr(randaugment, "OPERATIONS", counting)
    draws = randaugment.strong_draws(0, 0, torch.arange(14_000))
    counts = randaugment.counts_of(randaugment.operations_of(draws))
    randaugment.strengthen(torch.zeros(14_000, 3, 2, 2, dtype=torch.uint8), draws, counts)
    counts = torch.zeros(14).index_add_(
        0, torch.tensor([i for i, _ in seen]), torch.tensor([float(n) for _, n in seen])
    )
    assert counts.sum() == 28_000
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_cutout_paints_one_square_of_at_most_half_the_side():
    draws = torch.tensor([[0.999, 0.5, 0.5], [0.5, 0.0, 0.99], [0.0, 0.5, 0.5]])
    painted = (randaugment.cutout(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), draws) != 0).all(dim=1)
    assert painted[0].sum() in (16 * 16, 16 * 17, 17 * 17)
    assert painted[0, 9:24, 9:24].all()
    assert painted[1, 28:, :4].all()
    assert not painted[1, :20].any()
    assert painted[2].sum() <= 1


def test_strong_view_of_streamed_files_does_not_depend_on_workers(image_folder):
    root = image_folder("set", size=(16, 16))
    settings = {
        "image_size": 16,
        "resize": "stretch",
        "seed": 0,
        "stats": STATS,
        "augment": Augment(),
        "teacher_view": "same",
        "device": CPU,
    }
    seen = {}
    for workers, size in ((0, 4), (2, 5)):
        made = StreamTrain(scan(root).files(), workers=workers, batch_size=size, views=("strong",), **settings)
        for batch in made.epoch(1):
            assert batch.strong.shape == batch.image.shape
            for i, image, usual in zip(batch.index.tolist(), batch.strong, batch.image, strict=True):
                assert torch.equal(seen.setdefault(i, image), image)
                assert not torch.equal(image, usual)
    plain = StreamTrain(scan(root).files(), workers=0, batch_size=4, **settings)
    assert all(batch.strong is None for batch in plain.epoch(1))
