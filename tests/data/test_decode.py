"""Images of every mode as RGB, damaged ones named with their reason, and what is left out counted everywhere."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdrun.config.options import DatasetOptions
from kdrun.data.datasets import DataSource
from kdrun.data.decode import read_image, why_unreadable
from kdrun.data.image_tree import scan
from kdrun.data.readable import check
from kdrun.data.transform import PlainView
from kdrun.errors import DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def options(name: str, root, **changes) -> DatasetOptions:
    made = DatasetOptions(name=name, root=str(root), image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        ("tif", (RAMP / 255).astype(np.float32)),  # 0 … 1
        ("tif", (RAMP / 127.5 - 1).astype(np.float32)),  # -1 … 1
        ("tif", RAMP.astype(np.float32)),  # 0 … 255
        ("tif", (RAMP * 257.0).astype(np.float32)),  # 0 … 65535
        ("tif", (RAMP * 1e6 - 5e7).astype(np.float32)),  # anything: from the least to the greatest
        ("png", RAMP.astype(np.uint16) * 257),
        ("tif", RAMP.astype(np.uint16) * 257),
        ("tif", RAMP.astype(np.int32)),
        ("tif", RAMP.astype(np.int32) * 257),
        ("tif", RAMP.astype(np.int32) << 23),
        ("pgm", RAMP.astype(np.int32) * 257),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} {value.min():.0f} to {value.max():.0f}",
)
def test_numbers_of_any_width_become_grey_levels(tmp_path, suffix, values):
    place = tmp_path / f"x.{suffix}"
    Image.fromarray(values).save(place)
    read = read_image(place, None)
    assert read.shape == (16, 16, 3) and read.dtype == np.uint8
    assert np.abs(read[..., 0].astype(int) - RAMP).max() <= 1
    assert (read[..., 0] == read[..., 2]).all()


def grey_of(place: Path, values: list[float], kind: type, **settings) -> list[int]:
    """Return the grey levels of a file with these numbers."""
    Image.fromarray(np.array([values], dtype=kind)).save(place, **settings)
    return read_image(place, None)[0, :, 0].tolist()


SIGNED = {"tiffinfo": {339: (2,)}}


@pytest.mark.parametrize(
    ("suffix", "kind", "images", "expected", "settings"),
    [
        (
            "tif",
            np.float32,
            [[0, 0.8], [0.8, 1.02], [0.8, -0.03], [0.8, 1.9]],
            [[0, 204], [204, 255], [204, 0], [204, 255]],
            {},
        ),
        ("tif", np.float32, [[-1, 0.6], [-1.1, 0.6], [-0.5, 1.2]], [[0, 204], [0, 204], [64, 255]], {}),
        (
            "tif",
            np.float32,
            [[3, 100], [100, 260], [100, -20], [100, 509]],
            [[3, 100], [100, 255], [100, 0], [100, 255]],
            {},
        ),
        ("tif", np.float32, [[25700, 0], [25700, 66e3], [25700, -999]], [[100, 0], [100, 255], [100, 0]], {}),
        ("tif", np.float32, [[-3, 0, 3], [-1, 7e5]], [[0, 128, 255], [0, 255]], {}),  # none of the usual ranges
        ("tif", np.int32, [[40, 255], [40, -7]], [[40, 255], [40, 0]], {}),
        ("pgm", np.int32, [[200, 0], [200, 25600]], [[0, 0], [0, 100]], {}),  # the file has 16 bits
        ("tif", np.uint16, [[64536, 65436, 40, 255], [1000, 12800, 32767]], [[0, 0, 0, 1], [7, 100, 255]], SIGNED),
    ],
)
def test_a_value_is_the_same_grey_in_every_image(tmp_path, suffix, kind, images, expected, settings):
    """One pixel of 1.02 made an image of 0 … 1 black, and of signed 16 bits 40 was brighter than 1000."""
    assert [grey_of(tmp_path / f"x.{suffix}", values, kind, **settings) for values in images] == expected


def test_ranges_that_differ_and_values_that_are_cut_are_said(kdrun, tmp_path):
    made = {"a": [0.9, 1.0], "b": [0.9, 0.5], "c": [0.9, 1.1], "d": [0.2, 0.3]}
    for name, values in made.items():
        (tmp_path / "set" / name[0]).mkdir(parents=True)
        for number in range(3):
            grey_of(tmp_path / "set" / name / f"{number}.tif", values, np.float32)
    out = kdrun("data", str(tmp_path / "set"))[1]
    assert "note: 3 of 12 images of 16- or 32-bit numbers have values outside of what is read (0 to 1): those" in out
    assert "not the same grey" not in out
    for number in range(2):
        grey_of(tmp_path / "set" / "a" / f"{number}.tif", [200, 9], np.float32)
    grey_of(tmp_path / "set" / "b" / "0.tif", [-9, 9], np.float32)
    out = kdrun("data", str(tmp_path / "set"))[1]
    read = "9 from 0 to 1, 2 from 0 to 255, 1 each from its least to its greatest value. Convert"
    assert f"note: a value is not the same grey in all images, which are read {read}" in out
    for place in (tmp_path / "set").rglob("*.tif"):
        grey_of(place, [2000, 60000], np.uint16)
    out = kdrun("data", str(tmp_path / "set"))[1]
    assert "not the same grey" not in out and "outside of what is read" not in out


def test_copies_in_two_splits_or_classes_are_said(kdrun, image_folder, tmp_path):
    for part in ("train", "test"):
        image_folder(f"set/{part}", classes=2, count=4, size=(16, 16))
    root = tmp_path / "set"
    for number, place in enumerate(sorted(root.rglob("*.png"))):
        Image.fromarray(np.roll(RAMP, number)).save(place)
    assert "note" not in kdrun("data", str(root))[1]
    for part in ("train", "test"):  # not even two that cannot be read
        (root / part / "class_0" / "0003.png").write_bytes(b"")
    assert "note" not in kdrun("data", str(root))[1]
    one = root / "train" / "class_0" / "0001.png"
    Image.open(one).save(root / "test" / "class_0" / "0002.png", optimize=True, dpi=(72, 72))  # other bytes
    out = kdrun("data", str(root))[1]
    assert "note: 1 of 8 test images is also a training image, such as test/class_0/0002.png: remove the copies" in out
    assert "more than one class" not in out
    shutil.copy(one, root / "test" / "class_1" / "[red].png")
    out = kdrun("data", str(root))[1]
    assert "note: 2 of 9 test images are also training images, such as test/class_0/0002.png: remove the copies" in out
    pair = "test/class_0/0002.png and test/class_1/[red].png"
    assert f"note: 1 picture is in more than one class, such as {pair}: remove the wrong copies" in out
    shutil.copytree(root / "train", tmp_path / "flat")
    for number in range(4):
        shutil.copy(tmp_path / "flat" / "class_1" / "0000.png", tmp_path / "flat" / "class_1" / f"copy{number}.png")
    out = kdrun("data", str(tmp_path / "flat"), "dataset.train_fraction=0.5", "dataset.val_fraction=0.5")[1]
    assert "validation images" in out and "test images" in out and out.count("also") == 2


def test_what_is_no_number_is_no_image(tmp_path):
    values = (RAMP / 255).astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="NaN or infinite"):
        read_image(tmp_path / "x.tif", None)
    Image.fromarray(np.full((4, 4), 7e7, np.float32)).save(tmp_path / "flat.tif")
    assert (read_image(tmp_path / "flat.tif", None) == 0).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "1", "P", "PA", "CMYK", "paltrans", "gif"])
def test_colours_of_every_mode(tmp_path, mode):
    """Red on the left, blue on the right, whatever the file calls it; grey where it has no colours."""
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:, :4, 0], colours[:, 4:, 2] = 254, 254
    image, place = Image.fromarray(colours), tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "paltrans":
        image.convert("P").save(place, transparency=bytes(index % 256 for index in range(256)))
    elif mode == "gif":
        place = tmp_path / "x.gif"
        image.save(place, save_all=True, append_images=[image.rotate(90)] * 2)
    elif mode == "PA":
        image.convert("P").save(place, transparency=0)
    else:
        image.convert(mode).save(place)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_image(place, None).astype(int)
    left, right = read[4, 1], read[4, 6]
    if mode in ("LA", "L", "1"):
        assert left[0] == left[1] == left[2]
    else:
        assert np.abs(left - [254, 0, 0]).max() <= 2 and np.abs(right - [0, 0, 254]).max() <= 2


def test_an_unreadable_file_has_a_reason_in_words(tmp_path):
    def reason(name: str, data: bytes | None) -> str:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(Exception) as caught:
            read_image(tmp_path / name, None)
        return why_unreadable(caught.value, tmp_path / name)

    assert reason("a.png", b"") == "the file is empty"
    assert reason("b.png", b"<html>404</html>") == "not an image format that Pillow reads"
    (tmp_path / "link.png").symlink_to(tmp_path / "absent")
    assert reason("link.png", None) == "a broken link"
    assert reason("gone.png", None) == "the file no longer exists"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "c.png")
    assert reason("c.png", (tmp_path / "c.png").read_bytes()[:300]) == "image file is truncated"


def test_proportions_are_kept_by_fit(tmp_path):
    """Of an image three times as wide as high, the middle third."""
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = RAMP[..., None]
    import torch

    wide = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(PlainView(16, "fit")(wide)[0], torch.from_numpy(RAMP))
    assert not torch.equal(PlainView(16, "stretch")(wide)[0], torch.from_numpy(RAMP))


def damaged(image_folder, name: str):
    """Two classes of six images, of which two are damaged."""
    root = image_folder(name, classes=2, count=6, size=(16, 16))
    (root / "class_0" / "0001.png").write_bytes(b"<html>")
    (root / "class_1" / "0004.png").write_bytes(b"")
    return root


GONE = [
    ("class_0/0001.png", "not an image format that Pillow reads"),
    ("class_1/0004.png", "the file is empty"),
]


@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_images_that_are_skipped_are_named_and_not_counted(image_folder, tmp_path, name):
    for part in ("train", "test"):
        damaged(image_folder, f"set/{part}")
    source = DataSource(options(name, tmp_path / "set", on_error="skip"))
    for _ in range(2):  # the second time from the cache
        found = source.load(tmp_path / "cache")
        assert (len(found.train), len(found.test)) == (10, 10)
        assert found.unreadable == [(f"{part}/{path}", why) for part in ("train", "test") for path, why in GONE]
    stopping = DataSource(options(name, tmp_path / "set"))
    assert stopping.fingerprint() == source.fingerprint()
    if name == "cifar10":  # decoded at once; a folder's files as they are met
        with pytest.raises(DataError, match=r"class_0/0001.png cannot be read"):
            stopping.load(tmp_path / "cache")


@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_a_class_without_a_readable_image_is_an_error(image_folder, tmp_path, name):
    for part in ("train", "test"):
        image_folder(f"set/{part}", classes=3, count=3, size=(16, 16))
    for path in (tmp_path / "set" / "train" / "class_1").iterdir():
        path.write_bytes(b"garbage")
    for _ in range(2):
        with pytest.raises(DataError, match=r"no image of the class class_1 in .*train can be read"):
            DataSource(options(name, tmp_path / "set", on_error="skip")).load(tmp_path / "cache")


def test_checking_tells_sizes_and_moments(image_folder):
    root = image_folder("set", classes=2, count=5, size=(12, 20))
    found = check(scan(root))
    pixels = np.stack([read_image(root / path, None) for path in scan(root).paths]) / 255
    assert found.unreadable == []
    assert found.sizes == {(20, 12): 10}
    assert np.allclose(found.moments[:, 0].mean(0), pixels.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(found.moments[:, 1].mean(0), (pixels**2).mean((0, 1, 2)), atol=1e-6)


def test_a_run_says_what_it_trains_on_and_what_is_left_out(kdrun, outputs, image_folder, tmp_path):
    damaged(image_folder, "photos")
    words = [
        *("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "dataset.image_size=16", "dataset.workers=0"),
        *("method=none", "student=resnet8", "batch_size=4", "epochs=1", "threads=1", "compile=false", "precision=fp32"),
    ]
    code, _, err = kdrun("train", *words)
    assert code == 2 and "cannot be read" in err and "dataset.on_error=skip" in err
    code, out, err = kdrun("train", *words, "dataset.on_error=skip")
    assert code == 0, err
    assert (
        "photos: 2 classes (class_0, class_1) · 8 train, 2 test (20 % of each class) · 4 training images per class · 16×16"
    ) in out
    assert "2 images cannot be read and are left out: photos/class_0/0001.png (not an image format that" in out
    (run,) = (outputs / "runs" / "folder").glob("*/*/*")  # skipping is no other run
    about = json.loads((run / "provenance.json").read_text())["data"]
    assert (about["train"], about["test"]) == (8, 2)
    assert about["unreadable"] == [{"image": f"photos/{path}", "reason": why} for path, why in GONE]
    for _ in range(2):  # once in every command, however many runs it measures
        code, _, err = kdrun("eval", str(run), "dataset.on_error=skip")
        assert code == 0 and err.count("note: 2 images cannot be read and are left out") == 1

    # Repaired, the same command is another run, and says how to go on from this one.
    (run / "result.json").unlink()
    for path, _ in GONE:
        Image.fromarray(RAMP).convert("RGB").save(tmp_path / "photos" / path)
    from kdrun.config.compose import load
    from kdrun.runs.plan import image_notes, make_plan

    plan = make_plan(load(words), words)
    (line,) = image_notes([plan])
    assert line.startswith(f"note: the images have changed since {run.name}, so this is a new run; to continue from ")
    assert line.endswith(f"epoch 1 instead: mv {run} {plan.run.path}")
    run.rename(plan.run.path)
    code, out, err = kdrun("train", *words)
    assert code == 0 and "resuming student after epoch 1" in out, err
    assert json.loads((plan.run.path / "provenance.json").read_text())["data"]["train"] == 10
    other = make_plan(load([*words, "dataset.root=" + str(image_folder("elsewhere"))]), words)
    assert image_notes([other]) == []


def test_kdrun_data(kdrun, image_folder, tmp_path):
    root = image_folder("photos", classes=3, count=5, size=(16, 24))
    code, out, err = kdrun("data", str(root), f"save={tmp_path / 'sheet.png'}")
    assert code == 0, err
    assert "photos: 3 classes (class_0, class_1, class_2) · 12 train, 3 test (20 % of each class)" in out
    assert "24×16 → 224×224 (fit, centre)" in out
    assert "class_1      4     1" in out and "all         12     3" in out
    assert "all 15 images can be read" in out and "mean [0." in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 26 + 3 * 102
    (root / "class_2" / "0003.png").write_bytes(b"")
    code, out, _ = kdrun("data", "dataset=folder", f"dataset.root={root}")
    assert code == 1 and "class_2/0003.png: the file is empty" in out
    assert "1 of 15 images could not be read; repair or remove them, or train with dataset.on_error=skip." in out
    code, out, _ = kdrun("data", "dataset=digits")
    assert code == 0 and "mean [0.3058, 0.3058, 0.3058]  std [0.3241, 0.3241, 0.3241]" in out
    for words, part in (
        ([], "data needs a folder"),
        ([str(root), "dataset.root=x"], "not both"),
        ([str(root), "epochs=3"], "epochs: data takes a folder"),
        ([str(tmp_path / "nothing")], "no such folder"),
        ([str(root), "save=x.jpg"], "give a file that ends in .png"),
    ):
        code, _, err = kdrun("data", *words)
        assert code == 2 and part in err and err.count("\n") == 1, err


def test_medical_images_of_twelve_bits_are_pointed_out(kdrun, tmp_path):
    """Scaled from 16 bits, what they hold is left with 16 grey levels."""
    generator = np.random.default_rng(0)
    for label in ("ill", "well"):
        (tmp_path / "scans" / label).mkdir(parents=True)
        for number in range(2):
            values = generator.integers(0, 4096, (20, 20), dtype=np.uint16)
            Image.fromarray(values).save(tmp_path / "scans" / label / f"{number}.png")
    assert "note: 4 of 4 images are nearly black" in kdrun("data", str(tmp_path / "scans"))[1]
    for path in (tmp_path / "scans" / "ill").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * 16).save(path)
    assert "nearly black" not in kdrun("data", str(tmp_path / "scans"))[1]  # half of them


def test_doctor_finds_class_folders(kdrun, image_folder, tmp_path):
    from kdrun.commands.doctor import data_rows

    root = image_folder("photos")
    problems: list[str] = []
    row = data_rows(str(root), problems)[-1]
    assert row == [
        "class folders",
        str(root),
        f"3 classes (class_0, class_1, class_2), 12 images: kdrun data {root}",
    ]
    assert problems == []
    (tmp_path / "empty").mkdir()
    data_rows(str(tmp_path / "empty"), problems)
    assert len(problems) == 1 and "has no class folders" in problems[0]
    assert data_rows(None, problems)[-1][0] == "cifar100"
