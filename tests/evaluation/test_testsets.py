"""Derived test sets: each one's defining property, and the same images in any batch, order and process."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kdrun.data.splits import ArraySet
from kdrun.errors import ConfigError, DataError, RunError
from kdrun.evaluation.testsets import parallel
from kdrun.evaluation.testsets.base import DerivedSet, Draw, partners
from kdrun.evaluation.testsets.cache import derive, derive_together, export, grouped
from kdrun.evaluation.testsets.corruptions import GENERATORS, PublishedCorruption
from kdrun.evaluation.testsets.quilt import matched_luma
from kdrun.evaluation.testsets.registry import SETS, file_stem, make, parse, title
from kdrun.evaluation.testsets.style import texture
from kdrun.hardware import available_cores

MADE = [name for name, kind in SETS.items() if issubclass(kind, DerivedSet)]
NAMES = ["one", "two", "three"]


@pytest.fixture(scope="module")
def clean() -> ArraySet:
    """18 images of 32 px in three classes: a bright disc on a darker, slightly noisy ground."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    images = generator.integers(60, 90, (18, 32, 32, 3)).astype(np.uint8)
    for number in range(18):
        disc = (rows - 15.5) ** 2 + (columns - 15.5) ** 2 < (7 + number % 4) ** 2
        images[number][disc] = [200, 40 + 10 * number, 220 - 10 * number]
    return ArraySet(images, np.arange(18, dtype=np.int64) % 3)


def one(name: str, image: np.ndarray, index: int = 0, other: np.ndarray | None = None) -> np.ndarray:
    derived = parse(name)
    assert isinstance(derived, DerivedSet)
    return derived.image(image, Draw(derived.key(0), index), other)


def forget(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


# Every set.


@pytest.mark.parametrize("name", MADE)
def test_shape_type_source_and_repeatability(name, clean):
    """uint8 of the same shape; the source is untouched; another index, another seed: another image where there are
    draws."""
    before = clean.images.copy()
    image, other = clean.images[0], clean.images[1]
    made = one(name, image, 3, other)
    assert made.dtype == np.uint8 and made.shape == image.shape and np.array_equal(clean.images, before)
    assert np.array_equal(one(name, image, 3, other), made)
    assert not np.array_equal(made, image)
    if name not in ("superpixel", "silhouette"):
        assert not np.array_equal(one(name, image, 4, other), made)
        derived = parse(name)
        assert isinstance(derived, DerivedSet)
        assert not np.array_equal(derived.image(image, Draw(derived.key(1), 3), other), made)


@pytest.mark.parametrize("name", ["noise", "cue_conflict"])
def test_same_images_in_any_chunk_and_number_of_processes(name, clean, tmp_path, monkeypatch):
    derived = parse(name)
    whole = derive(derived, clean, tmp_path / "whole", processes=1)
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 3 * 32 * 32 * 5)
    apart = derive(derived, clean, tmp_path / "apart", processes=2)
    assert not apart.cached and apart.folder.name == whole.folder.name
    assert np.array_equal(whole.data.images, apart.data.images)


@pytest.mark.parametrize("name", MADE)
def test_order_does_not_matter(name, clean):
    forwards = [one(name, clean.images[i], i, clean.images[i - 1]) for i in range(4)]
    backwards = [one(name, clean.images[i], i, clean.images[i - 1]) for i in reversed(range(4))]
    assert np.array_equal(forwards, backwards[::-1])


# The properties that define them.


def test_noise_stays_in_its_window_and_has_its_statistics():
    grey = np.full((224, 224, 3), 128, np.uint8)
    made = one("noise", grey).astype(float)
    inside = made[74:150, 74:150].copy()
    assert inside.shape[:2] == (76, 76) and (inside != 128).mean() > 0.99
    made[74:150, 74:150] = 128
    assert (made == 128).all()
    # N(128/255, 2) clipped to [0, 1]: P(black) = Phi(-0.251) = 0.401, P(white) = 1 - Phi(0.249) = 0.402
    assert abs((inside == 0).mean() - 0.401) < 0.02 and abs((inside == 255).mean() - 0.402) < 0.02
    weak = one("noise:std=0.1", grey)[74:150, 74:150] / 255
    assert abs(weak.std() - 0.1) < 0.005 and abs(weak.mean() - 128 / 255) < 0.005


