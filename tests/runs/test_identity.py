"""The settings of a method that are part of a run's identity."""

from __future__ import annotations

from kdrun.config.compose import load
from kdrun.runs.identity import method_identity


def test_a_setting_younger_than_its_method_renames_no_older_run():
    node = load(["method=at"]).method
    older = {key: value for key, value in node.items() if key != "power"}
    assert node["power"] == 2 and method_identity(node) == method_identity(older) == older
    assert method_identity({**node, "power": 4.0}) == {**older, "power": 4.0}
    both = load(["method=combine", "method.parts=[{method: at, power: 2}, {method: srd, feature_means: true}]"]).method
    at, srd = method_identity(both)["parts"]
    assert "power" not in at and srd["feature_means"] is True


def test_an_own_methods_default_is_part_of_its_identity(tmp_path, monkeypatch):
    (tmp_path / "own_at.py").write_text(
        "from kdrun.methods.at import AT\n\n\nclass Mine(AT):\n    def __init__(self, *, power: float = 2.0):\n        pass\n"
    )
    monkeypatch.chdir(tmp_path)
    node = {"_target_": "own_at.Mine", "power": 2.0}
    assert method_identity(node) == node
