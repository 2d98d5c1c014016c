"""dataset.cache=resized: the pixels of the files, made once and whole, or not at all."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kdrun.config.augment import Augment
from kdrun.config.options import DatasetOptions
from kdrun.data import keep_resized
from kdrun.data.datasets import DataSource
from kdrun.data.resized import Resized
from kdrun.data.splits import FileSet
from kdrun.data.stream import StreamEval, StreamTrain
from kdrun.errors import DataError, DiskFull
from kdrun.evaluation.stored import check_stored
from kdrun.runs.identity import data_identity

CPU = torch.device("cpu")
STATS = ([0.5] * 3, [0.25] * 3)


@pytest.fixture
def source(image_folder):
    """source(resize="fit") is the data set of a folder of 12 images, which is kept resized."""
    settings = {"name": "folder", "root": str(image_folder("set", size=(24, 40))), "image_size": 16, "workers": 0}

    def make(**changes: Any) -> DataSource:
        return DataSource(DatasetOptions(**{**settings, "cache": "resized", **changes}))

    return make


def parts_of(source: DataSource, cache, fill: bool = True) -> tuple[FileSet, FileSet]:
    splits = source.load(cache, fill_cache=fill)
    assert isinstance(splits.train, FileSet)
    assert isinstance(splits.test, FileSet)
    return splits.train, splits.test


def kept_of(files: FileSet) -> Resized:
    assert files.resized is not None
    return files.resized


def batches_of(files: FileSet, resize: str, **changes) -> list[torch.Tensor]:
    common = {"image_size": 16, "resize": resize, "batch_size": 4, "stats": STATS, "workers": 0, "device": CPU}
    augment = Augment(crop="padded", flip=0.5, rotation=15.0, brightness=0.2)
    train = StreamTrain(files, seed=0, augment=augment, teacher_view="clean", **{**common, **changes})
    shown = [image for batch in train.epoch(1) for image in (batch.image, batch.teacher_image)]
    return [*shown, *(image for image, _ in StreamEval(files, **{**common, **changes}).batches())]


@pytest.mark.parametrize("resize", ["stretch", "fit", "crop"])
def test_the_pixels_are_those_of_the_files(resize, source, tmp_path, monkeypatch):
    train, _ = parts_of(source(resize=resize), tmp_path)
    expected = batches_of(replace(train, resized=None), resize)
    monkeypatch.setattr("kdrun.data.stream.read_pixels", None)  # no file is read again
    found = batches_of(train, resize)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_it_is_made_once_and_only_to_train(source, tmp_path, monkeypatch):
    train, test = parts_of(source(), tmp_path, fill=False)
    assert train.resized is None
    assert not list(tmp_path.glob("*/images.npy"))
    parts_of(source(), tmp_path)
    monkeypatch.setattr(keep_resized, "write", None)
    for fill in (True, False):
        train, test = parts_of(source(), tmp_path, fill)
        assert train.resized is not None
        assert test.resized is not None


def test_a_subset_and_another_process_see_the_same(source, tmp_path):
    train, _ = parts_of(source(), tmp_path)
    whole, part = kept_of(train), kept_of(train.take(np.array([5, 2])))
    assert torch.equal(part[0], whole[5])
    content = pickle.dumps(part)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content)[1], whole[2])


def test_other_files_and_another_size_are_kept_apart(source, image_folder, tmp_path):
    for changes in ({}, {"image_size": 8}, {"resize": "fit"}, {"split_seed": 2}):
        parts_of(source(**changes), tmp_path)
    places = {place.parent for place in tmp_path.glob("*/images.npy")}
    assert len(places) == 8
    image_folder("set", size=(24, 40), seed=1)
    train, _ = parts_of(source(), tmp_path)
    assert kept_of(train).file.parent not in places


def test_a_damaged_cache_is_made_again_and_doctor_sees_changed_pixels(source, tmp_path):
    cache = tmp_path / "caches" / "data"
    file = kept_of(parts_of(source(), cache)[0]).file
    whole = file.read_bytes()
    assert check_stored(tmp_path)[1] == []
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "has changed since it was written" in check_stored(tmp_path)[1][0]
    file.write_bytes(whole[:-100])
    (file.parent / ".images.npy.1.tmp").touch()
    assert kept_of(parts_of(source(), cache)[0]).file.read_bytes() == whole
    assert sorted(place.name for place in file.parent.iterdir()) == ["images.npy", "lock", "meta.json"]


def test_a_full_disk_and_a_damaged_image_leave_nothing_half_done(source, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda place: usage)
        with pytest.raises(DiskFull, match=r"dataset\.cache=resized needs 0 MiB in .*, where 0 MiB are free"):
            parts_of(source(), tmp_path)
    given = source()
    (given.trees[0].root / given.trees[0].paths[3]).write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        parts_of(source(), tmp_path)
    assert not list(tmp_path.glob("*/*.tmp"))
    train, test = parts_of(source(on_error="skip"), tmp_path)
    assert len(train) + len(test) == 11
    assert train.resized is not None


def test_it_is_refused_where_it_would_change_pixels_or_be_of_no_use(source):
    with pytest.raises(DataError, match=r"dataset\.augment\.crop=resized enlarges parts"):
        source(augment=Augment(crop="resized"))
    with pytest.raises(DataError, match="decoded once anyway"):
        source(name="digits")


def test_a_run_is_the_same_run_with_it(source):
    options = source().options
    assert data_identity(options, "") == data_identity(replace(options, cache="none"), "")
