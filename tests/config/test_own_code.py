"""The user's own code: the part that enters a digest, the copy that is kept, and that the code that runs is the code named by the digest."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from safetensors import safe_open

from kdrun.config.compose import load
from kdrun.config.method_schema import method_of
from kdrun.config.own_code import LARGEST, digests, own_code, read_once
from kdrun.config.schema import read_config
from kdrun.display import PlainDisplay
from kdrun.errors import ConfigError, RunError
from kdrun.evaluation.targets import Which, target_of_run
from kdrun.evaluation.trusted import changed_code
from kdrun.models.own_import import import_own, pinned
from kdrun.runs.plan import make_plan
from tests.conftest import TINY

SHORT = [*(word for word in TINY if not word.startswith(("teacher=", "student="))), "epochs=1", "device=cpu"]
FILES = {
    "nets/__init__.py": "",
    "nets/small.py": """
        from torch import nn
        from .parts.blocks import block

        class Net(nn.Sequential):
            def __init__(self, num_classes):
                super().__init__(block(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
        """,
    "nets/parts/__init__.py": "",
    "nets/parts/blocks.py": """
        from torch import nn
        from . import sizes

        def block(a, b):
            return nn.Sequential(nn.Conv2d(a, sizes.WIDTH, 3, 2, 1), nn.ReLU(), nn.Conv2d(sizes.WIDTH, b, 1))
        """,
    "nets/parts/sizes.py": "from .. import parts\nWIDTH = 4\n",
    "tutor.py": """
        def build(num_classes):
            from tutor_parts import head
            return head(num_classes)
        """,
    "tutor_parts.py": """
        from torch import nn

        def head(classes):
            return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
        """,
    "losses/mine.py": """
        from .base import Scaled

        class Alpha(Scaled):
            sign = 1

        class Beta(Scaled):
            sign = -1
        """,
    "losses/base.py": """
        import torch.nn.functional as F
        from kdrun.methods.base import Method

        class Scaled(Method):
            sign = 0

            def __init__(self, *, scale: float):
                super().__init__()
                self.scale = scale

            def losses(self, batch, student, teacher, progress):
                return {"ce": self.sign * self.scale * F.cross_entropy(student.logits, batch.label)}
        """,
    "unrelated.py": "VALUE = 1\n",
    "my_conf/method/alpha.yaml": "_target_: losses.mine.Alpha\nscale: 1\n",
    "my_conf/method/beta.yaml": "_target_: losses.mine.Beta\nscale: 1\n",
}
OWN = ["--config-dir", "my_conf"]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text).lstrip("\n"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The current directory: two networks, a package of methods without __init__.py, and its configuration folder."""
    folder = tmp_path / "project"
    write(folder, FILES)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def edit(file: Path, old: str = "", new: str = "\n# edited\n") -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new) if old else text + new)


def configured(*words: str):
    return load([*SHORT, *words], "my_conf")


def plan_of(*words: str):
    return make_plan(configured(*words), [])


def told(run: Path) -> str:
    """Return what `kdrun eval RUN` prints about changed code."""
    target = target_of_run(run, Which(trust=True), {})
    return changed_code(run, target.config, target.parts)


def runs(outputs: Path) -> dict[str, list[str]]:
    """method -> its run directories."""
    found: dict[str, list[str]] = {}
    for path in sorted((outputs / "runs").glob("*/*/*/*/result.json")):
        found.setdefault(path.parent.parent.name, []).append(path.parent.name)
    return found


