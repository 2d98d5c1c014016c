"""Checkpoints as people have them: the weights that are loaded from each layout, and one line for a file that is no checkpoint."""

from __future__ import annotations

import functools
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdrun.errors import CheckpointError
from kdrun.models.weight_names import canonical
from kdrun.models.weights import AS_STUDENT, Wanted, load_weights
from kdrun.models.zoo import create_model

State = dict[str, Tensor]


class Small(nn.Module):
    """A user's network of three layers."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn1(self.conv1(x)).mean((2, 3)))


class Wrapped(nn.Module):
    """A network whose only attribute has the name of a wrapper."""

    def __init__(self, attribute: str):
        super().__init__()
        self.add_module(attribute, Small())


class Call:
    """An object that is rebuilt by a call of any function."""

    def __init__(self, function: Callable[[], object]):
        self.function = function

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return self.function, ()


class Settings(dict[str, Any]):
    """A dictionary whose entries are attributes too."""

    def __init__(self, **entries: object):
        super().__init__(**entries)
        self.__dict__.update(entries)


class Names(list[str]):
    """A list with an attribute."""

    def __init__(self, *names: str):
        super().__init__(names)
        self.best = 0


def state_of(seed: int, model: Callable[[], nn.Module] = Small) -> State:
    torch.manual_seed(seed)
    return model().state_dict()


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def loaded(
    content: object, folder: Path, wanted: Wanted = AS_STUDENT, model: nn.Module | None = None, name: str = "Small"
) -> nn.Module:
    """A fresh network with the weights of a file that holds `content`."""
    path = folder / "weights.pth"
    torch.save(content, path)
    model = Small() if model is None else model
    load_weights(model, path, name, wanted=wanted)
    return model


def equal(model: nn.Module, state: State) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(value, found[name]) for name, value in state.items())


A, B, C = (state_of(seed) for seed in (1, 2, 3))
TEACHER, RAW = Wanted("teacher"), Wanted(weights="raw")
# What a file holds; which of the two networks in it a student gets, and a teacher.
LAYOUTS: dict[str, tuple[object, State, State]] = {
    "plain": (A, A, A),
    "ddp": ({"state_dict": below("module.", A)}, A, A),
    "compiled": ({"model": below("_orig_mod.", A)}, A, A),
    "compiled, then ddp": (below("module._orig_mod.", A), A, A),
    "ddp, then compiled": (below("_orig_mod.module.", A), A, A),
    "lightning model": ({"state_dict": below("model.", A), "epoch": 3, "hyper_parameters": {"lr": 0.1}}, A, A),
    "lightning net": ({"state_dict": below("net.", A)}, A, A),
    "lightning, compiled": ({"state_dict": below("model._orig_mod.", A)}, A, A),
    "network": (below("network.", A), A, A),
    "backbone": ({"state_dict": below("backbone.", A)}, A, A),
    "encoder": (below("encoder.", A), A, A),
    "backbone and head": (
        {
            **below("backbone.", {k: v for k, v in A.items() if "fc" not in k}),
            "head.fc.weight": A["fc.weight"],
            "head.fc.bias": A["fc.bias"],
        },
        A,
        A,
    ),
    "kuangliu": ({"net": below("module.", A), "acc": 93.1, "epoch": 3}, A, A),
    "sequential": (below("1.", A), A, A),
    **{
        key: ({key: A}, A, A)
        for key in (
            "model_state_dict",
            "model_state",
            "network",
            "params",
            "weights",
            "checkpoint",
            "ema",
            "ema_state_dict",
            "params_ema",
            "state_dict_ema",
            "model_ema",
            "teacher",
            "student",
            "module",
            "best_model",
            "modelStateDict",
            "generator",
        )
    },
    "list": ([{"epoch": 1}, A], A, A),
    "deep": ({"checkpoint": {"model": {"state_dict": below("module.", A)}}}, A, A),
    "compiled in part": ({name.replace("bn1.", "bn1._orig_mod."): value for name, value in A.items()}, A, A),
    "optimizer": ({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "model": A}, A, A),
    "momentum of the same names": ({"model": A, "grads": B}, A, A),
    "dino": ({"student": below("module.", A), "teacher": B, "epoch": 1}, A, B),
    "model and teacher": ({"model": A, "teacher": B}, A, B),
    "mdistiller": ({"model": {**below("module.student.", A), **below("module.teacher.", B)}}, A, B),
    "lightning of both": ({"state_dict": {**below("teacher.model.", B), **below("student.model.", A)}}, A, B),
    "deit": ({"model": A, "model_ema": B}, B, B),
    "timm": ({"state_dict": A, "state_dict_ema": B}, B, B),
    "yolo": ({"ema": A, "model": None, "updates": 3}, A, A),
    "lightning with an average": ({"state_dict": {**below("model.", A), **below("ema_model.", B)}}, B, B),
    "averaged model": ({"model": A, "ema": {"n_averaged": torch.tensor(3), **below("module.", B)}}, B, B),
    "average of parameters alone": (
        {"model": A, "model_ema": {k: v for k, v in B.items() if "running" not in k}},
        A,
        A,
    ),
    "same twice": ({"model": A, "state_dict": A}, A, A),
    "unknown and teacher": ({"mine": A, "teacher": B}, A, B),
    "student and unknown": ({"student": A, "big": B}, A, B),
    "teacher and unknown, nested": ({"nets": {"teacher": B, "resnet_small": A}}, A, B),
    "unknown and average": ({"resnet": A, "ema": B}, B, B),
    "mmrazor": ({"state_dict": {**below("architecture.", A), **below("teacher.", B)}}, A, B),
    "mmrazor of parts": ({**below("architecture.backbone.", A), **below("teacher.backbone.", B)}, A, B),
    "unknown and teacher below ddp": ({**below("module.teacher.", B), **below("module.classifier_net.", A)}, A, B),
    "longer names of both": ({**below("teacher_resnet.", B), **below("small_student.", A)}, A, B),
    "unknown and average, flat": ({**below("resnet.", A), **below("ema.", B)}, B, B),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_the_weights_of_its_role(layout, tmp_path):
    content, student, teacher = LAYOUTS[layout]
    assert equal(loaded(content, tmp_path), student)
    assert equal(loaded(content, tmp_path, TEACHER), teacher)


def test_safetensors_follow_the_same_rule_whatever_they_are_called(tmp_path):
    for name in ("w.safetensors", "w.pt"):
        save_file(below("module.net.", A), tmp_path / name)
        model = Small()
        load_weights(model, tmp_path / name, "Small")
        assert equal(model, A)


@pytest.mark.parametrize("attribute", ["model", "module", "student", "teacher", "net", "ema", "backbone"])
def test_a_network_loads_its_own_state_whatever_its_attributes_are_called(attribute, tmp_path):
    own = state_of(3, lambda: Wrapped(attribute))
    for content in (own, below("module.", own), {"state_dict": below("_orig_mod.", own)}):
        for wanted in (Wanted(), TEACHER):
            assert equal(loaded(content, tmp_path, wanted, Wrapped(attribute)), own)


def test_a_network_that_is_a_wrapper_itself_loads_what_it_wraps(tmp_path, capsys):
    own = below("module.", A)
    for content in (A, {"state_dict": below("net.", A)}):
        assert equal(loaded(content, tmp_path, model=nn.DataParallel(Small())), own)
        assert "names below the network's own module." in capsys.readouterr().err


def test_raw_or_average_is_one_setting_and_said(tmp_path, capsys):
    for content in ({"model": A, "model_ema": B}, {"state_dict": A, "state_dict_ema": B}):
        assert equal(loaded(content, tmp_path, RAW), A)
        assert "the raw ones are loaded" in capsys.readouterr().err
    assert equal(loaded({"model": A, "model_ema": B}, tmp_path, TEACHER), B)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the average (model_ema) is loaded (teacher.checkpoint_weights=raw loads model)" in said
    with pytest.raises(CheckpointError, match=r"only an average of weights \(ema\).*leave out .*_weights=raw"):
        loaded({"ema": A}, tmp_path, RAW)


def test_the_choice_and_the_renaming_are_said_in_one_note(tmp_path, capsys):
    loaded({"student": below("module.", A), "teacher": below("module.", B)}, tmp_path, TEACHER)
    said = capsys.readouterr().err
    assert said.startswith("note: ")
    assert said.count("\n") == 1
    assert "the teacher (teacher.module) is loaded; names without module." in said
    loaded(A, tmp_path)
    assert not capsys.readouterr().err
    renamed = {name.replace("fc", "linear"): value for name, value in A.items()}
    assert equal(loaded(renamed, tmp_path), A)
    assert "renamed linear to fc" in capsys.readouterr().err


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_weights_of_the_other_role_are_never_taken_silently(role, tmp_path, capsys):
    other, wanted = {"student": "teacher", "teacher": "student"}[role], Wanted(role)
    for content in ({"mine": A, other: B}, {**below("mine.", A), **below(f"{other}.", B)}):
        assert equal(loaded(content, tmp_path, wanted), A)
        assert f"the file holds mine and a {other}; mine is loaded" in capsys.readouterr().err
    assert equal(loaded({other: A}, tmp_path, wanted), A)
    assert f"its {other} ({other}) is loaded as the {role}" in capsys.readouterr().err
    larger = create_model("resnet8", num_classes=10).state_dict()
    with pytest.raises(CheckpointError) as caught:
        loaded({**below("mine.", larger), **below(f"{other}.", A)}, tmp_path, wanted)
    assert f"only its {other} ({other}) fits: save the {role}'s weights alone" in str(caught.value)
    assert "ignore" not in str(caught.value)
    extra = {**A, "aux.weight": torch.ones(1)}
    for content in ({"mine": extra, other: B}, {**below("mine.", extra), **below(f"{other}.", B)}):
        with pytest.raises(CheckpointError, match=r"1 unknown, first aux.weight; .*ignore=\[aux.\*\]'"):
            loaded(content, tmp_path, wanted)
        assert equal(loaded(content, tmp_path, Wanted(role, ignore=("aux.*",))), A)


def test_raw_weights_of_an_unknown_name_are_chosen_between_too(tmp_path, capsys):
    for content in ({"resnet": A, "ema": B}, {**below("resnet.", A), **below("ema.", B)}):
        assert equal(loaded(content, tmp_path), B)
        assert "the average (ema) is loaded (student.checkpoint_weights=raw loads resnet)" in capsys.readouterr().err
        assert equal(loaded(content, tmp_path, RAW), A)
        assert "an average of them (ema); the raw ones are loaded" in capsys.readouterr().err
    assert equal(loaded({"model": A, "student_ema": B}, tmp_path, RAW), A)
    assert equal(loaded({"model": A, "student_ema": B}, tmp_path), B)
    assert equal(loaded({"model": A, "teacher_ema": B}, tmp_path, TEACHER), B)
    capsys.readouterr()
    assert equal(loaded({"resnet": A, "ema": B, "teacher": dict(B)}, tmp_path, RAW), A)
    assert "the file holds resnet and a teacher; resnet is loaded" in capsys.readouterr().err


def test_several_that_fit_are_named(tmp_path, capsys):
    assert equal(loaded({"model": A, "best_model": B}, tmp_path), A)
    assert "model is loaded, not best_model, which fits as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        {"last": A, "best": B, "final": C},
        {"nets": {name: {"state": below("module.", state)} for name, state in zip("abc", (A, B, C), strict=True)}},
        {**below("last.", A), **below("best.", B), **below("final.", C), "teacher.weight": torch.ones(1)},
        [A, B, C],
    ],
)
def test_an_entry_is_ignored_for_the_next_that_fits(content, tmp_path, capsys):
    """As each note says, in turn; where nothing else would be left, none is ignored."""
    ignore = ""
    for state in (A, B, C):
        assert equal(loaded(content, tmp_path, Wanted(ignore=tuple(filter(None, ignore.split(","))))), state)
        said = capsys.readouterr().err
        if state is not C:
            ignore = said.partition("student.checkpoint_ignore=[")[2].partition("]' loads it")[0]
    assert "fits as well" not in said
    assert equal(loaded(content, tmp_path, Wanted(ignore=("*.*",))), A)


def in_pytorchcv(name: str) -> str:
    """layer1.0.conv2.weight -> features.stage1.unit1.body.conv2.conv.weight"""
    stage, *rest = name.split(".")
    if stage in ("conv1", "bn1"):
        return f"features.init_block.{stage[:-1]}.{rest[0]}"
    if stage == "fc":
        return f"output.{rest[0]}"
    place = f"features.stage{stage[5:]}.unit{int(rest[0]) + 1}"
    if rest[1] == "downsample":
        return f"{place}.identity_conv.{('conv', 'bn')[int(rest[2])]}.{rest[3]}"
    return f"{place}.body.conv{rest[1][-1]}.{rest[1][:-1]}.{rest[2]}"


# (zoo network, names of its layers in another project)
OTHERS = {
    "kuangliu": ("resnet18", lambda name: name),
    "torchvision and timm": ("resnet18", lambda name: name.replace("shortcut", "downsample").replace("linear", "fc")),
    "mmpretrain": (
        "resnet18",
        lambda name: (
            "head.fc." + name[7:]
            if name.startswith("linear.")
            else "backbone." + name.replace("shortcut", "downsample")
        ),
    ),
    "RepDistiller, chenyaofo, mdistiller": ("resnet20", lambda name: name),
    "kuangliu's names": ("resnet20", lambda name: name.replace("downsample", "shortcut").replace("fc.", "linear.")),
    "pytorchcv": ("resnet20", lambda name: in_pytorchcv(name)),
    "akamaster": ("resnet20a", lambda name: f"module.{name}"),
}


@pytest.mark.parametrize("project", OTHERS)
def test_names_of_other_projects(project, tmp_path):
    name, other = OTHERS[project]
    torch.manual_seed(1)
    source = create_model(name, num_classes=10)
    content = {other(key): value for key, value in source.state_dict().items()}
    assert equal(loaded(content, tmp_path, model=create_model(name, num_classes=10)), source.state_dict())


def test_names_of_weiaicunzai(tmp_path):
    """His block as he writes it: one Sequential for the residual, one for the shortcut."""

    def other(name: str) -> str:
        places = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
        stage, *rest = name.split(".")
        if stage in ("conv1", "bn1"):
            return f"conv1.{places[stage]}.{rest[0]}"
        if stage == "linear":
            return f"fc.{rest[0]}"
        inner = rest[1:] if rest[1] == "shortcut" else ["residual_function", str(places[rest[1]]), *rest[2:]]
        return ".".join([f"conv{int(stage[5:]) + 1}_x", rest[0], *inner])

    torch.manual_seed(1)
    source = create_model("resnet18", num_classes=100)
    content = {other(key): value for key, value in source.state_dict().items()}
    assert {"conv2_x.0.residual_function.4.weight", "conv3_x.0.shortcut.1.bias"} <= content.keys()
    assert equal(loaded(content, tmp_path, model=create_model("resnet18", num_classes=100)), source.state_dict())
    for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "shortcut.0"):  # of a bottleneck
        assert canonical(other(f"layer4.2.{layer}.weight"), False) == canonical(f"layer4.2.{layer}.weight", False)


def test_layers_are_never_matched_by_order_or_shape(tmp_path):
    swapped = {name.replace("conv1", "stem"): value for name, value in A.items()}
    with pytest.raises(CheckpointError, match=r"2 missing, first conv1.bias; 2 unknown, first stem.bias"):
        loaded(swapped, tmp_path)
    two_heads = {
        **{k: v for k, v in A.items() if "fc" not in k},
        "linear.weight": A["fc.weight"],
        "linear.bias": A["fc.bias"],
        "head.weight": B["fc.weight"],
        "head.bias": B["fc.bias"],
    }
    with pytest.raises(CheckpointError, match=r"2 missing, first fc.bias; 4 unknown, first head.bias"):
        loaded(two_heads, tmp_path)


def test_a_deeper_networks_file_is_not_cut_to_size(tmp_path):
    """resnet20's weights in resnet8: without its further blocks the network computes something else."""
    deeper = create_model("resnet20", num_classes=10, image_size=32).state_dict()
    with pytest.raises(CheckpointError) as caught:
        loaded(deeper, tmp_path, TEACHER, create_model("resnet8", num_classes=10), "resnet8")
    assert "ignore" not in str(caught.value) and "which has no layer1.1" in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        (("total_ops", "total_params"), "[total_ops,total_params]"),
        (("criterion.weight",), "[criterion.*]"),
        (("conv1.total_ops", "total_ops"), "[*total_ops]"),
        (("aux.0.weight", "aux.0.bias"), "[aux.*]"),
    ],
)
def test_extra_entries_are_named_and_passed_over_on_demand(extra, pattern, tmp_path, capsys):
    for content in (
        {**A, **dict.fromkeys(extra, torch.ones(1))},
        below("model.", {**A, **dict.fromkeys(extra, torch.ones(1))}),
    ):
        with pytest.raises(CheckpointError) as caught:
            loaded(content, tmp_path, TEACHER)
        assert f"{len(extra)} unknown, first {sorted(extra)[0]}" in str(caught.value)
        assert f"'teacher.checkpoint_ignore={pattern}' ignores the unknown ones" in str(caught.value)
        ignoring = Wanted("teacher", ignore=tuple(pattern[1:-1].split(",")))
        assert equal(loaded(content, tmp_path, ignoring), A)
        assert f"ignored {extra[0]}" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="2 missing"):  # what the network needs is never skipped
        loaded({k: v for k, v in A.items() if "fc" not in k}, tmp_path, Wanted(ignore=("*",)))


