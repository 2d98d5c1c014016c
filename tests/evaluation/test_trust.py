"""Directories and files from somebody else: nothing of theirs is run, fetched or written elsewhere, and each is one
line.

Every hostile thing here would leave the canary, a file PWNED, if it were executed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import kdrun as package
from kdrun.config.annotations import annotated_type
from kdrun.errors import CheckpointError, ConfigError, KdrunError, RunError, printable
from kdrun.evaluation.predictions import read_answers
from kdrun.evaluation.targets import Which, target_of_run
from kdrun.files import read_json, spreadsheet_safe, write_text
from kdrun.models.weights import read_state_dict
from kdrun.models.zoo import create_model
from kdrun.runs.directory import RunDirectory
from kdrun.runs.ledger import is_locked, read_ledger
from kdrun.runs.trust import sign, signed_code, signing_key
from kdrun.training.checkpoint import load_state
from tests.conftest import FIXTURES, TINY

EVIL = """
import pathlib, torch
pathlib.Path(CANARY).touch()
class Evil:
    deploys = True
    def __init__(self, *, weight: __import__('pathlib').Path(CANARY).touch() = 1): pass
def make(num_classes=4, **rest):
    return torch.nn.Linear(1, 1)
def evil(**rest):
    return make()
"""


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """The current directory holds evil.py, an evil package and a hubconf.py; nobody has a key yet."""
    place = tmp_path / "PWNED"
    here = tmp_path / "here"
    (here / "evilpkg").mkdir(parents=True)
    text = EVIL.replace("CANARY", repr(str(place)))
    for name in ("evil.py", "evilpkg/__init__.py", "evilpkg/mod.py", "hubconf.py"):
        (here / name).write_text(text)
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(here))])
    return place


@pytest.fixture
def received(canary, tmp_path) -> Path:
    """A finished run, not of this account, outside of every output folder."""
    run = tmp_path / "received" / "s0-b7bbaf17"
    shutil.copytree(FIXTURES / "old_run", run)
    torch.manual_seed(0)
    weights = create_model("resnet8", num_classes=4, image_size=16).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, run / "student.safetensors")
    change(run, {"teacher.random": True})
    return run


def change(run: Path, values: dict[str, Any]) -> None:
    """Set dotted keys of a run's config.yaml."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in values.items():
        node, *inner = content, *key.split(".")[:-1]
        for name in inner:
            node = node[name]
        node[key.rpartition(".")[2]] = value
    (run / "config.yaml").write_text(yaml.safe_dump(content))


