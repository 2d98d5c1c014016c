"""Every kind of file that kdrun reads, damaged in every way that happens to files: what comes out is right, or one line
that names the file; never a traceback, never a wait, never other numbers without a word."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kdrun.config.compose import load
from kdrun.config.options import RunConfig
from kdrun.data import cifar, content, decode, digits
from kdrun.data.image_tree import scan
from kdrun.data.readable import readable_part
from kdrun.data.splits import ArraySet
from kdrun.errors import CheckpointError, DataError, KdrunError
from kdrun.evaluation.predictions import Answers, read_answers, write_answers
from kdrun.evaluation.stored import check_stored
from kdrun.evaluation.testsets.cache import derive
from kdrun.evaluation.testsets.registry import parse
from kdrun.files import read_json
from kdrun.models.weight_files import read_content
from kdrun.models.zoo import create_model
from kdrun.reporting.compare import read_side
from kdrun.runs.directory import RunDirectory, rebuild_results
from kdrun.runs.ledger import read_ledger
from kdrun.runs.plan import make_plan
from kdrun.runs.recorded import MAY_DIFFER, changed_since, flat, read_run
from kdrun.runs.trust import signed_code
from kdrun.training.build import load_checkpoint, load_data
from kdrun.training.checkpoint import load_state
from kdrun.training.teacher_store import load_stored
from tests.integration.conftest import WORDS

SECONDS = 60  # that reading one damaged file may take, on a machine that has much else to do


class Hangs(BaseException):
    """Passes by every `except Exception`."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Kind:
    """One kind of file: which, what reads it, and whether damage that leaves it readable can be told at all. A file
    without a checksum of kdrun's can only be refused or read as what it then is."""

    file: Path
    read: Callable[[], Any]
    told: bool = True