def test_an_edited_helper_makes_a_new_run(kdrun, outputs, project):
    """An edit two imports away: the same command starts a new run, prints one line, and leaves the old run untouched."""
    words = ["train", *SHORT, "method=none", "student=nets.small:Net"]
    code, out, err = kdrun(*words)
    assert (code, err) == (0, "")
    assert "has changed" not in out
    (first,) = (outputs / "runs").glob("*/*/*/*")
    edit(project / "nets/parts/sizes.py", "4", "12")
    code, out, err = kdrun(*words)
    assert (code, err) == (0, "")
    assert out.count("note: ") == 1
    assert f"note: nets/parts/sizes.py has changed since {first.name}, so this is a new run" in out
    widths = {}
    for run in (outputs / "runs").glob("*/*/*/*"):
        with safe_open(run / "student.safetensors", "pt") as weights:
            widths[run.name] = weights.get_slice("0.0.weight").get_shape()[0]
        names = [
            "nets/__init__.py",
            "nets/parts/__init__.py",
            "nets/parts/blocks.py",
            "nets/parts/sizes.py",
            "nets/small.py",
        ]
        assert sorted(str(path.relative_to(run / "code")) for path in (run / "code").rglob("*.py")) == names
        provenance = json.loads((run / "provenance.json").read_text())
        assert list(provenance["code"]) == names and str(project) not in json.dumps(provenance["code"])
        assert f"WIDTH = {widths[run.name]}" in (run / "code/nets/parts/sizes.py").read_text()
    assert sorted(widths.values()) == [4, 12] and widths[first.name] == 4
    assert "already done" in kdrun(*words)[1]
    edit(project / "nets/parts/sizes.py", "12", "4")
    assert first.name in kdrun(*words)[1]
    assert len(runs(outputs)["none"]) == 2


@pytest.mark.parametrize("method", ["method=alpha", "method=dml", "method=kd"])
def test_whose_file_changes_whose_digest(method, project):
    config = configured(method, "teacher=tutor:build", "student=nets.small:Net")
    for variant in ({}, {"random": True}):
        for key, value in variant.items():
            setattr(config.teacher, key, value)
        for name in (
            "nets/small.py",
            "nets/parts/blocks.py",
            "nets/parts/sizes.py",
            "losses/mine.py",
            "losses/base.py",
            "tutor.py",
            "tutor_parts.py",
            "unrelated.py",
        ):
            before = make_plan(config, [])
            edit(project / name)
            after = make_plan(config, [])
            used = name != "unrelated.py" and (not name.startswith("losses") or method == "method=alpha")
            assert (before.digest != after.digest) == used, name
            taught = name.startswith("tutor") and method != "method=dml"
            assert (before.teacher_digest != after.teacher_digest) == taught, name
            assert before.code.settings == after.code.settings


def test_a_checkpoint_is_of_its_code(project, tmp_path):
    """The code that weights are loaded into decides what they compute."""
    (tmp_path / "weights.pt").write_bytes(b"weights")
    config = configured(
        "method=kd", "teacher=tutor:build", "student=resnet8", f"teacher.checkpoint={tmp_path}/weights.pt"
    )
    before = make_plan(config, [])
    edit(project / "tutor_parts.py")
    assert make_plan(config, []).digest != before.digest


