"""Command lines that somebody might type: several hundred wrong ones, made from the settings' own types and bounds, end in
one line each."""

from __future__ import annotations

import dataclasses
import importlib
import random
from typing import Any, get_type_hints

import pytest

from kdrun.cli import COMMANDS
from kdrun.config.arguments import NoOptions, plain_type
from kdrun.config.groups import GROUPS
from kdrun.config.settings import settings
from kdrun.runs.plan import make_plan
from tests.config.test_words import UNBOUNDED, bounded
from tests.conftest import TINY

# Values that no number, no choice and no switch has, in every shape that a shell lets through.
NONSENSE = [
    "x",
    "",
    " ",
    "[1",
    "{a",
    "(",
    ")",
    "'a",
    '"',
    "${",
    "${nope}",
    "${oc.env:KDRUN_ABSENT}",
    "${nope:1}",
    "a b",
    "ü",
]
NONSENSE += [
    "\\",
    "$",
    "1,2",
    "[1,[2]]",
    "{a: {b: 1}}",
    "\x1b[31m",
    "1e",
    "--1",
    "0x",
    "null,",
    ":",
    "@",
    "~",
    "\udc80",
    "😀",
]
OF_NUMBERS = ["nan", "inf", "-inf", "-1", "1e400", "-1e400", "9" * 40, "1.5.2", "true", "[]", "{}", "1_", "'1", "٣"]
PREFIXES = ["~", "-", "--", "@", ".", "+", "++", "hydra.", "method.", "teacher.recipe.recipe."]
SUFFIXES = [".x", ".", "@x", "[0]", " ", ".lr.lr"]
GENERATOR = random.Random(0)


def lines_of_train() -> list[str]:
    """A wrong value of every setting, wrong names made of right ones, and groups of which there is none."""
    words = []
    for key, known in settings().items():
        numeric = known.kind in (int, float) or known.numbers
        words.append(f"{key}={GENERATOR.choice(NONSENSE + OF_NUMBERS * numeric)}")
    for key in GENERATOR.sample(list(settings()), 12):
        words.append(GENERATOR.choice(PREFIXES) + key + "=1")
        words.append(key + GENERATOR.choice(SUFFIXES) + "=1")
    for group in GROUPS:
        for value in GENERATOR.sample(NONSENSE, 3):
            words.append(f"{group}={value}")
    return words


def lines_of_commands() -> list[tuple[str, ...]]:
    """Flags and settings that a command has not, and wrong values of those that it has."""
    lines: list[tuple[str, ...]] = []
    for command in COMMANDS:
        if command == "train":
            continue
        kind = getattr(importlib.import_module(f"kdrun.commands.{command}"), "Options", NoOptions)
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            of = plain_type(hints[field.name])
            wrong = ["x", "-1", "", "[1]", "nan", "9" * 30 + ".5"] if of in (int, float) else []
            wrong += ["1.5"] if of is int else []
            wrong += ["perhaps", "", "1"] if of is bool or "choices" in field.metadata else []
            wrong += ["", "file.nope"] if "suffixes" in field.metadata else []
            lines += [
                (command, f"{field.name}={value}") for value in wrong if value not in field.metadata.get("words", ())
            ]
            lines.append((command, f"--{field.name}", "1"))
        lines += [(command, word) for word in ("--foo", "-x", "--lr=3", f"--{command}", "zzyzx=1", "=1", "~seed", "=")]
    return lines


def check_line(code: int, out: str, err: str, what: str) -> None:
    shown = f"{what}\n{out}{err}"
    assert "Traceback" not in out + err, shown
    assert code in (0, 1, 2), shown
    if code:
        errors = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert len(errors) == 1 and errors[0].startswith("error: "), shown
        assert len(errors[0]) > len("error: "), shown
    assert "\x1b" not in err and "\udc80" not in err, shown


def planned(config: Any, overrides: list[str]) -> dict[str, Any]:
    """In place of training: composing, checking and planning is all that a line is tried on here."""
    make_plan(config, overrides)
    return {}


@pytest.mark.parametrize("part", range(4))
def test_wrong_lines_of_train_end_in_one_line(part, kdrun, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdrun.commands.train.train", planned)
    words = lines_of_train()
    assert len(words) > 150
    refused = 0
    for word in words[part::4]:
        code, out, err = kdrun("train", *TINY, word)
        check_line(code, out, err, repr(word))
        refused += code == 2
    assert refused > 0.8 * len(words[part::4])  # some are right: ~seed of a method, a path of any name


@pytest.mark.parametrize("part", range(2))
def test_wrong_lines_of_other_commands_end_in_one_line(part, kdrun, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = lines_of_commands()
    assert len(lines) > 250
    for words in lines[part::2]:
        code, out, err = kdrun(*words)
        check_line(code, out, err, repr(words))
        assert code == 2, (words, out, err)


def test_every_number_of_a_command_has_bounds_or_a_reason_to_have_none():
    reasons = {
        "export.images": "more images than there are means all",
        "gradcam.overlap": "more images than there are means all",
        "predict.top": "more classes than there are means all",
    }
    found = []
    for command in COMMANDS:
        kind = getattr(importlib.import_module(f"kdrun.commands.{command}"), "Options", NoOptions)
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if plain_type(hints[field.name]) in (int, float) and not bounded(field.metadata):
                found.append(f"{command}.{field.name}")
    assert sorted(found) == sorted(reasons)
    assert UNBOUNDED