HUB = {"repo_or_dir": ".", "model": "evil", "source": "local"}
REFUSED = {
    "torch.hub, a local folder": ({"student.name": "torch.hub:load", "student.kwargs": HUB}, "add trust=true"),
    "torch.hub, from the network": (
        {"student.name": "torch.hub:load", "student.kwargs": {**HUB, "source": "github", "trust_repo": True}},
        "student=torch.hub:load (",
    ),
    "a module of the current folder": ({"student.name": "evil:make"}, "student=evil:make (evil.py)"),
    "a package, whose __init__ would run": ({"student.name": "evilpkg.mod:make"}, "not trained under this account"),
    "a module that is not here": ({"student.name": "absent.mod:make"}, "student=absent.mod:make (not found here)"),
    "a shell": ({"student.name": "os:system", "student.kwargs": {"command": "touch PWNED"}}, "add trust=true"),
    "exec": ({"student.name": "builtins:exec"}, "add trust=true"),
    "a name with slashes": ({"student.name": "../evil:make"}, "add trust=true"),
    "an environment variable": ({"dataset.root": "${oc.env:HOME}"}, "a run's configuration has only plain values"),
    "a resolver in a name": ({"student.name": "${oc.decode:evil:make}"}, "a run's configuration has only plain values"),
    "another value": ({"student.name": "${teacher.name}"}, "a run's configuration has only plain values"),
    "timm from the hub": ({"student.name": "timm:hf-hub:evil/model"}, "has no such model"),
    "timm from a folder": ({"student.name": "timm:local-dir:."}, "has no such model"),
    "timm with a tag that is a source": ({"student.name": "timm:resnet10t.hf-hub:evil/model"}, "has no such model"),
    "timm's checkpoint_path": (
        {"student.name": "timm:resnet10t", "student.kwargs": {"checkpoint_path": "/etc/passwd"}},
        "kwargs.checkpoint_path: set weights by pretrained= or checkpoint=",
    ),
    "timm's overlay with a URL": (
        {"student.name": "timm:resnet10t", "student.kwargs": {"pretrained_cfg_overlay": {"url": "http://evil"}}},
        "kwargs.pretrained_cfg_overlay",
    ),
    "timm's pretrained": (
        {"student.name": "timm:resnet10t", "student.kwargs": {"pretrained": True}},
        "kwargs.pretrain",
    ),
    "torchvision's weights": (
        {"student.name": "torchvision:resnet18", "student.kwargs": {"weights": "DEFAULT"}},
        "kwargs.weights",
    ),
    "torchvision's pretrained": (
        {"student.name": "torchvision:resnet18", "student.kwargs": {"pretrained": True}},
        "kwargs.pretrained",
    ),
    "an object to make": ({"student.kwargs": {"_target_": "evil.make"}}, "resnet8 cannot be built with"),
    "an unknown network": ({"student.name": "/etc/passwd"}, "no such network"),
    "a data set that is none": ({"dataset.name": "../../etc"}, "dataset.name=../../etc: choose"),
    "a setting of nobody's": ({"evil": "evil.make"}, "config.yaml cannot be read"),
    "a method that is no text": ({"method": {"_target_": ["evil.Evil"]}}, "method has no _target_"),
    "a method of kdrun's that there is not": ({"method": {"_target_": "kdrun.methods.kd.Evil"}}, "has no class Evil"),
    "numerics of another type": ({"resolved": {"device": "cpu"}}, "config.yaml cannot be read"),
    "numerics that are text": ({"resolved.threads": "evil"}, "resolved.threads is 'evil'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_configuration_is_refused_in_one_line(case, received, canary):
    values, line = REFUSED[case]
    change(received, values)
    with pytest.raises(KdrunError) as caught:
        package.load(received)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert not canary.exists()


TEXTS = {
    "a tag": "!!python/object/apply:os.system ['touch PWNED']",
    "an alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "nesting": "[" * 20000,
    "a list": "- student\n",
    "nothing": "",
    "twice the same key": "seed: 0\nseed: 1\n",
    "too much": "#" * (1 << 20 | 1),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_configuration_that_is_none_is_one_line(case, received, canary):
    (received / "config.yaml").write_text(TEXTS[case])
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read") as caught:
        target_of_run(received, Which(), {})
    assert "\n" not in str(caught.value) and not canary.exists()
    (received / "config.yaml").write_bytes(os.urandom(4096))
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
        target_of_run(received, Which(), {})


USABLE = {
    "a method of its own": {"method": {"_target_": "evilpkg.mod.Evil", "weight": 1}},
    "a method whose annotation is code": {"method": {"_target_": "evil.Evil"}},
    "a part of a sum": {
        "method": {
            "_target_": "kdrun.methods.combine.Combine",
            "ce_weight": 1.0,
            "parts": [{"_target_": "evil.Evil", "weight": 1.0}],
        }
    },
    "a teacher of its own": {"teacher.name": "evil:make"},
    "a teacher of torch.hub": {"teacher.name": "torch.hub:load", "teacher.kwargs": HUB},
    "a teacher whose weights would be fetched": {"teacher.name": "timm:resnet10t", "teacher.pretrained": "true"},
    "a teacher in any file": {"teacher.random": False, "teacher.checkpoint": "/etc/hostname"},
    "an output folder of its choice": {"output_root": "../escaped"},
}


@pytest.mark.parametrize("case", USABLE)
def test_what_prediction_does_not_need_is_not_run(case, received, canary, tmp_path):
    change(received, USABLE[case])
    told = read_json(received / "provenance.json")
    told["method"] = {"name": "evil", "needs_teacher": True, "trains_teacher": False, "deploys": False}
    (received / "provenance.json").write_text(json.dumps(told))
    target = target_of_run(received, Which(), {})
    if "teacher" in case and "file" not in case:
        assert target.teacher is None and target.missing
    if target.teacher is not None and target.teacher.weights is not None:
        assert target.teacher.sha256  # whatever it is, it is not what the run recorded
    assert package.load(received).class_names
    assert not canary.exists() and not (tmp_path / "escaped").exists()


def test_a_method_that_is_deployed_needs_trust(received, canary):
    change(received, {"method": {"_target_": "evil.Evil"}})
    told = read_json(received / "provenance.json")
    told["method"] = {"name": "evil", "needs_teacher": True, "trains_teacher": False, "deploys": True}
    (received / "provenance.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=r"it would run method\._target_=evil\.Evil \(evil\.py\), but was not"):
        package.load(received)
    assert not canary.exists()


def test_trust_is_said_once(received, canary, kdrun, capfd):
    """trust=true names what it runs; afterwards the run is signed with that content."""
    change(received, {"student.name": "evil:make"})
    with pytest.raises(KdrunError):  # the network is built, and takes no images
        package.load(received, trust=True)
    assert (
        canary.exists()
        and f"note: trust=true: {received} may run student=evil:make (evil.py)" in capfd.readouterr().err
    )
    assert set(signed_code(received) or ()) == {"evil.py"}
    with pytest.raises(KdrunError, match="evil") as caught:
        package.load(received)
    assert "trust=true" not in str(caught.value)
    canary.unlink()
    Path("evil.py").write_text(Path("evil.py").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"evil\.py changed since"):
        package.load(received)
    code, _, err = kdrun("predict", str(received), f"path={FIXTURES}", "trust=maybe")
    assert code == 2 and "trust=maybe: choose true or false." in err
    assert not canary.exists()


def forged(received: Path) -> list[str]:
    (received / "signature.json").write_text(json.dumps({"code": {"evil.py": "0" * 64}, "hmac": ""}))
    first = signed_code(received)
    sign(received, {"evil.py": "0" * 64})
    good = (received / "signature.json").read_text()
    assert signed_code(received) == {"evil.py": "0" * 64}
    change(received, {"seed": 1})  # another configuration under a good signature
    second = signed_code(received)
    found = [first, second]
    for text in ("[]", "{", '{"hmac": 1, "code": 5}', '{"hmac": "é", "code": {}}', good.replace("0" * 64, "1" * 64)):
        (received / "signature.json").write_text(text)
        found.append(signed_code(received))
    return found


def test_a_signature_is_of_this_key_configuration_and_code(received, canary, tmp_path):
    assert forged(received) == [None] * 7
    key = tmp_path / "cache" / "kdrun" / "signing.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    sign(received, {})
    assert signed_code(received) == {}
    key.chmod(0o644)  # a key that others may read says nothing
    assert signing_key() is None and signed_code(received) is None
    key.unlink()
    sign(received, {})
    key.write_bytes(bytes(32))
    assert signed_code(received) is None


def test_a_run_of_ones_own_needs_no_word_until_its_code_changes(kdrun, outputs, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = (
        "from torch import nn\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, num_classes))\n"
    )
    Path("trusted_net.py").write_text(source)
    words = [word for word in TINY if not word.startswith("student=")]
    assert kdrun("train", *words, "epochs=1", "method=none", "student=trusted_net:net")[0] == 0
    (run,) = (outputs / "runs").glob("*/*/*/*")
    assert package.load(run).class_names
    Path("trusted_net.py").write_text(source + "# edited\n")
    with pytest.raises(ConfigError, match=r"trusted_net\.py changed since"):
        package.load(run)
    assert package.load(run, trust=True).class_names and package.load(run).class_names
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    sys.modules.pop("trusted_net", None)
    with pytest.raises(ConfigError, match=r"cannot import trusted_net: .*in the folder that contains it.* PYTHONPATH"):
        package.load(run)


def test_links_of_a_run_lead_nowhere(received, canary, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (received / "evals").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="evals is a link"):
        target_of_run(received, Which(), {})
    (received / ".lock").symlink_to(precious)
    (received / ".owner").write_text("process 1")
    assert not is_locked(received) and precious.read_text() == "mine"
    with pytest.raises(RunError, match=r"\.lock is a link"), RunDirectory(received).lock():
        pass
    waiting = received / f".result.json.{os.getpid()}.tmp"
    waiting.symlink_to(precious)
    write_text(received / "result.json", "{}")
    assert precious.read_text() == "mine" and not (received / "result.json").is_symlink()


@pytest.mark.parametrize(
    "values",
    [
        {"run": "../../elsewhere"},
        {"run": "/etc"},
        {"run": 5},
        {"seed": "0"},
        {"overrides": [1]},
        {"row": None},
        {"evil": 1},
    ],
)
def test_a_received_ledger_stays_below_its_folder(values, tmp_path):
    place = tmp_path / "sweeps" / "first" / "cells.json"
    place.parent.mkdir(parents=True)
    cell = {"row": "kd", "column": "", "seed": 0, "overrides": ["method=kd"], "run": "runs/x", **values}
    content = {"name": "../../escaped", "title": "", "command": "", "shape": {}, "cells": [cell]}
    place.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"cells\.json is damaged"):
        read_ledger(tmp_path, "first")
    place.write_text(json.dumps({**content, "cells": []}))
    assert read_ledger(tmp_path, "first").name == "first"


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a/b", "..", "", "a\x00b", "a\\b"])
def test_a_sweeps_name_is_a_folders(name, kdrun, tmp_path):
    code, _, err = kdrun("train", "-m", *TINY, "method=none", f"name={name}")
    assert code == 2 and "the name of a folder is needed" in err and not (tmp_path / "outputs").exists()


RESULTS = ["{}", "[]", "", "{", '{"top1_last": "evil"}', '{"top1_last": 1.0, "seed": "x"}', "\x80"]


def test_one_damaged_run_hides_no_other(kdrun, outputs, received, canary):
    good = outputs / "runs" / "fake" / "resnet8-resnet8" / "dkd" / "s0-b7bbaf17"
    shutil.copytree(received, good)
    result = read_json(good / "result.json")
    bad = [*RESULTS, json.dumps({**result, "overrides": 5}), json.dumps({**result, "seed": None})]
    for number, text in enumerate(bad):
        other = good.parent / f"s{number + 1}-0000000{number}"
        shutil.copytree(good, other)
        (other / "result.json").write_text(text, encoding="latin-1")
        (other / "metrics.csv").write_bytes(bytes(range(256)))
    failed = good.parent / "s99-99999999"
    failed.mkdir()
    (failed / "failed.txt").write_text("2026 \x1b]0;pwn\x07 failed\n")
    code, out, err = kdrun("list", "runs")
    assert (code, err) == (0, "")
    assert out.count("damaged:") == len(bad) and "79" not in err and "\x1b" not in out and r"\x1b]0;pwn\x07" in out
    assert any(str(good.name) in line and "done" in line for line in out.splitlines())
    for words in (["table", str(good.parent / "*")], ["report", str(good.parent / "*")], ["status"]):
        code, out, err = kdrun(*words)
        assert (code, err) == (0, ""), words
    assert list(package.results(outputs)["run"]) == [str(good)]
    code, _, err = kdrun("compare", str(good), str(good.parent / "s1-00000000"))
    assert code == 2 and "delete it and repeat the command that trained this run, to write it again" in err


class Reduced:
    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickles(place: str) -> dict[str, Any]:
    touch = f"__import__('pathlib').Path({place!r}).touch()"
    return {
        "os.system": Reduced(os.system, f"touch {place}"),
        "eval": Reduced(eval, touch),
        "exec": {"model": {"w": Reduced(exec, touch)}},
        "open": Reduced(open, place, "w"),
        "numpy's object arrays": np.array([Reduced(exec, touch)], dtype=object),
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", hostile_pickles(""))
def test_a_hostile_pickle_is_refused(kind, suffix, canary, tmp_path, received):
    evil = hostile_pickles(str(canary))[kind]
    for number, protocol in enumerate((0, 2, 4)):
        place = tmp_path / f"{number}{suffix}"
        place.write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(CheckpointError):
            read_state_dict(place)
        torch.save(evil, place)
        with pytest.raises(CheckpointError):
            read_state_dict(place)
        with pytest.raises(CheckpointError):
            load_state(place)
    shutil.copy(place, received / "student.safetensors")
    with pytest.raises(CheckpointError):
        package.load(received)
    answers = tmp_path / "answers.npz"
    np.savez(answers, identity=np.array([evil], dtype=object))
    assert read_answers(answers, {}) is None
    assert not canary.exists()


def test_a_torchscript_file_is_not_run(canary, tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "scripted.pt")
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "scripted.pt")


@pytest.mark.parametrize("location", ["../secret.bin", "ABSOLUTE", "a/../../secret.bin", "link.bin"])
def test_an_onnx_file_reads_nothing_from_elsewhere(location, tmp_path):
    onnx = pytest.importorskip("onnx")
    from kdrun.evaluation.export.onnx_format import OnnxNetwork

    (tmp_path / "secret.bin").write_bytes(bytes(4 * 40))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "link.bin").symlink_to(tmp_path / "secret.bin")
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4, 10], data_location=onnx.TensorProto.EXTERNAL)
    entry = weights.external_data.add()
    entry.key, entry.value = "location", str(tmp_path / "secret.bin") if location == "ABSOLUTE" else location
    values = [onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("image", 4), ("logits", 10))]
    node = onnx.helper.make_node("MatMul", ["image", "w"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    place = tmp_path / "files" / "model.onnx"
    place.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="cannot be loaded as an ONNX file"):
        OnnxNetwork(place)


@pytest.mark.parametrize(
    "values", [{"class_names": 5}, {"mean": ["a"] * 3}, {"image_size": "16"}, {"image_size": 10**9}, {"resize": "evil"}]
)
def test_an_onnx_card_of_other_types_is_none(values):
    from kdrun.evaluation.deployed import Card

    told = {
        "network": "resnet8",
        "class_names": ["a", "b"],
        "image_size": 16,
        "resize": "stretch",
        "streamed": False,
        "input_size": 16,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert Card.read(told).class_names == ["a", "b"]
    with pytest.raises((TypeError, ValueError)):
        Card.read({**told, **values})


def test_no_library_is_imported_from_the_current_folder(received, canary):
    """Neither by `python -m kdrun`, which Python starts with that folder first, nor by the processes that it starts."""
    text = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nraise SystemExit('pwned by ' + __name__)\n"
    for name in (
        "timm",
        "torch",
        "torchvision",
        "yaml",
        "omegaconf",
        "rich",
        "PIL",
        "numpy",
        "pandas",
        "hydra_plugins",
    ):
        Path(f"{name}.py").write_text(text)
    name = "timm:test_resnet"
    model = create_model(name, num_classes=4, image_size=16)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, received / "student.safetensors")
    change(received, {"student.name": name})
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("black.png")
    command = [sys.executable, "-m", "kdrun", "predict", str(received), "path=black.png", "threads=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "black.png  class " in done.stdout, done.stderr
    assert not canary.exists()


def test_annotations_are_read_and_not_evaluated(canary):
    plain = {
        "float": float,
        "'int'": int,
        "list[float]": list[float],
        "dict[str, Any]": dict[str, Any],
        "int | None": int | None,
        "Optional[float]": float | None,
        "typing.Union[int, str]": int | str,
        "tuple[int, ...]": tuple[int, ...],
    }
    assert {text: annotated_type(text) for text in plain} == plain
    call = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    for text in (call, f"list[{call}]", f"int | {call}", "[x for x in ()]", "lambda: 1", "1 +", "Foo", "None | None"):
        annotated_type(text)
    assert not canary.exists()


def test_names_out_of_files_are_shown_and_written_harmlessly():
    assert printable("a\x1b]0;pwn\x07b\u202ec\udce9\r") == r"a\x1b]0;pwn\x07b\u202ec\udce9\r"
    assert printable("café\tü\n日本 👍") == "café\tü\n日本 👍"
    row = ["=1+1", "@a", "+b", "-c", "\td", "-0.5", "+3e5", -1, 0.5, None, "plain", "–", ""]
    safe = ["'=1+1", "'@a", "'+b", "'-c", "'\td", "-0.5", "+3e5", -1, 0.5, None, "plain", "–", ""]
    assert spreadsheet_safe(row) == safe