def test_noise_window_and_pattern_options():
    grey = np.full((32, 32, 3), 128, np.uint8)
    patterns = [one("noise:shared_pattern=true", grey, index) for index in (0, 1)]
    assert np.array_equal(*patterns)
    places = {
        tuple(np.argwhere((one("noise:position=random", grey, index) != 128).any(axis=2)).min(axis=0).tolist())
        for index in range(8)
    }
    assert len(places) > 1
    assert ((one("noise:window=0.25", grey) != 128).any(axis=2)).sum() == 8 * 8


def blocks(image: np.ndarray, side: int) -> Counter:
    return Counter(
        image[row : row + side, column : column + side].tobytes()
        for row in range(0, image.shape[0], side)
        for column in range(0, image.shape[1], side)
    )


@pytest.mark.parametrize(("text", "side"), [("scramble", 4), ("scramble:grid=2", 16), ("scramble:grid=4", 8)])
def test_scramble_keeps_the_multiset_of_patches(text, side):
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    made = [one(text, image, index) for index in range(5)]
    assert all(blocks(each, side) == blocks(image, side) for each in made)
    assert any(not np.array_equal(each, image) for each in made)


def test_scramble_offset_moves_inner_patches_only():
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    made = one("scramble:grid=4,offset=true", image)
    assert blocks(made[4:28, 4:28], 8) == blocks(image[4:28, 4:28], 8)
    assert not np.array_equal(made, image)
    made[4:28, 4:28] = image[4:28, 4:28]
    assert np.array_equal(made, image)


def test_scramble_takes_the_published_grid_at_224():
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    assert blocks(one("scramble", image), 32) == blocks(image, 32)


def test_superpixel_is_flat_in_about_as_many_segments():
    rows, columns = np.mgrid[:160, :160]
    image = np.stack([rows + 40, columns + 40, 220 - rows], axis=2)
    image = (image + np.random.default_rng(2).integers(-10, 10, image.shape)).astype(np.uint8)
    made = one("superpixel:segments=25,side=128", image)
    colours = np.unique(made.reshape(-1, 3), axis=0)
    assert 10 <= len(colours) <= 40
    assert abs(made.mean() - image.mean()) < 1  # means keep the mean
    assert (
        (np.diff(made.astype(int), axis=1) == 0).mean() > 0.9 > (np.diff(image.astype(int), axis=1) == 0).mean() + 0.5
    )


def test_silhouette_is_two_valued_and_finds_the_object(clean):
    rows, columns = np.mgrid[:32, :32]
    disc = (rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 8**2
    made = one("silhouette", clean.images[1])
    assert set(np.unique(made)) == {0, 255} and (made == made[..., :1]).all()
    mask = made[..., 0] == 0
    assert (mask & disc).sum() / (mask | disc).sum() > 0.8  # intersection over union
    assert set(np.unique(one("silhouette:ink=10,paper=20", clean.images[1]))) == {10, 20}
    assert (one("silhouette", np.full((32, 32, 3), 77, np.uint8)) == 255).all()  # nothing there, no failure


def test_style_and_cue_conflict_take_their_pixels_from_the_texture():
    """Blends lie between the texture's colours; the shape is the target's."""
    target = np.full((32, 32, 3), 30, np.uint8)
    target[8:24, 8:24] = 220
    source = np.zeros((32, 32, 3), np.uint8)
    source[:, 16:] = [255, 128, 0]
    made = one("cue_conflict", target, 0, source)
    assert made[..., 2].max() == 0 and made[12:20, 12:20, 0].min() > 200 and made[:5, :5, 0].max() < 50
    picture = texture("immunohistochemistry", 64).reshape(-1, 3)
    styled = one("style", target).reshape(-1, 3)
    assert (styled.min(axis=0) >= picture.min(axis=0)).all() and (styled.max(axis=0) <= picture.max(axis=0)).all()
    assert styled.reshape(32, 32, 3)[10:22, 10:22].mean() > styled.reshape(32, 32, 3)[:6].mean() + 20


def test_luminance_is_mapped_by_rank():
    ramp = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)
    other = np.repeat((np.arange(64, dtype=np.uint8) * 3 + 10).reshape(8, 8, 1), 3, axis=2)
    assert np.allclose(matched_luma(ramp, other) * 255, other[..., 0], atol=2.5)


