"""A tree that was listed once: recalled while no folder changes, and never a change of the images overlooked."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdrun.config.options import DatasetOptions
from kdrun.data import content, folder, image_tree, tree_index
from kdrun.data.datasets import DataSource, located_once
from kdrun.data.image_tree import Tree, scan


@pytest.fixture
def root(image_folder, monkeypatch, tmp_path) -> Path:
    """Class folders, one of them with a folder inside, that are worth remembering at once."""
    monkeypatch.setenv("KDRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tree_index, "WORTH", 1)
    monkeypatch.setattr(tree_index, "SETTLED", -60.0)
    made = image_folder("set")
    (made / "class_1" / "deeper").mkdir()
    (made / "class_1" / "0000.png").rename(made / "class_1" / "deeper" / "0000.png")
    (made / "class_1" / "notes.heic").write_text("no image")
    return made


@pytest.fixture
def listings(monkeypatch) -> list[str]:
    """The class folders that were listed."""
    listed: list[str] = []
    usual = image_tree.list_images
    monkeypatch.setattr(image_tree, "list_images", lambda root, inside: listed.append(inside) or usual(root, inside))
    return listed


def test_nothing_is_listed_twice(root, listings):
    first = scan(root)
    assert listings
    listings.clear()
    again = scan(root)
    assert not listings
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in vars(replace(first)))
    assert again.notes == ["1 file of .heic in set/ is not read"]
    assert first.fingerprint() == again.fingerprint()


CHANGES = {
    "added": lambda root: shutil.copy(root / "class_0" / "0000.png", root / "class_0" / "more.png"),
    "removed": lambda root: (root / "class_0" / "0000.png").unlink(),
    "renamed, further down": lambda root: (root / "class_1" / "deeper" / "0000.png").rename(
        root / "class_1" / "deeper" / "z.png"
    ),
    "moved": lambda root: (root / "class_0" / "0000.png").rename(root / "class_1" / "moved.png"),
    "a class": lambda root: shutil.copytree(root / "class_0", root / "class_9"),
    "a class gone": lambda root: shutil.rmtree(root / "class_1"),
    "replaced": lambda root: os.replace(
        shutil.copy(root / "class_1" / "0001.png", root / "x"), root / "class_0/0001.png"
    ),
    "written anew": lambda root: (root / "class_0" / "0001.png").write_bytes(
        (root / "class_1" / "0001.png").read_bytes()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change, root, monkeypatch):
    before = scan(root).fingerprint()
    CHANGES[change](root)
    after = scan(root)
    assert after.fingerprint() != before
    monkeypatch.setenv("KDRUN_CACHE", str(root.parent / "another"))
    fresh = scan(root)
    assert after.paths == fresh.paths
    assert after.fingerprint() == fresh.fingerprint()


def test_of_a_large_tree_only_folders_are_asked(root, listings, monkeypatch):
    """It is known by names and sizes; millions of files over a network would take minutes."""
    monkeypatch.setattr(content, "WHOLE", 0)
    monkeypatch.setattr(tree_index, "WHOLE", 0)
    first = scan(root).fingerprint()
    listings.clear()
    monkeypatch.setattr(tree_index, "image_file", None)
    assert scan(root).fingerprint() == first
    assert not listings
    CHANGES["removed"](root)
    assert scan(root).fingerprint() != first
    assert listings


@pytest.mark.parametrize("how", ["damaged", "empty", "of another version", "gone"])
def test_an_index_that_cannot_be_read(how, root, listings, monkeypatch):
    first = scan(root)
    place = content.index_place(root, ".npz")
    whole = bytearray(place.read_bytes())
    whole[len(whole) // 2] ^= 255
    if how == "gone":
        place.unlink()
    elif how == "of another version":
        monkeypatch.setattr(tree_index, "VERSION", 0)
    else:
        place.write_bytes(whole if how == "damaged" else b"")
    listings.clear()
    assert scan(root).paths == first.paths
    assert listings


def test_what_changed_a_moment_ago_is_not_remembered(root, listings, monkeypatch):
    monkeypatch.setattr(tree_index, "SETTLED", 60.0)
    scan(root)
    assert not content.index_place(root, ".npz").exists()


def test_links_and_empty_classes_are_not_remembered(root):
    (root / "class_0" / "linked").symlink_to(root.parent)
    scan(root)
    assert not content.index_place(root, ".npz").exists()
    (root / "class_0" / "linked").unlink()
    (root / "class_5").mkdir()
    assert len(scan(root, may_be_empty=True).class_names) == 3
    assert not content.index_place(root, ".npz").exists()


def test_a_sweep_lists_a_tree_once(root, monkeypatch):
    """45 runs share what was found, and what goes to another process of 100,000 files is small."""
    calls: list[Path] = []
    usual = folder.scan
    monkeypatch.setattr(folder, "scan", lambda *words, **settings: calls.append(words[0]) or usual(*words, **settings))
    options = DatasetOptions(name="folder", root=str(root), image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    with located_once():
        sources = [DataSource(options) for _ in range(45)]
    assert len(calls) == 1
    assert len({id(source.located) for source in sources}) == 1
    paths = [f"n{label:08}/n{label:08}_{number * 37 % 30011}.JPEG" for label in range(1000) for number in range(100)]
    labels = np.repeat(np.arange(1000), 100)
    tree = Tree(root, paths, [1] * len(paths), [2] * len(paths), labels, [str(label) for label in range(1000)])
    vars(tree)["content"] = "known"
    sent = pickle.dumps(tree)
    assert len(sent) < 2**20
    received = pickle.loads(sent)
    assert received.paths == paths
    assert np.array_equal(received.labels, labels)
    assert received.fingerprint() == "known"
