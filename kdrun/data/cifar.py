"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): torchvision's archive, or class-folder trees of any lossless format."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.decode import decode_tree
from kdrun.data.folder import split_folders, unread
from kdrun.data.image_tree import Tree, aligned, check_classes, scan
from kdrun.data.splits import ArraySet, Dataset
from kdrun.display import Track, untracked
from kdrun.errors import DataError, one_line

SIDE = 32


@dataclass(frozen=True)
class Archive:
    """Published facts of one archive: names and MD5 sums as on the data set's page and in torchvision."""

    filename: str
    md5: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    label_key: bytes
    names_key: bytes

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.filename}"


ARCHIVES = {
    "cifar10": Archive(
        filename="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        label_key=b"labels",
        names_key=b"label_names",
    ),
    "cifar100": Archive(
        filename="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        label_key=b"fine_labels",
        names_key=b"fine_label_names",
    ),
}


@dataclass(frozen=True)
class Source:
    """Location of a CIFAR set: class folders, or an archive (path None: still to be downloaded)."""

    name: str
    trees: tuple[Tree, Tree] | None = None
    archive: Path | None = None

    def fingerprint(self) -> str:
        """Return the identity of the content, known before anything is decoded or downloaded."""
        if self.trees:
            return hashlib.sha256("".join(tree.fingerprint() for tree in self.trees).encode()).hexdigest()
        return f"archive {ARCHIVES[self.name].md5}"


def locate(name: str, root: str | None, may_lack: bool = False) -> Source:
    """Locate `name` under dataset.root (or $KDRUN_DATA): train/ and test/ class folders, the archive, or its
    unpacked folder. Without a root the archive is downloaded when the data are loaded. may_lack: as in `aligned`."""
    given = root or os.environ.get("KDRUN_DATA")
    if given is None:
        return Source(name)
    archive = ARCHIVES[name]
    base = Path(os.path.expanduser(given))
    for place in (base, base / name):
        splits = split_folders(place) if place.is_dir() else {}
        if "train" in splits and "test" in splits:
            splits.pop("val", None)
            train = scan(splits["train"])
            check_classes(train)
            train = replace(train, notes=[*unread(place, splits), *train.notes])
            return Source(name, trees=(train, aligned(train, scan(splits["test"], may_lack), may_lack)))
        if place.is_file() and place.name == archive.filename:
            return Source(name, archive=place)
        if (place / archive.filename).is_file():
            return Source(name, archive=place / archive.filename)
        if place.name == archive.folder and place.is_dir():
            return Source(name, archive=place)
        if (place / archive.folder).is_dir():
            return Source(name, archive=place / archive.folder)
    if root is None:
        return Source(name)
    missing = "" if base.exists() else " (no such path)"
    raise DataError(
        f"dataset.root={root}{missing} contains no {name}: expected train/ and test/ class folders, "
        f"{archive.filename} or {archive.folder}/. Leave out dataset.root to download it, "
        f"or download {archive.url} yourself."
    )


def load(source: Source, image_size: int, on_error: str, cache: Path, track: Track = untracked) -> Dataset:
    """Load both splits; images [N, image_size, image_size, 3] uint8 from the memory-mapped cache."""
    if source.trees:
        train, unreadable = decode_tree(source.trees[0], image_size, on_error, cache, track)
        test, more = decode_tree(source.trees[1], image_size, on_error, cache, track)
        notes = [note for tree in source.trees for note in tree.notes]
        return Dataset(train, test, None, source.trees[0].class_names, image_size, notes, unreadable + more)
    if image_size != SIDE:
        raise DataError(
            f"dataset.image_size={image_size}: the {source.name} archive is 32 px; set input_size on a model."
        )
    archive = ARCHIVES[source.name]
    members = _members(source, cache)
    train = _arrays(archive, archive.train, members)
    test = _arrays(archive, archive.test, members)
    names = _checked(archive.meta, members)[0][archive.names_key]
    return Dataset(train, test, None, [name.decode() for name in names], image_size)


def as_files(trees: tuple[Tree, Tree], image_size: int) -> Dataset:
    """Return both splits as files, undecoded."""
    train, test = trees
    return Dataset(train.files(), test.files(), None, train.class_names, image_size, [*train.notes, *test.notes])


def _members(source: Source, cache: Path) -> Callable[[str], bytes]:
    """Return a reader of the archive's files by name, from the unpacked folder or directly from the tar file."""
    archive = ARCHIVES[source.name]
    place = source.archive or _download(archive, cache)
    if place.is_dir():

        def read_file(name: str) -> bytes:
            try:
                return (place / name).read_bytes()
            except OSError as error:
                raise DataError(f"{place / name}: {error.strerror}; unpack {archive.filename} again.") from error

        return read_file
    with place.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        raise DataError(
            f"{place} is damaged or incomplete ({place.stat().st_size:,} bytes, md5 {found}, expected {archive.md5}); "
            "delete it and repeat the command, or download it again."
        )
    try:
        with tarfile.open(place) as tar:
            content = {}
            for member in tar:
                if member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise DataError(f"{place} contains the entry {member.name!r}, which points outside the folder.")
                file = tar.extractfile(member)
                if file is not None:
                    content[Path(member.name).name] = file.read()
    except tarfile.TarError as error:
        raise DataError(f"{place} cannot be read ({one_line(error)}); delete it and repeat the command.") from error
    return lambda name: content.get(name, b"")


def _download(archive: Archive, cache: Path) -> Path:
    """Download and verify the archive, or explain the manual way."""
    place = cache / "downloads" / archive.filename
    if not place.is_file():
        from torchvision.datasets.utils import download_url

        try:
            download_url(archive.url, str(place.parent), archive.filename, archive.md5)
        except Exception as error:  # urllib raises several types, torchvision RuntimeError for a wrong checksum
            place.unlink(missing_ok=True)
            raise DataError(
                f"{archive.filename} could not be downloaded ({one_line(error)}). Download {archive.url} on a "
                "machine with a network connection and set dataset.root to its folder; class folders work too."
            ) from error
    return place


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that allows only what rebuilds an array, even though the archive's checksum is verified."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")


def _checked(files: dict[str, str], members: Callable[[str], bytes]) -> list[dict[bytes, Any]]:
    """Verify each file's MD5 and unpickle it."""
    contents = []
    for name, md5 in files.items():
        data = members(name)
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(f"{name} in the archive has md5 {found}, expected {md5}; download the archive again.")
        contents.append(_ArrayUnpickler(io.BytesIO(data), encoding="bytes").load())
    return contents


def _arrays(archive: Archive, files: dict[str, str], members: Callable[[str], bytes]) -> ArraySet:
    batches = _checked(files, members)
    flat = np.concatenate([np.asarray(batch[b"data"]) for batch in batches])
    labels = np.concatenate([np.asarray(batch[archive.label_key], dtype=np.int64) for batch in batches])
    return ArraySet(np.ascontiguousarray(flat.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels)