def flipped(whole: bytes, draw: random.Random) -> bytes:
    data = bytearray(whole)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def damages(whole: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """(how, content): the same at every run."""
    draw = random.Random(seed)
    for number in range(6):
        yield f"bit {number}", flipped(whole, draw)
    for share in (0.0, 0.3, 0.9):
        yield f"cut at {share}", whole[: int(share * len(whole))]
    yield "cut by a byte", whole[:-1]
    yield "longer", whole + draw.randbytes(20)
    yield "zeros", bytes(len(whole))
    yield "noise", draw.randbytes(300)
    yield "text", b"what: is this\nno one, knows, or, cares\n"
    yield "a web page", b"<!DOCTYPE html><html><body>404</body></html>"
    middle = len(whole) // 2
    yield "a hole", whole[:middle] + bytes(min(64, len(whole) - middle)) + whole[middle + 64 :]
    yield "twice", whole + whole


def other_types(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """A JSON file of other types: itself, and each of its values."""
    for text in ("{}", "[]", "null", "3", '"text"', "[" * 5000, '{"a": ' * 5000, "{NaN}", '{"seed": 1e999}'):
        yield f"json {text[:10]}", text.encode()
    told = json.loads(whole)
    told.pop("checksum", None)  # as somebody else would write it
    for number, key in enumerate(list(told)[:12]):
        for value in (None, [[1]], {"a": None}, "text", -1)[number % 2 :: 2]:
            yield f"{key} is {value}", json.dumps({**told, key: value}).encode()
        yield f"no {key}", json.dumps({name: value for name, value in told.items() if name != key}).encode()


def equal(one: Any, other: Any) -> bool:
    """Of nested values that hold tensors and arrays."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def attack(kind: Kind, home: Path, seed: int) -> tuple[int, list[str]]:
    """(how many damages were tried, what went wrong with which)."""
    whole, right, wrong, tried = kind.file.read_bytes(), kind.read(), [], 0
    ways = [*damages(whole, seed)]
    if kind.file.suffix == ".json":
        ways += other_types(whole)
    for how, content_of_it in ways:
        tried += 1
        kind.file.write_bytes(content_of_it)
        try:
            with at_most(SECONDS):
                found = kind.read()
            if kind.told and how.startswith(("bit", "cut", "hole")) and not equal(found, right):
                wrong.append(f"{kind.file.name}, {how}: other content without a word")
        except KdrunError as error:
            if "\n" in str(error) or len(str(error)) > 600:
                wrong.append(f"{kind.file.name}, {how}: {error}")
        except Hangs:
            wrong.append(f"{kind.file.name}, {how}: hangs")
        except Exception as error:
            wrong.append(f"{kind.file.name}, {how}: {type(error).__name__}: {str(error)[:200]}")
        kind.file.parent.mkdir(parents=True, exist_ok=True)
        kind.file.write_bytes(whole)
    return tried, wrong


@pytest.fixture
def copy(home, tmp_path, monkeypatch) -> Path:
    """Its output folder, to be damaged."""
    shutil.copytree(home, tmp_path / "outputs", ignore=shutil.ignore_patterns("curves.png"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    return tmp_path / "outputs"


def run_of(outputs: Path, seed: int = 0) -> RunDirectory:
    return RunDirectory(next(outputs.glob(f"runs/*/*/*/s{seed}-*")))


def metrics(run: RunDirectory) -> Any:
    """The rows of a finished run, or the word of `kdrun doctor`."""
    if problem := changed_since(run.metrics_path):
        raise KdrunError(problem)
    return run.read_metrics()


def weights_of(config: RunConfig) -> Any:
    model = create_model("resnet8", num_classes=4, image_size=16)
    load_checkpoint(config.student, model)
    return model.state_dict()


def teacher_of(run: RunDirectory) -> Any:
    model = create_model("resnet8", num_classes=4, image_size=16)
    load_stored(run, model, "resnet8")
    return model.state_dict()


def kinds_of_runs(outputs: Path) -> dict[str, Kind]:
    run = run_of(outputs)
    stored = RunDirectory(next(outputs.glob("teachers/*/*/*")), role="teacher")
    plan = make_plan(load([*WORDS, f"output_root={outputs}"]), [])
    stats = next((outputs / "caches" / "data").glob("stats-*.json"))
    right, config = read_side(run.path), load([*WORDS, f"student.checkpoint={run.weights_path}"])
    answers = run.path / "evals" / "answers.npz"
    write_answers(answers, Answers(np.zeros((4, 2)), np.zeros(4, np.int64), np.zeros(4, np.int64)), {"a": 1})
    known = read_answers(answers, {"a": 1})
    assert known is not None
    results = outputs / "results.csv"

    def side() -> Any:
        found = read_side(run.path)
        return right.figures if "skipped" in found.state else found.figures

    def settings() -> Any:
        found = flat(asdict(read_run(run.path)[0]))
        return {key: value for key, value in found.items() if key not in MAY_DIFFER and not key.startswith("pair")}

    def answered() -> Any:
        found = read_answers(answers, {"a": 1}) or known  # measured again
        return [found.log_probabilities, found.predicted, found.labels]

    return {
        "config.yaml": Kind(run.path / "config.yaml", settings),
        "result.json": Kind(run.result_path, run.result),
        "checksums.json": Kind(run.path / "checksums.json", lambda: (run.result(), run.damage(thorough=True))[0]),
        "last.pt": Kind(run.state_path, lambda: load_state(run.state_path)),
        "student.safetensors": Kind(run.weights_path, lambda: weights_of(config)),
        "teacher.safetensors": Kind(stored.weights_path, lambda: teacher_of(stored)),
        "sha256": Kind(stored.sha256_path, lambda: teacher_of(stored)),
        "metrics.csv": Kind(run.metrics_path, lambda: metrics(run)),
        "provenance.json": Kind(run.path / "provenance.json", lambda: read_json(run.path / "provenance.json")),
        "signature.json": Kind(run.path / "signature.json", lambda: signed_code(run.path) or {}),
        "failed.txt": Kind(failed(run), run.failure, told=False),
        "evals/test.json": Kind(run.path / "evals" / "test.json", side),
        "answers": Kind(answers, answered),
        "cells.json": Kind(outputs / "sweeps" / "mine" / "cells.json", lambda: read_ledger(outputs, "mine")),
        "results.csv": Kind(results, lambda: rebuild_results(outputs).read_bytes()),
        "stats.json": Kind(stats, lambda: load_data(plan).stats),
    }


def failed(run: RunDirectory) -> Path:
    run.fail("the reason")
    return run.failed_path


def kinds_of_data(place: Path, image_folder: Callable[..., Path], monkeypatch) -> dict[str, Kind]:
    root = image_folder("train", classes=2, count=3, size=(16, 16))
    tree = scan(root)
    clean = ArraySet(np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8), np.arange(6) % 3)
    decode.decode_tree(tree, 16, "stop", place)
    (meta,) = place.glob("*/meta.json")
    readable_part(tree, place)
    (unreadable,) = place.glob("unreadable-*.json")
    digits.load(8, place)
    derived = derive(parse("cue_conflict"), clean, place).folder

    def decoded() -> Any:
        found, _ = decode.decode_tree(tree, 16, "stop", place)
        damaged = [line for line in check_stored(place.parent)[1] if meta.parent.name in line]
        if damaged:  # of mapped images only `kdrun doctor` says so
            raise KdrunError(damaged[0])
        return [np.asarray(found.images), found.labels]

    def derived_set() -> Any:
        found = derive(parse("cue_conflict"), clean, place)
        return [np.asarray(found.data.images), found.texture_labels]

    def of_digits() -> Any:
        found = digits.load(8, place)
        return [found.images, found.labels]

    monkeypatch.setattr(content, "SETTLED", -1.0)
    files = [(path, size, mark) for path, size, mark in zip(tree.paths, tree.sizes, tree.marks, strict=True)]
    content.by_content(root, files)
    index = next((content.cache_home() / "trees").glob("*.index"))

    described = index.with_suffix(".json").read_bytes()

    def fingerprint() -> str:
        """Of the tree after one file was touched: the hashes of the others come out of the index."""
        index.with_suffix(".json").write_bytes(described)
        changed = [(path, size, mark + (not number)) for number, (path, size, mark) in enumerate(files)]
        return content.by_content(root, changed)

    archive = place / "cifar-10-python.tar.gz"
    archive.write_bytes(random.Random(0).randbytes(2000))

    def cifar_archive() -> Any:
        try:
            return cifar.load(cifar.locate("cifar10", str(place)), 32, "stop", place)
        except DataError as error:
            return "" if "cifar-10-python" in str(error) else str(error)

    picture = root / tree.paths[0]
    return {
        "meta.json": Kind(meta, decoded),
        "images.npy": Kind(meta.with_name("images.npy"), decoded),
        "labels.npy": Kind(meta.with_name("labels.npy"), decoded),
        "unreadable.json": Kind(unreadable, lambda: readable_part(tree, place)[1]),
        "digits.npz": Kind(place / "digits-8.npz", of_digits),
        "manifest.json": Kind(derived / "manifest.json", derived_set),
        "a derived set": Kind(derived / "images.npy", derived_set),
        "partners.npy": Kind(derived / "partners.npy", derived_set),
        "the index of a tree": Kind(index, fingerprint),
        "a tree's digest": Kind(index.with_suffix(".json"), lambda: content.by_content(root, files)),
        "an image": Kind(picture, lambda: decode.decode_chunk(root, 16, [tree.paths[0]])[0].shape, told=False),
        "an archive of CIFAR": Kind(archive, cifar_archive),
    }


def kinds_of_weights(place: Path) -> dict[str, Kind]:
    """Files that users name: those without a checksum are refused, or read as what they then are."""
    weights = create_model("resnet8", num_classes=4, image_size=16).state_dict()
    torch.save(weights, place / "new.pt")
    torch.save(weights, place / "old.pt", _use_new_zipfile_serialization=False)
    save_file({key: value.contiguous() for key, value in weights.items()}, place / "plain.safetensors")
    np.savez(place / "arrays.npz", **{key: value.numpy() for key, value in weights.items()})
    Image.new("RGB", (8, 8)).save(place / "picture.png")

    def read(name: str) -> Callable[[], Any]:
        def refused_or_read() -> Any:
            refused = name.endswith((".npz", ".png"))
            with pytest.raises(CheckpointError) if refused else nullcontext():
                return read_content(place / name)

        return refused_or_read

    return {
        "torch.save": Kind(place / "new.pt", read("new.pt")),
        "torch.save of old": Kind(place / "old.pt", read("old.pt"), told=False),
        "safetensors": Kind(place / "plain.safetensors", read("plain.safetensors"), told=False),
        "npz": Kind(place / "arrays.npz", read("arrays.npz"), told=False),
        "a picture": Kind(place / "picture.png", read("picture.png"), told=False),
    }


def kinds_of_settings(place: Path) -> dict[str, Kind]:
    method, sweep = place / "conf" / "method" / "mine.yaml", place / "conf" / "sweep" / "ours.yaml"
    for file in (method, sweep):
        file.parent.mkdir(parents=True)
    method.write_text(
        "_target_: kdrun.methods.at.AT\ntemperature: 4.0\nce_weight: 0.1\nkd_weight: 0.9\nat_weight: 1000.0\n"
    )
    sweep.write_text("title: ours\nrows:\n  kd: [method=kd]\ncolumns:\n  one: [dataset=digits]\nseeds: [0]\n")
    conf = str(place / "conf")

    def named() -> Any:
        from kdrun.sweeps.definition import named_sweep

        return len(named_sweep("ours", [], None, conf).specs)

    return {
        "a method's YAML": Kind(method, lambda: load(["method=mine"], conf).method, told=False),
        "a sweep's YAML": Kind(sweep, named, told=False),
    }


def check(kinds: dict[str, Kind], home: Path, seed: int) -> int:
    tried, wrong = 0, []
    for number, kind in enumerate(kinds.values()):
        count, found = attack(kind, home, 100 * seed + number)
        tried, wrong = tried + count, wrong + found
    assert not wrong, f"{len(wrong)} of {tried}:\n" + "\n".join(wrong[:40])
    return tried


def test_damaged_files_of_runs(copy):
    assert check(kinds_of_runs(copy), copy, 1) >= 250


def test_damaged_files_of_data(tmp_path, image_folder, monkeypatch):
    place = tmp_path / "caches" / "data"
    place.mkdir(parents=True)
    assert check(kinds_of_data(place, image_folder, monkeypatch), tmp_path, 2) >= 200


def test_damaged_files_of_weights_and_settings(tmp_path):
    tried = check(kinds_of_weights(tmp_path), tmp_path, 3) + check(kinds_of_settings(tmp_path), tmp_path, 4)
    assert tried >= 100
