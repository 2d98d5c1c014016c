"""Derived test sets on disk: created in parallel once, then read from a cache that is verified by its manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.data.arrays import read_array, sha256_of_values
from kdrun.data.splits import ArraySet, Dataset
from kdrun.display import Track, untracked
from kdrun.errors import CheckpointError, DataError, RunError
from kdrun.evaluation.testsets.base import DerivedSet, NamedSet, partners
from kdrun.evaluation.testsets.corruptions import PublishedCorruption
from kdrun.evaluation.testsets.files import png_files, write_zip
from kdrun.evaluation.testsets.parallel import made_chunks
from kdrun.files import explain_os_error, read_json, write_atomically, write_json
from kdrun.runs.identity import digest_of
from kdrun.runs.plan import Plan, output_root

SCHEMA = 1


@dataclass(frozen=True)
class Derived:
    """Derived set: images uint8 [N, H, W, 3] and labels int64 [N], in the order of the test set.

    texture_labels: for a cue conflict, the class of the texture (labels are the shape's); else None. cached: True if
    nothing had to be created.
    """

    data: ArraySet
    texture_labels: np.ndarray | None
    manifest: dict[str, Any]
    folder: Path
    cached: bool


def derive(
    wished: NamedSet,
    test: ArraySet,
    caches: Path,
    *,
    seed: int = 0,
    track: Track = untracked,
    processes: int | None = None,
    device: str = "auto",
) -> Derived:
    """Return the derived set `wished` of `test`, from <caches>/testsets/<name>-<digest>/ if it was created before;
    published files are read in place.

    processes: for creating it; None: one per core. device: for recipes with a network; a GPU needs no processes. The
    result does not depend on processes; a network's result on a GPU is a different set from the CPU's, since the last
    bits differ. Raises DataError if the parameters do not fit the images, a file of the recipe is missing, or a cache
    does not match its manifest.
    """
    (found,) = derive_together([wished], test, caches, seed=seed, track=track, processes=processes, device=device)
    return found


def derive_together(
    wished: list[NamedSet],
    test: ArraySet,
    caches: Path,
    *,
    seed: int = 0,
    track: Track = untracked,
    processes: int | None = None,
    device: str = "auto",
) -> list[Derived]:
    """Run `derive` for each of the sets, with a shared computation done in one pass. The images are the same."""
    orders = [order_of(one, test, caches, seed, device) for one in wished if isinstance(one, DerivedSet)]
    missing = [order for order in orders if not (order.folder / "manifest.json").is_file()]
    by_set = {order.derived: order for order in missing}
    for group in grouped([order.derived for order in missing]):
        build([by_set[each] for each in group if isinstance(each, DerivedSet)], test, seed, track, processes)
    made = iter([read(order.folder, order.wanted, test.labels, order not in missing) for order in orders])
    return [read_published(one, test) if isinstance(one, PublishedCorruption) else next(made) for one in wished]


def grouped(wished: Sequence[NamedSet]) -> list[list[NamedSet]]:
    """Group the sets that share a computation, each set once, in the order of their first ones."""
    groups: dict[object, list[NamedSet]] = {}
    for one in dict.fromkeys(wished):
        shared = one.shares() if isinstance(one, DerivedSet) else None
        groups.setdefault(one if shared is None else shared, []).append(one)
    return list(groups.values())


@dataclass(frozen=True)
class Order:
    """Order of a set: its expected manifest, its location, and the device that creates it."""

    derived: DerivedSet
    wanted: dict[str, Any]
    folder: Path
    device: str


def order_of(derived: DerivedSet, test: ArraySet, caches: Path, seed: int, device: str) -> Order:
    """Return the order of a set. Raises DataError if the parameters do not fit the images or a file is missing."""
    height, width = test.images.shape[1:3]
    derived.check_size(height, width)
    wanted = {
        "schema": SCHEMA,
        **derived.identity(seed),
        "data": fingerprint(test),
        "count": len(test),
        "image_size": [height, width],
        "versions": derived.versions(),
    }
    place = "cpu"
    if derived.needs_network:
        place = resolved(device)
        wanted["device"] = place.partition(":")[0]
    return Order(derived, wanted, caches / "testsets" / f"{derived.name}-{digest_of(wanted)[:12]}", place)


def resolved(device: str) -> str:
    """Resolve a device to cpu or cuda:N. Raises ConfigError for a missing device."""
    from kdrun.training.precision import resolve_device

    return resolve_device(device)


def read_published(wished: PublishedCorruption, test: ArraySet) -> Derived:
    """Read the published files that replace `test`. Raises DataError if their images have another size."""
    data = wished.load(int(test.labels.max()) + 1)
    if data.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{wished.files}: images of {data.images.shape[1]} px, but dataset.image_size is {test.images.shape[1]}."
        )
    manifest = {"schema": SCHEMA, **wished.identity(0), "count": len(data), "image_size": list(data.images.shape[1:3])}
    return Derived(data, None, manifest, Path(str(wished.files)), True)


def fingerprint(test: ArraySet) -> str:
    """Return the SHA-256 of pixels and labels."""
    return hashlib.sha256(
        f"{sha256_of_values(test.images)} {sha256_of_values(test.labels.astype(np.int64))}".encode()
    ).hexdigest()


def build(orders: list[Order], test: ArraySet, seed: int, track: Track, processes: int | None) -> None:
    """Write each set's images.npy, for pairs partners.npy, and last manifest.json, whose presence marks the set as
    complete."""
    sets = tuple(order.derived for order in orders)
    others = partners(sets[0], test.labels, seed) if sets[0].pairs else None
    images = [np.empty(test.images.shape, dtype=np.uint8) for _ in sets]
    for start, made in made_chunks(sets, test, others, seed, track, processes, orders[0].device):
        for whole, part in zip(images, made, strict=True):
            whole[start : start + len(part)] = part
    for order, whole in zip(orders, images, strict=True):
        write_atomically(order.folder / "images.npy", partial(np.save, arr=whole))
        if others is not None:
            write_atomically(order.folder / "partners.npy", partial(np.save, arr=others))
        sums = {
            "sha256": sha256_of_values(whole),
            "partners_sha256": None if others is None else sha256_of_values(others),
        }
        write_json(order.folder / "manifest.json", {**order.wanted, **sums})


def read(folder: Path, wanted: dict[str, Any], labels: np.ndarray, cached: bool) -> Derived:
    """Read the set in `folder`. Raises DataError (one line) if it does not match its manifest, or is not `wanted`."""
    again = f"delete {folder} and repeat the command"
    try:
        manifest = read_json(folder / "manifest.json")
        images = read_array(folder / "images.npy", mmap_mode="c")
        paired = manifest.get("partners_sha256") is not None
        others = read_array(folder / "partners.npy") if paired else None
    except (CheckpointError, ValueError) as error:
        raise DataError(f"{folder} is damaged ({error}); {again}.") from error
    for name, value in wanted.items():
        if manifest.get(name) != value:
            raise DataError(f"{folder}/manifest.json says {name}={manifest.get(name)}, expected {value}; {again}.")
    if images.dtype != np.uint8 or images.shape != (len(labels), *wanted["image_size"], 3):
        raise DataError(
            f"{folder}/images.npy is {images.dtype} {list(images.shape)}, not what its manifest says; {again}."
        )
    if sha256_of_values(images) != manifest.get("sha256"):
        raise DataError(f"{folder}/images.npy is not the file that its manifest.json describes; {again}.")
    texture_labels = None
    if others is not None:
        if sha256_of_values(others) != manifest["partners_sha256"]:
            raise DataError(f"{folder}/partners.npy is not the file that its manifest.json describes; {again}.")
        texture_labels = np.asarray(labels)[others]
    return Derived(ArraySet(images, np.asarray(labels)), texture_labels, manifest, folder, cached)


def export(found: Derived, class_names: list[str], place: Path, track: Track = untracked) -> None:
    """Write PNG class folders and the manifest to a new folder, or to one archive if `place` ends in .zip.

    Raises DataError if `place` exists and is not empty, RunError for a full disk.
    """

    def content() -> Iterator[tuple[str, bytes]]:
        yield from png_files(found.data, class_names, found.texture_labels, track)
        yield "manifest.json", (json.dumps(found.manifest, indent=2) + "\n").encode()

    if place.suffix.lower() == ".zip":
        if place.exists():
            raise DataError(f"save={place}: already exists; delete it or choose another name.")
        write_atomically(place, lambda file: write_zip(file, content()))
        return
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"save={place}: already exists and is not empty; choose another folder.")
    scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        for name, data in content():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(data)
        if place.is_dir():
            place.rmdir()
        os.replace(scratch, place)
    except OSError as error:
        raise RunError(explain_os_error(error, place)) from error
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch)


def derived_tests(
    wished: list[NamedSet], plan: Plan, splits: Dataset, track: Track, seed: int = 0, processes: int | None = None
) -> list[Derived]:
    """Create the derived sets `wished` of the test split of `splits`, or load them from the cache; a shared
    computation is done in one pass. Raises DataError for a data set that streams its files."""
    if not isinstance(splits.test, ArraySet):
        raise DataError(
            f"testset={wished[0].name}: dataset={plan.config.dataset.name} streams its files; derived sets are made of "
            "images in memory (cifar10, cifar100, digits, fake)."
        )
    caches = output_root(plan.config) / "caches"
    return derive_together(
        wished, splits.test, caches, seed=seed, track=track, processes=processes, device=plan.config.device
    )
