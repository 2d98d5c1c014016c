"""Several processes see between them exactly what one sees: the same images, looking the same, in the same batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdrun.config.augment import Augment
from kdrun.data.resident import ResidentEval, ResidentTrain
from kdrun.data.splits import ArraySet, FileSet
from kdrun.data.stream import StreamEval, StreamTrain
from kdrun.shares import Part

CPU, STATS = torch.device("cpu"), ([0.5] * 3, [0.25] * 3)
AUGMENTS = {
    "crop and flip": Augment(),
    "mixed": Augment(mixup=0.8, cutmix=1.0),
    "late": Augment(randaugment=2, erasing=0.5),
}


def arrays(count: int = 21) -> ArraySet:
    draw = np.random.default_rng(0)
    return ArraySet(draw.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), np.arange(count) % 3)


def resident(augment: Augment, part: Part) -> ResidentTrain:
    return ResidentTrain(
        arrays(),
        batch_size=8,
        seed=3,
        stats=STATS,
        augment=augment,
        teacher_view="independent",
        device=CPU,
        views=("strong",),
        part=part,
    )


@pytest.fixture
def files(image_folder) -> FileSet:
    root = image_folder("train", classes=3, count=7)
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    return FileSet(root, paths, np.arange(len(paths)) // 7)


def streamed(files: FileSet, augment: Augment, part: Part) -> StreamTrain:
    return StreamTrain(
        files,
        image_size=16,
        resize="stretch",
        batch_size=8,
        seed=3,
        stats=STATS,
        augment=augment,
        teacher_view="independent",
        workers=0,
        device=CPU,
        views=("strong",),
        part=part,
    )


def check_shared_out(make, size: int) -> None:
    """21 images in batches of 8 leave a last one of 5, of which four processes with mixed pairs take all each."""
    whole, parts = make(Part()), [make(Part(rank, size)) for rank in range(size)]
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch} == {3}
    for start in (0, 1):
        epochs = zip(whole.epoch(2, start), *(part.epoch(2, start) for part in parts), strict=True)
        for batch, *shares in epochs:
            if shares[0].share is None:
                assert all(torch.equal(share.image, batch.image) for share in shares)
                continue
            assert [len(share.label) for share in shares] == list(shares[0].share.counts)
            for name in ("image", "label", "index", "teacher_image", "strong"):
                joined = torch.cat([getattr(share, name) for share in shares])
                assert torch.equal(joined, getattr(batch, name)), name
            if batch.mixed is not None:
                for number, expected in enumerate(batch.mixed):
                    assert torch.equal(torch.cat([share.mixed[number] for share in shares]), expected)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_resident_images_are_shared_out(augment, size):
    check_shared_out(lambda part: resident(AUGMENTS[augment], part), size)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_streamed_images_are_shared_out(augment, files):
    check_shared_out(lambda part: streamed(files, AUGMENTS[augment], part), 2)


def test_evaluation_takes_whole_batches_in_turn(files):
    def of(kind, part):
        common = {"batch_size": 4, "stats": STATS, "device": CPU, "part": part}
        if kind == "resident":
            return list(ResidentEval(arrays(), **common).batches())
        return list(StreamEval(files, image_size=16, resize="stretch", workers=0, **common).batches())

    for kind in ("resident", "streamed"):
        whole, parts = of(kind, Part()), [of(kind, Part(rank, 4)) for rank in range(4)]
        assert [len(part) for part in parts] == [2, 2, 1, 1]
        for number, (image, label) in enumerate(whole):
            found = parts[number % 4][number // 4]
            assert torch.equal(found[0], image) and torch.equal(found[1], label)
