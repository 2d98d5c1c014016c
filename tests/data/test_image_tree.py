"""Class folders: folders of other programs, links, names in any encoding, splits by any name, content."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from kdrun.config.options import DatasetOptions
from kdrun.data import content, folder
from kdrun.data.datasets import DataSource
from kdrun.data.image_tree import scan
from kdrun.data.inference import find_images
from kdrun.data.listing import LOOKED_AT, holds_images, not_read
from kdrun.errors import DataError


def picture(place: Path, colour: int = 0) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(place)
    return place


def classes(root: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 3) -> Path:
    for position, name in enumerate(names):
        for number in range(count):
            picture(root / name / f"{number}.bmp", 20 * position + number)
    return root


def paths(root: Path) -> set[str]:
    return set(scan(root).paths)


def options(root: Path, **changes) -> DatasetOptions:
    made = DatasetOptions(name="folder", root=str(root), image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    return replace(made, **changes)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX", "lost+found"])
def test_folders_of_other_programs_hold_no_images_at_any_depth(tmp_path, name):
    root = classes(tmp_path / "set")
    before = paths(root)
    for place in (name, f"cat/{name}", f"cat/{name}/deeper", f"dog/more/{name}"):
        picture(root / place / "copy.png")
    picture(root / "cat" / "._0.png")
    picture(root / "dog" / "more" / "real.png")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    assert paths(root) == before | {"dog/more/real.png"}
    assert scan(root).class_names == ["cat", "dog"]
    assert scan(root).notes == []
    assert {path.relative_to(root).as_posix() for path in find_images(root)} == before | {"dog/more/real.png"}


def test_folders_that_only_look_like_a_programs_are_named(tmp_path):
    """A class called __background__ vanished without a word."""
    root, why = classes(tmp_path / "set"), "folders that begin with @ or __ are passed over; rename what belongs to"
    for place in ("__background__/deeper", "@home", "cat/__worse__", "@eaDir", "cat/__MACOSX", ".hidden"):
        picture(root / place / "0.png")
    (root / "@lists").mkdir()
    (root / "@lists" / "names.txt").write_text("x")
    assert scan(root).notes == [
        f"images in set/@home/, set/__background__/, set/cat/__worse__/ are not read: {why} the data"
    ]
    for name in ("__2__", "__3__"):
        picture(root / name / "0.png")
    assert "set/__2__/, set/__3__/ and 2 more folders are not read" in scan(root).notes[0]
    shutil.rmtree(root / "dog")
    with pytest.raises(DataError, match=f"only one class, cat; .*; images in set/@home/, .*: {why} the data.$"):
        folder.locate(str(root))
    shutil.rmtree(root / "cat")
    with pytest.raises(DataError, match=f"no class folders; .*; images in set/@home/, .*: {why} the data.$"):
        folder.locate(str(root))


@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_images_beside_the_splits_are_named(tmp_path, name):
    """Of train/ and training/, one was chosen without a word."""
    root = tmp_path / "set"
    for part in ("train", "training", "test", "unlabeled", "__more__", ".git", "__MACOSX"):
        classes(root / part)
    for part in ("labels", "train/cat/@eaDir"):
        (root / part).mkdir()
        (root / part / "0.txt").write_text("x")
    (root / "Train 2").symlink_to(root / "train")
    note = "images in set/__more__/, set/training/, set/unlabeled/ are not read, only those in train/ and test/"
    assert DataSource(options(root, name=name)).load(tmp_path / "cache").notes == [note]


def test_a_long_list_is_not_searched_to_its_end(tmp_path):
    (tmp_path / "lists").mkdir()
    for number in range(LOOKED_AT):
        (tmp_path / "lists" / f"{number}.xml").touch()
    assert not_read(tmp_path, ["lists"]) == ""
    picture(tmp_path / "lists" / "0.png")
    assert holds_images(tmp_path / "lists")


def test_linked_classes_are_the_same_data_set(tmp_path):
    real, linked = classes(tmp_path / "real"), tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(real / name)
    (tmp_path / "root").symlink_to(linked)
    assert scan(linked).fingerprint() == scan(real).fingerprint() == scan(tmp_path / "root").fingerprint()
    assert scan(linked).notes == []


@pytest.mark.parametrize("target", [".", "..", "../..", "self", "0.bmp", "again"])
def test_links_end_and_count_nothing_twice(tmp_path, target):
    root = classes(tmp_path / "set" / "train").resolve()
    before = paths(root)
    (root / "cat" / "again").mkdir()
    link = root / "cat" / ("link.bmp" if target == "0.bmp" else "self")
    link.symlink_to(target)
    if target == "again":
        picture(root / "cat" / "again" / "new.bmp")
        before |= {"cat/again/new.bmp"}
    if target == "self":  # a link to itself leads nowhere
        assert paths(root) == before | {"cat/self"}
        return
    assert paths(root) == before
    assert scan(root).notes == ["1 link in train/ to files that are already there is not followed"]


def test_an_image_linked_into_two_classes_is_noted(tmp_path):
    root = classes(tmp_path / "set")
    (root / "dog" / "also.bmp").symlink_to(root / "cat" / "0.bmp")
    tree = scan(root)
    assert "dog/also.bmp" in tree.paths
    assert tree.notes == ["1 files in set/ are in two classes by links, the first dog/also.bmp in cat and dog"]


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path):
    root = classes(tmp_path / "set", count=5)
    (root / "cat" / "gone.png").symlink_to("/nonexistent/gone.png")
    assert "cat/gone.png" in paths(root)
    found = DataSource(options(root, on_error="skip")).load(tmp_path / "cache")
    assert found.unreadable == [("set/cat/gone.png", "a broken link")]
    assert len(found.train) + len(found.test) == 10
    (root / "eel").symlink_to("/nonexistent/eel")
    with pytest.raises(DataError, match="eel is a broken link"):
        scan(root)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    root = classes(tmp_path / "set")
    os.mkfifo(root / "cat" / "pipe.png")
    assert len(paths(root)) == 6


def test_names_in_any_encoding(tmp_path):
    roots = [classes(tmp_path / name, ("cafe", "dog")) for name in ("train", "test")]
    for root, name in zip(roots, (b"caf\xe9", "café".encode()), strict=True):  # Latin-1 of an old zip file
        os.rename(root / "cafe", os.path.join(os.fsencode(root), name))
    os.rename(roots[0] / "dog" / "0.bmp", os.path.join(os.fsencode(roots[0] / "dog"), b"\xfcber.bmp"))
    found = DataSource(options(tmp_path))
    assert len(found.fingerprint()) == 64
    assert found.load(tmp_path / "cache").class_names == ["café", "dog"]
    decomposed = tmp_path / "test" / "café".encode().decode()
    decomposed.rename(tmp_path / "test" / "cafe\u0301")  # as macOS spells it
    assert DataSource(options(tmp_path)).load(tmp_path / "cache").class_names == ["café", "dog"]
    classes(tmp_path / "test", ("café",))
    with pytest.raises(DataError, match="two folders named café"):
        DataSource(options(tmp_path))


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    root = classes(tmp_path / "set", ("esc\x1b]0;pwn\x07", "line\nbreak"))
    assert scan(root).class_names == ["esc\\x1b]0;pwn\\x07", "line\\x0abreak"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("train", "dev"),
        ("Training Set", "Validation-Set"),
        ("seg_train", "seg_test"),
        ("train", "eval"),
        ("train_images", "valid"),
    ],
)
def test_splits_are_found_by_their_usual_names(tmp_path, train, test):
    classes(tmp_path / "set" / train)
    classes(tmp_path / "set" / test, count=2)
    (tmp_path / "set" / "labels").mkdir()
    found = DataSource(options(tmp_path / "set")).load(tmp_path / "cache")
    assert (found.class_names, len(found.train), len(found.test)) == (["cat", "dog"], 6, 4)


@pytest.mark.parametrize("inner", ["dataset", "archive/dataset", "a/b/c"])
@pytest.mark.parametrize("flat", [True, False])
def test_a_data_set_some_levels_deeper_is_found_and_said(tmp_path, inner, flat):
    for part in [""] if flat else ["train", "test"]:
        classes(tmp_path / "zip" / inner / part, count=5)
    picture(tmp_path / "zip" / "__MACOSX" / "dataset" / "x.png")
    found = DataSource(options(tmp_path / "zip")).load(tmp_path / "cache")
    assert found.class_names == ["cat", "dog"]
    assert found.notes == [f"the data set is in {tmp_path / 'zip' / inner}"]


def test_splits_in_folders_of_their_own_name(tmp_path):
    """As Kaggle has it: training_set/training_set/cats."""
    for name in ("training_set", "test_set"):
        classes(tmp_path / "set" / name / name, ("cats", "dogs"))
    assert DataSource(options(tmp_path / "set")).load(tmp_path / "cache").class_names == ["cats", "dogs"]


def test_a_data_set_beside_other_folders(tmp_path):
    for part in ("train", "test"):
        classes(tmp_path / "set" / "photos" / part)
    picture(tmp_path / "set" / "docs" / "plot.png")
    assert folder.locate(str(tmp_path / "set")).notes == [f"the data set is in {tmp_path / 'set' / 'photos'}"]
    shutil.copytree(tmp_path / "set" / "photos", tmp_path / "set" / "more")
    with pytest.raises(DataError, match=r"has 2 data sets \(more, photos\); point dataset.root at one"):
        folder.locate(str(tmp_path / "set"))


def test_class_folders_beside_folders_without_images(tmp_path):
    """As CUB-200 and Food-101 have it: images/ and lists."""
    classes(tmp_path / "cub" / "images", count=5)
    for name in ("attributes", "parts/more"):
        (tmp_path / "cub" / name).mkdir(parents=True)
        (tmp_path / "cub" / name / "list.txt").write_text("x")
    source = folder.locate(str(tmp_path / "cub"))
    assert source.flat.class_names == ["cat", "dog"]
    assert source.notes == [f"the data set is in {tmp_path / 'cub' / 'images'}"]


def test_a_class_may_be_called_train_and_none_test(tmp_path):
    root = classes(tmp_path / "vehicles", ("bus", "car", "train"))
    assert folder.locate(str(root)).flat.class_names == ["bus", "car", "train"]
    picture(root / "test" / "0.png")
    with pytest.raises(DataError, match=r"test has no class folders: expected test/<class name>"):
        folder.locate(str(root))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"val": 2, "test": 2}, r"has val/ and test/ but no training images: expected a folder train/"),
        ({"train": 2}, r"has train/ but neither test/ nor val/"),
        ({"train": 2, "Test": 2, "testing": 2}, r"has Test/ and testing/, and each could be the test split"),
        ({"train": 1, "test": 1}, r"train has only one class, cat;"),
        ({".": 1}, r"has only one class, cat;"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, made, message):
    for part, count in made.items():
        classes(tmp_path / "set" / part, ("cat", "dog")[:count])
    with pytest.raises(DataError, match=message):
        folder.locate(str(tmp_path / "set"))


@pytest.mark.parametrize("other", ["Cat", "cat "])
def test_names_that_look_alike_are_both_shown(tmp_path, other):
    """The class that was said to be missing stood there for all to see."""
    classes(tmp_path / "set" / "train", ("cat", "dog"))
    classes(tmp_path / "set" / "val", (other, "dog"))
    with pytest.raises(DataError, match=f"has the class '{other}' and .*train the class 'cat': if they are the same"):
        folder.locate(str(tmp_path / "set"))


def test_images_outside_of_class_folders(tmp_path):
    for part in ("train", "test"):
        picture(tmp_path / "loose" / part / "0.png")
    with pytest.raises(DataError, match="has no class folders: expected"):
        folder.locate(str(tmp_path / "loose"))
    picture(tmp_path / "bare" / "0.png")
    with pytest.raises(DataError, match="no class folders, only 1 image outside of any"):
        folder.locate(str(tmp_path / "bare"))
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match="is a file: unpack it"):
        folder.locate(str(tmp_path / "x.zip"))
    assert scan(classes(tmp_path / "both")).notes == []
    picture(tmp_path / "both" / "0.png")
    assert scan(tmp_path / "both").notes == ["1 image in both/ outside of any class folder: not read"]


@pytest.mark.parametrize("empty", [False, True])
def test_a_test_set_may_lack_classes_where_that_is_wanted(tmp_path, empty):
    classes(tmp_path / "set" / "train", ("cat", "dog", "eel"))
    test = classes(tmp_path / "set" / "val", ("cat", "eel"))
    if empty:
        (test / "dog").mkdir()
    with pytest.raises(
        DataError, match="contains no images" if empty else "lacks the class dog .*allow_missing_classes"
    ):
        DataSource(options(tmp_path / "set"))
    found = DataSource(options(tmp_path / "set", allow_missing_classes=True)).load(tmp_path / "cache")
    assert found.class_names == ["cat", "dog", "eel"]
    assert found.test.labels.tolist() == [0, 0, 0, 2, 2, 2]
    assert found.notes == ["val/ lacks the class dog of train/"]
    classes(tmp_path / "set" / "val", ("fox",))
    with pytest.raises(DataError, match=r"val has the class fox, which .*train lacks"):
        DataSource(options(tmp_path / "set", allow_missing_classes=True))


def test_a_class_of_one_image_is_named(tmp_path):
    root = classes(tmp_path / "set", count=4)
    picture(root / "eel" / "0.png")
    with pytest.raises(DataError, match="class eel has only 1 image"):
        DataSource(options(root)).load(tmp_path / "cache")


def test_suffixes_that_are_read_and_those_that_are_not(tmp_path):
    root = classes(tmp_path / "set")
    whole = (root / "cat" / "0.bmp").read_bytes()
    for name in ("a.JFIF", "b.jpe", "c.avif", "d.jp2", "e.TIFF"):
        (root / "cat" / name).write_bytes(whole)
    for name in ("a.heic", "b.HEIC", "c.raw", "plain", "notes.txt", "labels.csv", ".DS_Store"):
        (root / "dog" / name).write_bytes(b"x")
    tree = scan(root)
    assert len(tree.paths) == 11
    assert tree.notes == ["2 files of .heic, 1 file of .raw, 1 file without a suffix in set/ are not read"]
    (root / "fox").mkdir()
    (root / "fox" / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"fox contains no images .*; it contains 1 file of .heic"):
        scan(root)


def test_folders_in_a_class_are_said_where_they_could_be_classes(tmp_path):
    for year in ("2019", "2020"):
        classes(tmp_path / "set" / "cat", (year,))
    classes(tmp_path / "set", ("dog",))
    assert scan(tmp_path / "set").notes == [
        "the class cat has its images in several folders (2019, 2020), which count as one class"
    ]
    for name in ("cat", "dog"):
        classes(tmp_path / "inner" / name, ("train", "test"))
    (note,) = scan(tmp_path / "inner").notes
    assert note.endswith("all have the same: if these are the classes, or splits, put them above the others")


def swap(one: Path, other: Path) -> None:
    """Swap two files and leave all times and sizes as they are, as a tool that renames does."""
    spare = one.with_suffix(".spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


@pytest.mark.parametrize("settled", [0.0, 2.0])
def test_content_of_the_same_size_counts(tmp_path, monkeypatch, settled):
    monkeypatch.setattr(content, "SETTLED", settled)
    root = classes(tmp_path / "set")
    for path in root.rglob("*.bmp"):
        os.utime(path, (1e9, 1e9))
    seen = [scan(root).fingerprint()]
    swap(root / "cat" / "0.bmp", root / "dog" / "0.bmp")
    seen.append(scan(root).fingerprint())
    one = root / "cat" / "1.bmp"
    one.write_bytes((root / "dog" / "1.bmp").read_bytes())
    os.utime(one, (1e9, 1e9))
    seen.append(scan(root).fingerprint())
    assert len(set(seen)) == 3
    shutil.rmtree(os.environ["KDRUN_CACHE"], ignore_errors=True)
    assert scan(root).fingerprint() == seen[2]


def test_a_file_is_read_again_only_where_it_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "SETTLED", -10.0)
    root, read = classes(tmp_path / "set"), []
    usual = content._hash_of
    monkeypatch.setattr(content, "_hash_of", lambda root, file: read.append(file[0]) or usual(root, file))
    first = scan(root).fingerprint()
    assert len(read) == 6
    assert scan(root).fingerprint() == first
    assert len(read) == 6
    picture(root / "cat" / "1.bmp", 200)
    assert scan(root).fingerprint() != first
    assert read[6:] == ["cat/1.bmp"]
    shutil.copytree(root, tmp_path / "copy")
    assert scan(tmp_path / "copy").fingerprint() == scan(root).fingerprint()


def test_no_cache_folder_is_needed(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDRUN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(content, "SETTLED", -10.0)
    root = classes(tmp_path / "set")
    assert scan(root).fingerprint() == scan(root).fingerprint()


def test_a_large_tree_is_known_by_names_and_sizes(tmp_path, monkeypatch):
    root = classes(tmp_path / "set")
    monkeypatch.setattr(content, "WHOLE", 100)
    monkeypatch.setattr(content, "_hash_of", lambda *_: pytest.fail("it was read"))
    first = scan(root).fingerprint()
    picture(root / "cat" / "0.bmp", 99)
    assert scan(root).fingerprint() == first
    picture(root / "cat" / "9.bmp")
    assert scan(root).fingerprint() != first