def test_partners_are_of_another_class():
    labels = np.repeat([0, 1, 2], [60, 20, 20])
    chosen = partners(SETS["cue_conflict"](), labels, 0)  # type: ignore[arg-type]
    assert (labels[chosen] != labels).all()
    of_first = Counter(labels[chosen[:60]].tolist())
    assert set(of_first) == {1, 2} and min(of_first.values()) > 15
    with pytest.raises(DataError, match="two classes"):
        partners(SETS["cue_conflict"](), np.zeros(4, np.int64), 0)  # type: ignore[arg-type]


def test_colour(clean):
    made = one("colour:kind=grayscale", clean.images[5])
    assert (made == made[..., :1]).all()
    half = one("colour:kind=hue", np.full((4, 4, 3), [200, 50, 50], np.uint8))
    assert np.abs(half.astype(int) - [50, 200, 200]).max() <= 2
    still = "colour:brightness=0,contrast=0,saturation=0,hue=0"
    assert np.abs(one(still, clean.images[5]).astype(int) - clean.images[5]).max() <= 1
    darker = one("colour:brightness=0.8,contrast=0,saturation=0,hue=0", clean.images[5])
    assert not np.array_equal(darker, clean.images[5])


@pytest.mark.parametrize("kind", GENERATORS)
def test_corruptions_grow_with_severity(kind):
    rows, columns = np.mgrid[:32, :32]
    image = np.stack([rows * 6 + 20, columns * 5 + 30, (rows * columns) % 200 + 20], axis=2).astype(np.uint8)
    away = [
        np.abs(one(f"corruptions:kind={kind},severity={level}", image).astype(float) - image).mean() for level in (1, 5)
    ]
    assert away[0] > 0
    if kind != "saturate":  # its published severities take colour away first and add it later
        assert away[0] < away[1]


def test_gaussian_corruption_has_the_published_width():
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert abs(one("corruptions:severity=1", grey).std() / 255 - 0.04) < 0.002


# The cache.


def test_cache_hit_and_what_makes_another(clean, tmp_path):
    first = derive(parse("noise"), clean, tmp_path)
    again = derive(parse("noise"), clean, tmp_path)
    assert not first.cached and again.cached and np.array_equal(first.data.images, again.data.images)
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["count"] == 18 and manifest["set"] == "noise" and "numpy" in manifest["versions"]
    others = [
        derive(parse("noise:std=1"), clean, tmp_path),
        derive(parse("noise"), clean, tmp_path, seed=1),
        derive(parse("noise"), clean.take(np.arange(17)), tmp_path),
        derive(parse("noise"), ArraySet(clean.images, clean.labels[::-1].copy()), tmp_path),
    ]
    assert len({found.folder for found in [first, *others]}) == 5
    assert np.array_equal(first.data.labels, clean.labels)


def test_cue_conflict_keeps_both_labels(clean, tmp_path):
    for _ in range(2):  # made, then read
        found = derive(parse("cue_conflict"), clean, tmp_path)
        assert np.array_equal(found.data.labels, clean.labels)
        assert found.texture_labels is not None and (found.texture_labels != clean.labels).all()


