"""Streaming class folders: the same images whatever the workers, damaged files named, mean and std measured once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from kdrun.config.augment import Augment
from kdrun.data.decode import read_image
from kdrun.data.image_tree import scan
from kdrun.data.packed import on_device
from kdrun.data.resident import ResidentTrain
from kdrun.data.splits import ArraySet
from kdrun.data.stream import StreamEval, StreamTrain, measured_stats, workers_for
from kdrun.errors import DataError
from tests.simulated_cuda import simulated_cuda

CPU = torch.device("cpu")
STATS = ([0.5] * 3, [0.25] * 3)
P4 = Augment(crop="none", flip=0.5, rotation=15.0, brightness=0.2, contrast=0.2, saturation=0.2)


def train_loader(root, **changes) -> StreamTrain:
    settings = {
        "image_size": 16,
        "resize": "stretch",
        "batch_size": 4,
        "seed": 0,
        "stats": STATS,
        "augment": P4,
        "teacher_view": "same",
        "workers": 0,
        "device": CPU,
    }
    return StreamTrain(scan(root).files(), **{**settings, **changes})


def eval_loader(root, **changes) -> StreamEval:
    settings = {
        "image_size": 16,
        "resize": "stretch",
        "batch_size": 4,
        "stats": STATS,
        "workers": 0,
        "device": CPU,
    }
    return StreamEval(scan(root).files(), **{**settings, **changes})


def by_sample(batches) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in batches for i, image in zip(batch.index, batch.image, strict=True)}


def test_workers_do_not_change_the_images(image_folder):
    root = image_folder("set")
    alone = by_sample(train_loader(root).epoch(1))
    assert len(alone) == 12
    loader = train_loader(root, workers=2)
    for _ in range(2):  # the workers live on between epochs
        helped = by_sample(loader.epoch(1))
        assert all(torch.equal(alone[i], helped[i]) for i in alone)
    resumed = by_sample(train_loader(root).epoch(1, start=2))
    assert len(resumed) == 4
    assert all(torch.equal(alone[i], resumed[i]) for i in resumed)
    assert any(not torch.equal(alone[i], image) for i, image in by_sample(train_loader(root).epoch(2)).items())


def test_drawing_leaves_the_global_generator_alone(image_folder):
    root = image_folder("set")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    list(train_loader(root).epoch(0))
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_resizes_and_normalises(image_folder):
    root = image_folder("set", size=(16, 16))
    images, labels = zip(*eval_loader(root).batches(), strict=True)
    tree = scan(root)
    assert torch.equal(torch.cat(labels), torch.from_numpy(tree.labels))
    raw = np.stack([read_image(root / path, None) for path in tree.paths])
    expected = (torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    assert torch.allclose(torch.cat(images), expected, atol=1e-5)
    assert images[0].is_contiguous(memory_format=torch.channels_last)


def test_resize_crop_keeps_the_aspect(image_folder):
    root = image_folder("set", size=(32, 64))
    image, _ = next(iter(eval_loader(root, resize="crop").batches()))
    assert image.shape[2:] == (16, 16)


@pytest.mark.parametrize("view", ["clean", "independent", "fixed"])
def test_teacher_views(view, image_folder):
    root = image_folder("set", size=(16, 16))
    same = by_sample(train_loader(root).epoch(0))
    for batch in train_loader(root, teacher_view=view).epoch(0):
        assert not torch.equal(batch.image, batch.teacher_image)
        assert all(torch.equal(same[int(i)], image) for i, image in zip(batch.index, batch.image, strict=True))
        if view == "clean":
            path = scan(root).paths[int(batch.index[0])]
            raw = torch.from_numpy(read_image(root / path, None).copy()).permute(2, 0, 1).float() / 255
            assert torch.allclose(batch.teacher_image[0], (raw - 0.5) / 0.25, atol=1e-5)
    first, later = (
        {
            int(i): shown
            for batch in train_loader(root, teacher_view=view).epoch(epoch)
            for i, shown in zip(batch.index, batch.teacher_image, strict=True)
        }
        for epoch in (0, 3)
    )
    assert all(torch.equal(first[i], later[i]) for i in first) is (view != "independent")


@pytest.mark.parametrize(
    ("device", "images", "count"), [("cpu", 1999, 0), ("cpu", 2000, 3), ("cuda", 10, 3), ("cuda", 10**6, 3)]
)
def test_a_small_set_on_a_cpu_is_read_without_workers(device, images, count, monkeypatch):
    monkeypatch.setattr("kdrun.data.stream.available_cores", lambda: 3)
    assert workers_for(images, torch.device(device)) == count


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_file(workers, image_folder):
    root = image_folder("set")
    (root / "class_0" / "0001.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"class_0/0001.png cannot be read .*on_error=skip"):
        list(train_loader(root, workers=workers).epoch(0))


def test_measured_stats(image_folder):
    root = image_folder("set", size=(16, 16))
    files = scan(root).files()
    mean, std = measured_stats(files, 16, "stretch", workers=0)
    raw = np.stack([read_image(root / path, None) for path in files.paths]).reshape(-1, 3) / 255
    assert np.allclose(mean, raw.mean(axis=0), atol=1e-4)
    assert np.allclose(std, raw.std(axis=0), atol=1e-4)


@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_crops(crop, image_folder):
    root = image_folder("set")
    images = by_sample(train_loader(root, augment=Augment(crop=crop)).epoch(0))
    assert all(image.shape == (3, 16, 16) for image in images.values())


def test_a_streamed_image_has_the_view_of_a_resident_one(image_folder):
    """The same draws: crop and flip agree pixel for pixel where nothing is resized."""
    root = image_folder("set", size=(16, 16))
    files, augment = scan(root).files(), Augment(crop_padding=3)
    streamed = by_sample(train_loader(root, augment=augment, views=("strong",)).epoch(2))
    pixels = np.stack([read_image(root / path, None) for path in files.paths])
    resident = ResidentTrain(
        ArraySet(pixels, files.labels),
        batch_size=5,
        seed=0,
        stats=STATS,
        augment=augment,
        teacher_view="same",
        device=CPU,
        views=("strong",),
    )
    assert all(torch.equal(image, streamed[i]) for i, image in by_sample(resident.epoch(2)).items())
    order = [
        index
        for loader in (resident, train_loader(root, batch_size=5))
        for batch in loader.epoch(2)
        for index in batch.index.tolist()
    ]
    assert order[:12] == order[12:]
    strong = [
        {int(i): image for batch in loader.epoch(2) for i, image in zip(batch.index, batch.strong, strict=True)}
        for loader in (resident, train_loader(root, augment=augment, views=("strong",)))
    ]
    assert all(torch.equal(image, strong[1][i]) for i, image in strong[0].items())


def test_a_gpu_is_sent_pinned_batches_one_ahead(image_folder, monkeypatch):
    """All tensors of a batch are pinned where the loader pins, and the next batch is read before this one is used."""
    loader = train_loader(image_folder("set"), teacher_view="independent", views=("strong",))
    packed = next(loader.read())
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    again = pin_memory(packed)
    assert len(pinned) == 5 == len(again.tensors)
    assert all(again.tensors[name] is not value for name, value in packed.tensors.items())
    with simulated_cuda() as gpu:
        read: list[int] = []
        device, copies = torch.device("cuda"), torch.cuda.Stream()
        batches = on_device((read.append(1) or packed for _ in range(3)), device, copies)
        for used, (batch, index) in enumerate(batches, start=1):
            assert len(read) == min(used + 1, 3)
            assert batch.image.is_cuda and batch.label.is_cuda and not index.is_cuda
        assert used == 3
        assert gpu.copies and all(what.startswith("non-blocking") for what in gpu.copies)
        assert not gpu.syncs
