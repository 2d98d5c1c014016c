"""Bounds of the methods' hyperparameters, by name."""

from __future__ import annotations

from typing import Any

from kdrun.config.options import LARGEST_RATE, MOST_EPOCHS

# Bounds by hyperparameter name or ending. The names are the field's terms, so they mean the same in every method.
METHOD_RULES: dict[str, dict[str, Any]] = {
    "temperature": {"over": 0, "high": 10_000},
    "_temperature": {"over": 0, "high": 10_000},
    "smoothing": {"low": 0, "under": 1},
    "_epochs": {"low": 0, "high": MOST_EPOCHS},
    "_weight": {"low": 0, "high": 1e6},
    "_lr": {"over": 0, "high": LARGEST_RATE},
    "_decay": {"low": 0, "high": LARGEST_RATE},
    "momentum": {"low": 0, "under": 1},
    "_momentum": {"low": 0, "under": 1},
    "bottleneck": {"low": 1, "high": 1024},
}
# For kdrun's own methods only: names that mean something else elsewhere.
OUR_METHOD_RULES: dict[str, dict[str, Any]] = {
    "temperature_start": {"over": 0, "high": 10_000},
    "temperature_range": {"low": 0, "high": 10_000},
    "alpha": {"low": 0, "high": 1},
    "dropout": {"low": 0, "under": 1},
    "replaced": {"low": 0, "high": 1},
    "transformed": {"low": 0, "high": 1},
    "_dropped": {"low": 0, "under": 1},
    "eps": {"low": 0, "high": 100},
    "gamma": {"low": 0, "high": 100},
    "initial_variance": {"over": 0, "high": 1e6},
    "embedding": {"low": 1, "high": 65_536},
    "negatives": {"low": 1, "high": 2**24},
    "words": {"low": 1, "high": 65_536},
    "power": {"low": 1, "high": 16},
}


def method_rules(name: str, ours: bool) -> dict[str, Any]:
    """Return the rules of a method's hyperparameter. ours: True for one of kdrun's own methods."""
    rules = {**METHOD_RULES, **(OUR_METHOD_RULES if ours else {})}
    return next((rule for end, rule in rules.items() if name == end or (end[0] == "_" and name.endswith(end))), {})
