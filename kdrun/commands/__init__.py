"""One module per command; `run_command` imports only the one that is asked for."""

from __future__ import annotations

import importlib


def run_command(name: str, words: list[str]) -> int:
    """Call kdrun.commands.<name>.command(words) and return its exit code."""
    module = importlib.import_module(f"kdrun.commands.{name}")
    if any(word in ("-h", "--help") for word in words):
        print(module.HELP.strip())
        return 0
    return module.command(words)