def test_a_missing_classifier_has_a_way_out(tmp_path):
    with pytest.raises(CheckpointError, match=r"2 missing, first fc.bias; student.pretrained=.*weights.pth loads"):
        loaded({k: v for k, v in A.items() if "fc" not in k}, tmp_path)
    with pytest.raises(CheckpointError, match=r"\(1000,\) in the file, \(10,\) in the model.*starts a new classifier"):
        loaded(state_of(1, lambda: Small(1000)), tmp_path)


def test_option_b_names_the_network_with_option_a(tmp_path):
    source = create_model("resnet20a", num_classes=10).state_dict()
    with pytest.raises(CheckpointError, match=r"10 missing.*\(option A\): teacher=resnet20a is that network"):
        loaded(source, tmp_path, TEACHER, create_model("resnet20", num_classes=10), "resnet20")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda w: w.fill_(float("nan")), "fc.weight holds 40 of 40 values that are NaN or infinite"),
        (lambda w: w / 0, "fc.weight holds 40 of 40"),
        (lambda w: w.to("meta"), r"fc.weight has a shape but no data \(device meta\)"),
        (lambda w: w.to_sparse(), r"fc.weight is sparse \(torch.sparse_coo\)"),
        (lambda w: w.to(torch.complex64), r"fc.weight is complex \(torch.complex64\)"),
        (lambda w: (100 * w).to(torch.int32), r"fc.weight holds whole numbers \(torch.int32\)"),
        (lambda w: w > 0, "fc.weight holds whole numbers"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(change, line, tmp_path):
    content = below("module.", {name: value.clone() for name, value in A.items()})
    content["module.fc.weight"] = change(content["module.fc.weight"])
    with pytest.raises(CheckpointError, match=f"weights.pth: module.{line}") as caught:
        loaded(content, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floats_are_converted(dtype, tmp_path):
    content = {name: value.to(dtype) if value.is_floating_point() else value for name, value in A.items()}
    model = loaded(content, tmp_path)
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, content["fc.weight"].float())


def archive(write: Callable, name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    write(buffer, name, data)
    return buffer.getvalue()


def as_zip(buffer: io.BytesIO, name: str, data: bytes) -> None:
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, data)


def as_tar(buffer: io.BytesIO, name: str, data: bytes) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        file.addfile(entry, io.BytesIO(data))


def saved(content: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def circle() -> dict:
    content: dict = {}
    content["model"] = content
    return content


def nested(depth: int) -> dict:
    content: dict = A
    for _ in range(depth):
        content = {"model": content}
    return content


def in_arrays(state: State) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in state.items()}


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>login</html>", "is a web page"),
    "json": (b'{"error": "Entry not found"}', "is text .*Entry not found"),
    "text": ("época 3".encode(), "is text"),
    "blank": (bytes(3000), "is blank"),
    "noise": (bytes(range(200, 255)) * 20, "is neither a torch.save nor a safetensors file"),
    "gzip": (gzip.compress(saved(A)), "compressed with gzip"),
    "zip of weights": (archive(as_zip, "best.pth", saved(A)), "unpack it and name best.pth"),
    "zip of a text": (archive(as_zip, "readme.txt", b"x"), "zip archive without weights"),
    "npz": (archive(as_zip, "fc.weight.npy", b"x"), r"NumPy archive \(.npz\)"),
    "tar": (archive(as_tar, "best.pth", saved(A)), "is a tar archive"),
    "TorchScript": (archive(as_zip, "x/constants.pkl", b"x"), "TorchScript program, which kdrun does not run"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file"),
    "NumPy": (b"\x93NUMPY" + bytes(99), "NumPy array"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is an image"),
    "plain pickle": (pickle.dumps({"a": 1}), "plain pickle, which could run code"),
    "cut off": (saved(A)[:2000], "truncated"),
    "cut off, old": (saved(A, _use_new_zipfile_serialization=False)[:900], "cannot be read"),
    "circle": (saved(circle()), "holds no state dict; its entries are model"),
    "deeply nested": (saved(nested(300)), "holds no state dict"),
    "nothing": (saved({}), "holds no state dict; it is empty"),
    "strange names": (saved({f"{name}\x1b]0;x\x07\n": value for name, value in A.items()}), r"bn1.bias\\x1b\]0;x"),
    "strange entries": (saved({"a\nb": 1}), r"its entries are a\\nb"),
    "a number": (saved(3), "holds a int, not a state dict"),
    "None": (saved(None), "holds a NoneType"),
    "a tensor": (saved(A["fc.weight"]), "holds a single tensor"),
    "optimizer alone": (saved({"optimizer": {"lr": 0.1}}), "its entries are optimizer"),
    "whole model, old": (
        saved(Small(), _use_new_zipfile_serialization=False),
        r"holds more than tensors \(.*Small\).*re-save",
    ),
    "a call": (saved({"state_dict": A, "hp": Call(os.getcwd)}), r"\(posix.getcwd\).*re-save"),
    "a list of a user's": (saved({"state_dict": A, "hp": Names("a")}), r"\(list\).*re-save"),
    "a function": (saved(functools.partial(print, 1)), "holds a functools.partial, not a state dict"),
    **{
        f"{kind} arrays": (saved(content), r"holds NumPy arrays, not tensors: convert them with torch.from_numpy")
        for kind, content in (
            ("flat", in_arrays(A)),
            ("nested", {"epoch": 3, "state_dict": in_arrays(A)}),
            ("module's", {"model": SimpleNamespace(net=in_arrays(below("module.", A)))}),
            ("half", {"weights": {name: value.half().numpy() for name, value in A.items()}}),
        )
    },
    "a NumPy scalar": (saved({"state_dict": {}, "acc": np.float64(3)}), "its entries are state_dict, acc"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("error")
def test_what_is_no_checkpoint_is_one_line_that_says_what_it_is(kind, tmp_path):
    content, line = FILES[kind]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=line) as caught:
        load_weights(Small(), path, "Small")
    assert str(caught.value).startswith(f"checkpoint {path}")
    assert "\n" not in str(caught.value)


RAN: list[int] = []


def ran() -> int:
    """Leave a trace of having been called."""
    RAN.append(1)
    return 1


class Color(Enum):
    """A value that refers to its class."""

    RED = "red"


class Odd(nn.Module):
    """A user's network with a shared layer, a buffer that is not saved, and a hook."""

    def __init__(self):
        super().__init__()
        self.first = Small()
        self.again = self.first
        self.stages = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
        self.scale = nn.Parameter(torch.rand(1))
        self.register_buffer("mask", torch.rand(3), persistent=False)
        self.register_buffer("steps", torch.tensor(3))
        self.register_forward_hook(hook)


def hook(*_: object) -> None:
    """Do nothing."""


WHOLE: dict[str, Callable[[nn.Module], object]] = {
    "alone": lambda model: model,
    "beside an epoch": lambda model: {"epoch": 3, "model": model, "optimizer": None},
    "ddp": nn.DataParallel,
    "average": AveragedModel,
    "an attribute": lambda model: SimpleNamespace(net=model, best=0.7),
    "an entry": lambda model: Settings(model=model),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("network", [Small, Odd, lambda: torchvision.models.resnet18(num_classes=3)])
def test_a_whole_model_is_its_state_dict(kind, network, tmp_path, capsys):
    torch.manual_seed(1)
    source, target = network(), network()
    state = {name: value.clone() for name, value in source.state_dict().items()}
    assert equal(loaded(WHOLE[kind](source), tmp_path, model=target), state)


OBJECTS: dict[str, object] = {
    "a function": functools.partial(print, 1),
    "a path": Path("x"),
    "a date": datetime(2020, 1, 1),
    "an enumeration": {Color.RED: 1, "all": {Color.RED}},
    "an array": np.ones(3),
    "an image": np.zeros((2, 2, 3), np.uint8),
    "an array of halves": np.ones(3, np.float16),
    "an array of names": np.array(["cat", "dog"]),
    "NumPy scalars": [np.float16(1), np.uint8(2), np.str_("cat"), np.complex64(1j)],
    "a logger": SimpleNamespace(history=deque([1, 2], maxlen=3), lr=0.1),
    "counts": defaultdict(list, a=[1]),
    "settings": Settings(lr=0.1, model=Settings(depth=20)),
    "an evaluation": Call(ran),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_beside_weights_are_passed_over_and_not_run(kind, tmp_path):
    assert equal(loaded({"state_dict": A, "other": OBJECTS[kind]}, tmp_path), A)
    assert not RAN


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, line in (
        (tmp_path, "is a directory"),
        (tmp_path / "pipe", "is a named pipe"),
        (Path("/dev/null"), "is a device"),
        (tmp_path / "absent", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=line):
            load_weights(Small(), place, "Small")


def test_a_vit_of_another_size_names_the_size_that_fits(tmp_path):
    source = create_model("vit_cifar_tiny", num_classes=10, image_size=48).state_dict()
    with pytest.raises(CheckpointError, match=r"first pos_embed .*; teacher.input_size=48 fits"):
        loaded(source, tmp_path, TEACHER, create_model("vit_cifar_tiny", num_classes=10, image_size=32))


@pytest.mark.parametrize("name", ["timm:test_vit", "torchvision:shufflenet_v2_x0_5", "resnet8"])
def test_pretrained_takes_a_file_as_checkpoint_does(name, tmp_path, capsys):
    """A wrapped file with raw weights and their average, for other classes, and for its own."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(create_model(name, num_classes=7, image_size=160).state_dict())
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": below("module.", states[0]), "state_dict_ema": below("module.", states[1])}, path)
    first = next(key for key in states[0] if key.endswith("weight"))
    for wanted, state in ((Wanted(), states[1]), (RAW, states[0])):
        model = create_model(name, num_classes=3, image_size=160, pretrained=str(path), wanted=wanted)
        assert torch.equal(model.state_dict()[first], state[first])
        assert "a new classifier" in capsys.readouterr().err
        assert equal(create_model(name, num_classes=7, image_size=160, pretrained=str(path), wanted=wanted), state)


def test_pretrained_of_timm_takes_positions_of_another_size(tmp_path):
    torch.manual_seed(1)
    source = create_model("timm:test_vit", num_classes=10, image_size=160)
    torch.save(below("module.", source.state_dict()), tmp_path / "weights.pth")
    model = create_model("timm:test_vit", num_classes=3, image_size=96, pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(model.patch_embed.proj.weight, source.patch_embed.proj.weight)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_pretrained_of_timm_that_does_not_fit_is_no_random_network(tmp_path):
    torch.save(A, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"does not fit timm:test_vit: \d+ missing"):
        create_model("timm:test_vit", num_classes=3, image_size=160, pretrained=str(tmp_path / "weights.pth"))