@pytest.mark.parametrize("damage", ["manifest", "pixels", "truncated", "shape", "no json"])
def test_a_cache_that_does_not_match_is_one_line(damage, clean, tmp_path):
    folder = derive(parse("scramble"), clean, tmp_path).folder
    manifest, images = folder / "manifest.json", folder / "images.npy"
    if damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"count": 18', '"count": 19'))
    elif damage == "no json":
        manifest.write_text("{")
    elif damage == "pixels":
        images.write_bytes(images.read_bytes()[:-1] + b"\x01")
    elif damage == "truncated":
        images.write_bytes(images.read_bytes()[:-100])
    else:
        np.save(images, np.zeros((18, 16, 16, 3), np.uint8))
    with pytest.raises(DataError) as error:
        derive(parse("scramble"), clean, tmp_path)
    assert f"delete {folder} and repeat the command" in str(error.value) and "\n" not in str(error.value)
    forget(folder)
    assert not derive(parse("scramble"), clean, tmp_path).cached


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_damaged_partners_are_one_line(damage, clean, tmp_path):
    folder = derive(parse("cue_conflict"), clean, tmp_path).folder
    if damage == "missing":
        (folder / "partners.npy").unlink()
    else:
        np.save(folder / "partners.npy", np.arange(18))
    with pytest.raises(DataError, match="repeat the command"):
        derive(parse("cue_conflict"), clean, tmp_path)


def test_sets_that_share_superpixels_are_made_in_one_pass(clean, tmp_path, monkeypatch):
    import skimage.segmentation

    whole, calls = skimage.segmentation.slic, []
    monkeypatch.setattr(skimage.segmentation, "slic", lambda *args, **how: calls.append(1) or whole(*args, **how))
    names = ["superpixel", "noise", "silhouette", "superpixel:segments=50"]
    wished = [parse(name) for name in names]
    assert [[title(one) for one in group] for group in grouped(wished)] == [
        [names[0], names[2]],
        [names[1]],
        [names[3]],
    ]
    together = derive_together(wished, clean, tmp_path / "together", processes=1)
    assert len(calls) == 2 * len(clean) and not any(found.cached for found in together)
    for one, found in zip(wished, together, strict=True):
        apart = derive(one, clean, tmp_path / "apart", processes=1)
        assert np.array_equal(apart.data.images, found.data.images) and apart.manifest == found.manifest
    assert all(found.cached for found in derive_together(wished, clean, tmp_path / "together"))


def test_processes_are_started_only_where_they_save_time(clean):
    small = ArraySet(np.zeros((10_000, 32, 32, 3), np.uint8), np.zeros(10_000, np.int64))
    large = ArraySet(np.broadcast_to(np.uint8(0), (10_000, 224, 224, 3)), small.labels)
    for name in ("noise", "scramble", "colour"):
        derived = parse(name)
        assert isinstance(derived, DerivedSet) and parallel.worthwhile((derived,), small) == 1
        assert parallel.worthwhile((derived,), large) == available_cores()
    slow = parse("superpixel")
    assert isinstance(slow, DerivedSet) and parallel.worthwhile((slow,), clean) == available_cores()


def die(task: object) -> np.ndarray:
    os._exit(9)


def test_a_killed_process_is_one_line(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 3 * 32 * 32 * 5)
    monkeypatch.setattr(parallel, "make_chunk", die)
    with pytest.raises(RunError, match="processes=1"):
        derive(parse("noise"), clean, tmp_path, processes=2)
    assert not list(tmp_path.rglob("manifest.json"))


# Files.


def test_export_as_folders_and_zip(clean, tmp_path):
    from PIL import Image

    found = derive(parse("cue_conflict"), clean, tmp_path)
    export(found, NAMES, tmp_path / "images")
    export(found, NAMES, tmp_path / "images.zip")
    written = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.*"))
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert sorted(archive.namelist()) == written and len(written) == 19 and "manifest.json" in written
    texture_of_4 = NAMES[found.texture_labels[4]]  # type: ignore[index]
    with Image.open(tmp_path / "images" / "two" / f"00004_{texture_of_4}.png") as image:
        assert np.array_equal(np.asarray(image), found.data.images[4])
    for place in ("images", "images.zip"):
        with pytest.raises(DataError, match="already exists"):
            export(found, NAMES, tmp_path / place)