def test_a_digest_is_of_content_alone(project, tmp_path, monkeypatch):
    """Another folder, another line ending, another time."""
    words = ["method=alpha", "teacher=tutor:build", "student=nets.small:Net"]
    here = plan_of(*words)
    other = tmp_path / "elsewhere"
    write(other, FILES)
    for file in other.rglob("*.py"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.chdir(other)
    monkeypatch.setattr(sys, "path", [str(other), *(entry for entry in sys.path if entry != str(project))])
    there = plan_of(*words)
    assert there.code.files["tutor.py"].path.startswith(str(other))
    assert (here.digest, here.teacher_digest) == (there.digest, there.teacher_digest)
    plain = plan_of("method=kd", "teacher=resnet8", "student=resnet8")
    assert plain.code.files == {}


def test_what_is_followed(project):
    """Imports are followed in any position and form; a module that is missing or unreadable is left to the import."""
    write(
        project,
        {
            "start.py": """
            import json, numpy, torch, kdrun.methods.kd
            import spaces.inner.leaf as leaf
            from everything import *
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                import typed
            def late():
                import importlib
                importlib.import_module("named")
                importlib.import_module(".sibling", package="everything")
                importlib.import_module("made" + "up")
                import broken, latin, absent
            """,
            "spaces/inner/leaf.py": "import start\n",
            "spaces/inner/unused.py": "",
            "everything/__init__.py": "__all__ = ['listed', 'absent']\nimport everything.far.deep\n",
            "everything/listed.py": "from ... import beyond\n",
            "everything/far/__init__.py": "",
            "everything/far/deep.py": "from ...absent import x\nfrom .. import listed\n",
            "everything/not_listed.py": "",
            "typed.py": "",
            "named.py": "",
            "madeup.py": "",
            "broken.py": "def (:\n",
        },
    )
    (project / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nimport unrelated  # größer\n".encode("latin-1"))
    found = own_code(["start"])
    assert list(found) == [
        "broken.py",
        "everything/__init__.py",
        "everything/far/__init__.py",
        "everything/far/deep.py",
        "everything/listed.py",
        "latin.py",
        "named.py",
        "spaces/inner/leaf.py",
        "start.py",
        "typed.py",
        "unrelated.py",
    ]
    for word in (
        "json",
        "numpy.random",
        "torch.nn",
        "kdrun.methods.kd",
        "absent",
        "",
        ".",
        "a..b",
        "../project/start",
        "/etc/passwd",
    ):
        assert own_code([word]) == {}, word


def test_what_is_no_python_counts_by_its_content(project):
    binary = project / "fast.abi3.so"
    binary.write_bytes(b"\x7fELF\x00")
    write(project, {"user.py": "import fast, long\n"})
    (project / "long.py").write_text("x = 1  # " + "x" * LARGEST)
    first = own_code(["user"])
    assert list(first) == ["fast.abi3.so", "long.py", "user.py"]
    assert first["fast.abi3.so"].source is first["long.py"].source is None
    binary.write_bytes(b"\x7fELF\x01")
    assert digests(own_code(["user"])) != digests(first)
    with pytest.raises(RunError, match=r"abi3\.so has changed since this run was planned"), pinned(first.values()):
        pass


def test_the_first_folder_that_has_it(project, tmp_path, monkeypatch):
    """As an import does; an archive on the path is skipped."""
    write(tmp_path / "second", {"unrelated.py": "VALUE = 2\n", "only_here.py": ""})
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("packed.py", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packed.zip"), *sys.path, str(tmp_path / "second")])
    assert own_code(["unrelated", "only_here", "packed"]).keys() == {"unrelated.py", "only_here.py"}
    assert b"VALUE = 1" in (own_code(["unrelated"])["unrelated.py"].source or b"")


def test_an_editable_install_is_own_and_an_installed_package_is_not(project, tmp_path, monkeypatch):
    from importlib.util import spec_from_file_location

    write(
        tmp_path,
        {
            "checkout/hooked/__init__.py": "from . import more\n",
            "checkout/hooked/more.py": "",
            "lib/site-packages/installed.py": "",
        },
    )

    class Hook:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "explosive":
                raise RuntimeError
            return spec_from_file_location(name, tmp_path / "checkout/hooked/__init__.py") if name == "hooked" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Hook])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "lib/site-packages")])
    assert list(own_code(["hooked", "installed", "explosive"])) == ["hooked/__init__.py", "hooked/more.py"]


def test_two_classes_in_one_module(kdrun, outputs, project):
    """Together and one by one, each under its YAML's name; then one line for all, when their code changes."""
    words = [*SHORT, "student=nets.small:Net", "teacher=resnet8", "teacher.random=true", *OWN, "launcher.processes=0"]
    code, out, err = kdrun("train", "-m", "method=alpha,beta", *words)
    assert (code, err) == (0, "")
    before = runs(outputs)
    assert before.keys() == {"alpha", "beta"}
    losses = {}
    for path in (outputs / "runs").rglob("metrics.csv"):
        (row,) = [line for line in path.read_text().splitlines() if ",train,loss," in line]
        losses[path.parent.parent.name] = float(row.rpartition(",")[2])
    assert losses["alpha"] > 0 > losses["beta"]
    for name in ("alpha", "beta"):
        _, out, _ = kdrun("train", f"method={name}", *words[:-1])
        assert "already done" in out and f"/{name}/{before[name][0]}" in out
    edit(project / "losses/base.py", "self.sign * self.scale", "self.sign")
    code, out, err = kdrun("train", "-m", "method=alpha,beta", *words)
    assert (code, err) == (0, "")
    assert out.count("has changed since") == 1
    assert f"losses/base.py has changed since {before['alpha'][0]} and others, so these are 2 new runs" in out
    assert {name: len(found) for name, found in runs(outputs).items()} == {"alpha": 2, "beta": 2}


