"""Splits, digits, made-up data, class-folder trees and the CIFAR archive."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.config.options import DatasetOptions
from kdrun.data import cifar, digits, fake
from kdrun.data.datasets import DataSource
from kdrun.data.decode import decode_tree, read_image
from kdrun.data.image_tree import scan
from kdrun.data.splits import stratified_split
from kdrun.errors import DataError


def options(name: str, **changes) -> DatasetOptions:
    made = DatasetOptions(name=name, image_size=changes.pop("image_size", 32), mean=[0.5] * 3, std=[0.5] * 3)
    return replace(made, **changes)


def test_stratified_split():
    labels = np.array([0] * 10 + [1] * 20 + [2] * 5)
    first, rest = stratified_split(labels, 0.8, seed=0)
    assert np.bincount(labels[first]).tolist() == [8, 16, 4]
    assert sorted([*first, *rest]) == list(range(35))
    again, _ = stratified_split(labels, 0.8, seed=0)
    assert np.array_equal(first, again)
    other, _ = stratified_split(labels, 0.8, seed=1)
    assert not np.array_equal(first, other)
    tiny, left = stratified_split(labels, 0.001, seed=0)
    assert np.bincount(labels[tiny]).tolist() == [1, 1, 1]
    assert len(left) == 32
    with pytest.raises(DataError, match="class 1 has only 1 image"):
        stratified_split(np.array([0, 0, 1]), 0.5, seed=0)


def test_digits_are_the_real_ones(tmp_path):
    everything = digits.load(32, tmp_path)
    assert everything.images.shape == (1797, 32, 32, 3)
    assert everything.images.dtype == np.uint8
    assert np.bincount(everything.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.array_equal(everything.images[..., 0], everything.images[..., 2])
    assert everything.images.max() == 255
    cached = digits.load(32, tmp_path)
    assert np.array_equal(cached.images, everything.images)


def test_digits_splits(tmp_path):
    default = DataSource(options("digits", train_fraction=0.8)).load(tmp_path)
    assert (len(default.train), len(default.test)) == (1438, 359)
    few = DataSource(options("digits", train_fraction=0.1)).load(tmp_path)
    assert (len(few.train), len(few.test)) == (179, 1618)
    assert np.bincount(few.train.labels).min() == 17
    held = DataSource(options("digits", train_fraction=0.8, val_fraction=0.25)).load(tmp_path)
    assert held.val is not None
    assert len(held.train) + len(held.val) == 1438
    assert len(held.test) == 359
    limited = DataSource(options("digits", train_limit=100, test_limit=50)).load(tmp_path)
    assert abs(len(limited.train) - 100) <= 5
    assert abs(len(limited.test) - 50) <= 5


def test_digits_statistics_in_the_yaml_are_the_measured_ones(tmp_path):
    import yaml

    from kdrun.config.groups import conf_dir
    from kdrun.data.resident import measured_stats

    given = yaml.safe_load((conf_dir() / "dataset" / "digits.yaml").read_text())
    mean, std = measured_stats(DataSource(options("digits", train_fraction=0.8)).load(tmp_path).train.images)
    assert np.allclose(mean, given["mean"], atol=2e-3)
    assert np.allclose(std, given["std"], atol=2e-3)


def test_fake_is_balanced_and_repeats():
    made = fake.load(30, 3, 16, seed=5)
    assert np.bincount(made.labels).tolist() == [10, 10, 10]
    assert np.array_equal(made.images, fake.load(30, 3, 16, seed=5).images)
    assert not np.array_equal(made.images, fake.load(30, 3, 16, seed=6).images)


def test_scan_orders_classes_and_ignores_the_rest(image_folder):
    root = image_folder("set", classes=3, count=2)
    (root / "readme.txt").write_text("not a class")
    (root / "class_0" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    (root / "class_1" / "more").mkdir()
    Image.new("RGB", (8, 8)).save(root / "class_1" / "more" / "deep.webp")
    tree = scan(root)
    assert tree.class_names == ["class_0", "class_1", "class_2"]
    assert len(tree.paths) == 7
    assert "class_1/more/deep.webp" in tree.paths
    assert tree.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_fingerprint_follows_content_and_not_place(image_folder):
    a, b = image_folder("a"), image_folder("b")
    assert scan(a).fingerprint() == scan(b).fingerprint()
    Image.new("RGB", (9, 9)).save(b / "class_0" / "0000.png")
    assert scan(a).fingerprint() != scan(b).fingerprint()


def test_empty_class_and_no_class(image_folder, tmp_path):
    root = image_folder("set")
    (root / "class_9").mkdir()
    with pytest.raises(DataError, match=r"class_9 contains no images"):
        scan(root)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        scan(tmp_path / "nothing")


def test_decoding_and_its_cache(image_folder, tmp_path):
    root = image_folder("set", classes=4, count=200, size=(12, 12))
    tree = scan(root)
    data, notes = decode_tree(tree, 12, "stop", tmp_path / "cache")
    assert notes == []
    expected = np.stack([np.asarray(Image.open(root / path)) for path in tree.paths])
    assert np.array_equal(data.images, expected)
    assert np.array_equal(data.labels, tree.labels)
    assert isinstance(data.images, np.memmap)
    stamp = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    again, _ = decode_tree(scan(root), 12, "stop", tmp_path / "cache")
    assert np.array_equal(again.images, expected)
    assert stamp == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_damaged_images_are_named_or_skipped(damage, image_folder, tmp_path):
    root = image_folder("set", count=5)
    victim = root / "class_1" / "0002.png"
    whole = victim.read_bytes()
    victim.write_bytes({"truncated": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"class_1/0002.png cannot be read .*on_error=skip"):
        decode_tree(scan(root), 16, "stop", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.npy"))
    data, notes = decode_tree(scan(root), 16, "skip", tmp_path / "cache")
    assert len(data) == 14
    assert len(notes) == 1
    assert notes[0][0] == "set/class_1/0002.png"
    assert np.bincount(data.labels).tolist() == [5, 4, 5]


def test_every_kind_of_image_becomes_rgb(tmp_path):
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    kinds = {
        "grey.png": grey,
        "rgba.png": Image.new("RGBA", (16, 16), (10, 20, 30, 128)),
        "palette.gif": grey.convert("P"),
        "cmyk.jpg": Image.new("CMYK", (16, 16), (0, 50, 100, 0)),
        "deep.png": Image.fromarray((np.arange(256, dtype=np.uint16) * 256).reshape(16, 16)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        pixels = read_image(tmp_path / name, None)
        assert pixels.shape == (16, 16, 3)
        assert pixels.dtype == np.uint8
    assert np.array_equal(
        read_image(tmp_path / "deep.png", None)[..., 0], read_image(tmp_path / "grey.png", None)[..., 0]
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(np.dstack([np.arange(32, dtype=np.uint8).reshape(4, 8)] * 3)).save(
        tmp_path / "turned.png", exif=exif
    )
    assert read_image(tmp_path / "turned.png", None).shape == (8, 4, 3)
    assert read_image(tmp_path / "grey.png", 8).shape == (8, 8, 3)


def make_archive(folder: Path, monkeypatch, evil: str | None = None) -> tuple[Path, dict[str, np.ndarray]]:
    """A small CIFAR-100 archive in the published layout, with its own checksums in the place of the published ones."""
    generator = np.random.default_rng(0)
    contents, arrays = {}, {}
    for name, count in (("train", 30), ("test", 10)):
        arrays[name] = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": arrays[name], b"fine_labels": [i % 5 for i in range(count)]}
        contents[name] = pickle.dumps(batch, protocol=2)
    contents["meta"] = pickle.dumps({b"fine_label_names": [f"name {i}".encode() for i in range(5)]}, protocol=2)
    place = folder / "cifar-100-python.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w:gz") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if evil:
            info = tarfile.TarInfo(evil)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
    sums = {name: hashlib.md5(data).hexdigest() for name, data in contents.items()}
    facts = replace(
        cifar.ARCHIVES["cifar100"],
        md5=hashlib.md5(place.read_bytes()).hexdigest(),
        train={"train": sums["train"]},
        test={"test": sums["test"]},
        meta={"meta": sums["meta"]},
    )
    monkeypatch.setitem(cifar.ARCHIVES, "cifar100", facts)
    return place, arrays


def test_archive(tmp_path, monkeypatch):
    place, arrays = make_archive(tmp_path / "data", monkeypatch)
    for root in (tmp_path / "data", place):
        found = DataSource(options("cifar100", root=str(root))).load(tmp_path / "cache")
        assert found.class_names == [f"name {i}" for i in range(5)]
        assert np.array_equal(found.train.images[3], arrays["train"][3].reshape(3, 32, 32).transpose(1, 2, 0))
        assert found.test.labels.tolist() == [0, 1, 2, 3, 4] * 2
    with tarfile.open(place) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for root in (tmp_path / "unpacked", tmp_path / "unpacked" / "cifar-100-python"):
        assert len(DataSource(options("cifar100", root=str(root))).load(tmp_path / "cache").train) == 30


def test_truncated_archive(tmp_path, monkeypatch):
    place, _ = make_archive(tmp_path / "data", monkeypatch)
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged or incomplete .*md5"):
        DataSource(options("cifar100", root=str(tmp_path / "data"))).load(tmp_path / "cache")


def test_archive_entries_that_point_outside_are_refused(tmp_path, monkeypatch):
    for evil in ("../evil", "/tmp/evil", "cifar-100-python/../../evil"):
        make_archive(tmp_path / "data", monkeypatch, evil=evil)
        with pytest.raises(DataError, match="points outside the folder"):
            DataSource(options("cifar100", root=str(tmp_path / "data"))).load(tmp_path / "cache")
    assert not (tmp_path / "evil").exists()


def test_changed_file_inside_an_unpacked_archive(tmp_path, monkeypatch):
    place, _ = make_archive(tmp_path / "data", monkeypatch)
    with tarfile.open(place) as tar:
        tar.extractall(tmp_path / "data", filter="data")
    place.unlink()
    target = tmp_path / "data" / "cifar-100-python" / "train"
    target.write_bytes(pickle.dumps({b"data": 1}))
    with pytest.raises(DataError, match="train in the archive has md5"):
        DataSource(options("cifar100", root=str(tmp_path / "data"))).load(tmp_path / "cache")
    target.unlink()
    with pytest.raises(DataError, match="unpack"):
        DataSource(options("cifar100", root=str(tmp_path / "data"))).load(tmp_path / "cache")


def test_archive_without_a_network_says_how(tmp_path, monkeypatch):
    import torchvision.datasets.utils

    def unreachable(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", unreachable)
    with pytest.raises(DataError, match=r"could not be downloaded .*set dataset.root"):
        DataSource(options("cifar10")).load(tmp_path / "cache")


def test_cifar_class_folders(image_folder, tmp_path):
    image_folder("set/train", classes=4, count=6, size=(32, 32))
    image_folder("set/test", classes=4, count=3, size=(32, 32), seed=1)
    for root in (tmp_path / "set",):
        found = DataSource(options("cifar100", root=str(root))).load(tmp_path / "cache")
        assert (len(found.train), len(found.test), found.num_classes) == (24, 12, 4)
    (tmp_path / "set" / "test" / "class_0").rename(tmp_path / "set" / "test" / "other")
    with pytest.raises(DataError, match="has the class other, which"):
        DataSource(options("cifar100", root=str(tmp_path / "set")))


def test_data_home_from_the_environment(image_folder, tmp_path, monkeypatch):
    image_folder("home/cifar100/train", size=(32, 32))
    image_folder("home/cifar100/test", size=(32, 32))
    monkeypatch.setenv("KDRUN_DATA", str(tmp_path / "home"))
    assert len(DataSource(options("cifar100")).load(tmp_path / "cache").train) == 12


def test_folder_layouts(image_folder, tmp_path):
    image_folder("flat", classes=2, count=10)
    flat = DataSource(options("folder", root=str(tmp_path / "flat"), train_fraction=0.7)).load(tmp_path)
    assert (len(flat.train), len(flat.test), flat.class_names) == (14, 6, ["class_0", "class_1"])
    assert not set(flat.train.paths) & set(flat.test.paths)
    image_folder("two/train", count=6)
    image_folder("two/val", count=2)
    two = DataSource(options("folder", root=str(tmp_path / "two"))).load(tmp_path)
    assert (len(two.train), len(two.test), two.val) == (18, 6, None)
    with pytest.raises(DataError, match=r"train_fraction=0.5: these images have their own split .*train_limit=N"):
        DataSource(options("folder", root=str(tmp_path / "two"), train_fraction=0.5))
    image_folder("two/test", count=3)
    three = DataSource(options("folder", root=str(tmp_path / "two"))).load(tmp_path)
    assert (len(three.train), len(three.val), len(three.test)) == (18, 6, 9)
    image_folder("lonely/train")
    with pytest.raises(DataError, match="neither test/ nor val/"):
        DataSource(options("folder", root=str(tmp_path / "lonely")))


def test_real_cifar100(cifar100_root, tmp_path):
    found = DataSource(options("cifar100", root=cifar100_root)).load(tmp_path / "cache")
    assert (len(found.train), len(found.test), found.num_classes) == (50_000, 10_000, 100)
    from kdrun.data.resident import measured_stats

    mean, std = measured_stats(found.train.images)
    assert np.allclose(mean, [0.5071, 0.4865, 0.4409], atol=2e-4)
    assert np.allclose(std, [0.2673, 0.2564, 0.2762], atol=2e-4)