@pytest.fixture
def published(tmp_path, clean) -> Path:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "fog.npy", np.concatenate([clean.images // (level + 1) for level in range(5)]))
    np.save(folder / "labels.npy", np.tile(clean.labels, 5).astype(np.uint8))
    return folder


def test_published_corruptions_are_read(published, clean, tmp_path):
    found = derive(make("cifar_c", {"files": str(published), "kind": "fog", "severity": "3"}), clean, tmp_path)
    assert np.array_equal(found.data.images, clean.images // 3) and np.array_equal(found.data.labels, clean.labels)
    assert found.manifest["recipe"] == "published CIFAR-C files"


def test_published_corruptions_that_do_not_fit(published, clean, tmp_path):
    fog = PublishedCorruption(files=str(published), kind="fog")
    with pytest.raises(DataError, match="other CIFAR"):
        fog.load(2)
    with pytest.raises(DataError, match="it has fog"):
        PublishedCorruption(files=str(published), kind="frog").load(3)
    with pytest.raises(DataError, match="Zenodo"):
        PublishedCorruption().load(3)
    small = ArraySet(clean.images[:, :16, :16], clean.labels)
    with pytest.raises(DataError, match=r"images of 32 px.*16"):
        derive(fog, small, tmp_path)
    np.save(published / "labels.npy", np.zeros(7, np.uint8))
    with pytest.raises(DataError, match="7 labels"):
        fog.load(3)
    (published / "labels.npy").write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read"):
        fog.load(3)


# The command line.


def test_titles_are_what_was_typed():
    for text in ("noise", "scramble:grid=4,offset=true", "colour:kind=hue,turn=0.25", "corruptions:severity=5"):
        assert title(parse(text)) == text
    assert file_stem(parse("scramble:grid=4,offset=true")) == "scramble-grid=4-offset=true"
    assert title(parse("scramble:grid=null")) == "scramble"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("noize", "Did you mean noise"),
        ("noise:sdt=1", "Did you mean std"),
        ("noise:std=hot", "expected a number"),
        ("noise:std=0", "more than 0"),
        ("noise:window=2", "at most 1"),
        ("noise:shared_pattern=1", "true or false"),
        ("noise:position=centre", "Did you mean center"),
        ("scramble:grid=4.5", "a whole number"),
        ("scramble:grid", "has no value"),
        ("corruptions:kind=fog", "Available: gaussian_noise"),
    ],
)
def test_bad_names_and_parameters(text, says):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scramble:grid=5", "does not divide 32x32"),
        ("scramble:grid=2,offset=true", "nothing to permute"),
        ("noise:window=0.01", "less than a pixel"),
    ],
)
def test_parameters_that_do_not_fit_the_size(text, says, clean, tmp_path):
    with pytest.raises(DataError, match=says):
        derive(parse(text), clean, tmp_path)


FAKE = ["dataset=fake", "dataset.fake_train=16", "dataset.fake_test=24", "dataset.fake_classes=3"]


def test_the_command_makes_finds_and_saves(kdrun, outputs, tmp_path):
    code, out, err = kdrun("testset", "scramble", "grid=4", *FAKE, f"save={tmp_path / 'set.zip'}")
    assert code == 0 and not err and "24 images of fake created" in out and "scramble:grid=4" in out
    (folder,) = (outputs / "caches" / "testsets").iterdir()
    from PIL import Image

    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size[0] >= 300 and len(sheet.convert("RGB").getcolors(1 << 24) or []) > 1000
    assert (tmp_path / "set.zip").is_file()
    code, out, err = kdrun("testset", "scramble:grid=4", "noise", *FAKE, "processes=1")
    assert code == 0 and "fake loaded" in out and "fake created" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "testset needs a name"),
        (("noize",), "Did you mean noise"),
        (("noise", "scramble", "std=1"), "applies to one set"),
        (("noise:std=1", "window=0.5"), "one place"),
        (("noise", "processes=0"), "processes=0: must be at least 1"),
        (("noise", "stdd=1"), "stdd: no such setting. Did you mean std?"),
        (("scramble", "grid=5"), "does not divide"),
        (("cifar_c",), "cifar_c.files is not set"),
    ],
)
def test_mistakes_on_the_command_line(kdrun, words, says):
    code, _, err = kdrun("testset", *words, *FAKE)
    assert code == 2 and says in err and err.count("\n") == 1


def test_list_names_every_set(kdrun):
    code, out, _ = kdrun("list", "testsets")
    assert code == 0 and all(name in out for name in SETS) and "Gatys" in out and "window=0.339" in out