def test_a_teacher_is_trained_anew_and_the_old_run_keeps_its_own(kdrun, outputs, project):
    words = ["train", *SHORT, "method=kd", "teacher=tutor:build", "student=resnet8"]
    assert kdrun(*words)[0] == 0
    (run,) = (outputs / "runs").glob("*/*/*/*")
    (teacher,) = (outputs / "teachers").glob("*/*/*")
    assert sorted(path.name for path in (teacher / "code").iterdir()) == ["tutor.py", "tutor_parts.py"]
    edit(project / "tutor_parts.py", "nn.ReLU()", "nn.Tanh()")
    code, out, err = kdrun("eval", str(run))
    assert (code, err) == (0, "") and "tutor_parts.py changed since; KL, agreement and CKA are left out." in out
    code, out, err = kdrun("eval", str(run), "trust=true")
    assert code == 0 and "vs teacher tutor:build" in out
    assert err.count("note: ") == 2 and "note: tutor_parts.py changed since" in err and f"{run.name}/code." in err
    code, out, err = kdrun(*words)
    assert (code, err) == (0, "")
    assert f"note: tutor_parts.py has changed since {run.name}, so this is a new run" in out
    assert f"note: tutor_parts.py has changed since teacher {teacher.name}, so the teacher is trained again" in out
    assert len(list((outputs / "teachers").glob("*/*/*"))) == 2
    newer = next(path for path in (outputs / "runs").glob("*/*/*/*") if path != run)
    assert told(newer) == ""
    _, out, _ = kdrun("compare", str(run), str(newer))
    assert "own code" in out and "the settings are the same" not in out


def test_a_loss_that_changed_says_nothing_of_a_network(kdrun, outputs, project):
    assert (
        kdrun(
            "train", *SHORT, "method=alpha", "student=nets.small:Net", "teacher=resnet8", "teacher.random=true", *OWN
        )[0]
        == 0
    )
    (run,) = (outputs / "runs").glob("*/*/*/*")
    edit(project / "losses/mine.py")
    assert told(run) == ""
    edit(project / "nets/small.py")
    assert told(run).startswith("nets/small.py changed since ")


def test_a_queue_trains_what_was_planned(outputs, project):
    """An edit between the planning and the start, in another process: the plan brings its code along."""
    from kdrun.sweeps.worker import Ended, Task, run_task

    plan = plan_of("method=none", "student=nets.small:Net")
    edit(project / "nets/parts/sizes.py", "4", "12")
    reports = []
    run_task(Task("lanes", [pickle.loads(pickle.dumps(plan))], ""), reports.append, PlainDisplay())
    (result,) = [report.result for report in reports if isinstance(report, Ended)]
    assert result["digest"] == plan.digest
    with safe_open(plan.run.path / "student.safetensors", "pt") as weights:
        assert weights.get_slice("0.0.weight").get_shape()[0] == 4
    assert (plan.run.path / "code/nets/parts/sizes.py").read_text() == FILES["nets/parts/sizes.py"]
    assert import_own("nets.parts.sizes").WIDTH == 12


def test_a_sweep_is_of_one_state_of_the_code(project):
    with read_once():
        first = own_code(["nets.small"])
        edit(project / "nets/parts/sizes.py", "4", "12")
        assert own_code(["nets.small", "tutor"]).items() > first.items()
    assert digests(own_code(["nets.small"])) != digests(first)


def test_imports_see_edits_and_pins_do_not(project):
    assert import_own("nets.parts.sizes").WIDTH == 4
    kept = own_code(["nets.parts.sizes"])
    edit(project / "nets/parts/sizes.py", "4", "5")
    assert import_own("nets.parts.sizes").WIDTH == 5
    with pinned(kept.values()):
        assert import_own("nets.parts.sizes").WIDTH == 4
    assert import_own("nets.parts.sizes").WIDTH == 5
    now = own_code(["nets.parts.sizes"])
    with pytest.raises(RunError, match=r"nets/parts/sizes\.py has changed"), pinned([*kept.values(), *now.values()]):
        pass


def test_what_was_imported_elsewhere_is_not_trusted(project, monkeypatch):
    """A notebook may have imported the module before; a module of the standard library is never replaced."""
    monkeypatch.delitem(sys.modules, "unrelated", raising=False)
    before = importlib.import_module("unrelated")
    edit(project / "unrelated.py", "1", "2")
    assert (before.VALUE, import_own("unrelated").VALUE) == (1, 2)
    write(project, {"json.py": "", "uses_json.py": "import json\n"})
    assert "json.py" in own_code(["uses_json"])
    assert import_own("uses_json").json is json


def test_what_no_statement_imports_is_said(kdrun, project):
    write(project, {"plugin.py": "x = 1\n"})
    edit(project / "tutor.py", "from tutor_parts", "__import__('plug' + 'in')\n    from tutor_parts")
    _, out, _ = kdrun("train", *SHORT, "method=none", "student=tutor:build")
    assert "note: no import statement names plugin, so changes there will not be noticed" in out


