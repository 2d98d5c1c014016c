"""Every setting is explained: what it means, its type, its bounds and its default."""

from __future__ import annotations

import pytest

from kdrun.config.explained import every_setting, explain_setting
from kdrun.config.settings import settings
from kdrun.errors import ConfigError


def test_every_setting_has_a_meaning_and_a_type():
    plain = [item for item in every_setting() if item.key in settings()]
    assert [item.key for item in plain] == [key for key, known in settings().items() if not known.is_group]
    assert all(item.meaning and item.kind and item.default for item in plain)
    assert all("help" in known.rules for known in settings().values())


def test_a_setting_has_its_bounds_default_and_the_values_of_its_groups():
    (rate,) = explain_setting("optimizer.lr")
    assert (rate.kind, rate.bounds, rate.default) == ("a number", "above 0, at most 100", "0.1")
    assert ("optimizer=cifar", "0.05") in rate.others
    (resize,) = explain_setting("dataset.resize")
    assert resize.kind == "stretch | fit | crop"
    (threads,) = explain_setting("threads")
    assert (threads.kind, threads.default) == ("a whole number, or null", "null")
    (logger,) = explain_setting("logger")
    assert logger.kind == "a list of tensorboard | wandb"


def test_a_method_setting_is_explained_for_each_method_that_has_it():
    found = {item.key: item for item in explain_setting("method.temperature")}
    assert found["method.temperature of method=kd"].default == "4"
    assert "RepDistiller" in found["method.temperature of method=kd"].meaning
    assert len(found) > 5


def test_a_group_lists_its_settings():
    first, *inner = explain_setting("dataset.augment")
    assert first.kind == "a group"
    assert [item.key for item in inner][:2] == ["dataset.augment.crop", "dataset.augment.crop_padding"]
    assert explain_setting("optimizer")[0].kind == "a group: optimizer=NAME"


@pytest.mark.parametrize("key", ["sweep", "name", "dry_run", "launcher.processes"])
def test_words_of_sweeps_are_explained(key):
    assert explain_setting(key)[0].meaning


def test_what_is_none_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean optimizer\.lr"):
        explain_setting("optimizr.lr")


def test_the_command_explains_settings_and_methods(kdrun):
    code, out, _ = kdrun("explain", "optimizer.schedule")
    assert code == 0
    assert "constant | multistep | step | cosine | one_cycle" in out
    assert kdrun("explain", "optimizer.schedule=cosine")[1] == out
    assert "Hinton" in kdrun("explain", "method=kd")[1]
    assert "Hinton" in kdrun("explain", "kd")[1]
    assert "method.kd_weight of method=kd" in kdrun("explain", "method.kd_weight")[1]
    code, _, err = kdrun("explain", "epoch")
    assert (code, "Did you mean epochs?" in err) == (2, True)
    assert len(kdrun("list", "settings")[1].splitlines()) > 110