def test_a_syntax_error_in_a_helper_is_one_line(kdrun, project):
    edit(project / "nets/parts/sizes.py", "WIDTH", "WIDTH WIDTH")
    code, _, err = kdrun("train", *SHORT, "method=none", "student=nets.small:Net")
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and "nets.small:Net: cannot import" in err and "sizes.py, line 2" in err
    edit(project / "losses/base.py", "import torch.nn.functional as F", "import absent")
    code, _, err = kdrun(
        "train", *SHORT, "method=alpha", "student=resnet8", "teacher=resnet8", "teacher.random=true", *OWN
    )
    assert code == 2
    assert (
        len(err.strip().splitlines()) == 1
        and "cannot import losses.mine: ModuleNotFoundError: No module named 'absent' (losses/base.py, line 1)" in err
    )


def test_methods_are_called_by_their_yaml(project, tmp_path):
    write(
        project,
        {
            "my_conf/method/warm.yaml": "_target_: kdrun.methods.kd.KD\ntemperature: 8\nce_weight: 0.1\nkd_weight: 0.9\n",
            "my_conf/method/same.yaml": "_target_: kdrun.methods.kd.KD\ntemperature: 4\nce_weight: 0.1\nkd_weight: 0.9\n",
        },
    )
    plans = {
        name: plan_of(f"method={name}", "teacher=resnet8", "student=resnet8") for name in ("warm", "same", "kd", "none")
    }
    for name, plan in plans.items():
        assert plan.method.name == plan.run.path.parent.name == plan.config.method["_name_"] == name
    assert len({plan.digest for plan in plans.values()}) == 4
    mixed = plan_of(
        "method=combine", "method.parts=[alpha,{method: warm, weight: 2}]", "teacher=resnet8", "student=resnet8"
    )
    assert mixed.method.name == "alpha+warm" and "losses/mine.py" in mixed.code.files
    typed = plan_of(
        "method=none", "method._target_=losses.mine.Alpha", "+method.scale=1", "student=resnet8", "teacher=resnet8"
    )
    assert typed.method.name == "none" and typed.digest != plans["none"].digest
    with pytest.raises(ConfigError, match="publishes no warm for"):
        load(["method=warm", "benchmark=mdistiller", "pair=wrn_40_2_wrn_40_1"], "my_conf")


def test_a_run_remembers_its_methods_name(kdrun, outputs, project):
    assert (
        kdrun("train", *SHORT, "method=alpha", "student=resnet8", "teacher=resnet8", "teacher.random=true", *OWN)[0]
        == 0
    )
    (run,) = (outputs / "runs").glob("*/*/*/*")
    assert json.loads((run / "result.json").read_text())["method"] == "alpha"
    assert method_of(read_config(run)[0].method).name == "alpha"
    edit(run / "config.yaml", "  _name_: alpha\n", "")  # as it was written before names were kept
    assert method_of(read_config(run)[0].method).name == "mine"
    words = [*SHORT, "method=alpha", "student=resnet8", "teacher=resnet8", "teacher.random=true", *OWN]
    assert kdrun("where", "run", *words)[1].strip() == str(run)


def test_own_names_before_aliases(project):
    from kdrun.sweeps.definition import multirun_sweep

    words = ["teacher=resnet8", "student=resnet8"]
    assert plan_of("method=hints", *words).method.name == "fitnet_joint"
    write(project, {"my_conf/method/hints.yaml": FILES["my_conf/method/beta.yaml"]})
    assert plan_of("method=hints", *words).config.method["_target_"] == "losses.mine.Beta"
    assert plan_of("method=combine", "method.parts=[hints,lm]", *words).method.name == "hints+kd"
    specs = multirun_sweep(["method=hints,lm"], None, "my_conf").specs
    assert [spec.overrides for spec in specs] == [["method=hints"], ["method=kd"]]
    write(project, {"my_conf/method/kd.yaml": FILES["my_conf/method/beta.yaml"]})
    for chosen in (["method=kd"], ["method=combine", "method.parts=[kd]"]):
        with pytest.raises(ConfigError, match=r"method/kd\.yaml: kdrun already has method=kd"):
            plan_of(*chosen, *words)
