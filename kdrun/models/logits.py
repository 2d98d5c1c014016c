"""Location of the logits in a network's output: alone, or in tuples, lists, dictionaries and dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Names of the entry to prefer if several fit, in this order.
NAMES = (
    "logits",
    *("out", "output", "outputs", "pred", "preds", "prediction", "predictions"),
    *("cls_score", "cls_scores", "scores", "score", "classes", "cls"),
)
BESIDE = ("aux", "feat", "emb", "hidden", "proj")  # first letters of the names of what is no network's answer
DEEPEST = 6  # levels of nesting that are searched

Key = Any  # a mapping's key, a sequence's index or an attribute's name


@dataclass(frozen=True)
class Entry:
    """Tensor in a network's output. route: the keys that lead to it; words: the names among these; label: the route
    as text."""

    tensor: Tensor
    route: tuple[Key, ...] = ()
    words: tuple[str, ...] = ()
    label: str = ""

    def fits(self, count: int, classes: int) -> bool:
        """Return True if it has the shape of logits of `count` images: [N, K], or [N, K, 1, 1] and the like."""
        shape = self.tensor.shape
        alone = self.tensor.numel() == count * classes and shape[:1] == (count,) and classes in shape[1:]
        return alone and self.tensor.is_floating_point()

    @property
    def rank(self) -> tuple[int, int]:
        """Return the rank by names, then by depth; the lower, the more likely it is the logits."""
        named = ["logits" if "logit" in word else word for word in self.words]  # class_logits, logits_per_image
        names = [NAMES.index(word) for word in named if word in NAMES]
        beside = any(word.startswith(BESIDE) for word in self.words)
        return len(NAMES) + 1 if beside else min(names, default=len(NAMES)), len(self.route)


class TakeLogits:
    """Forward hook that returns only the logits [N, K]. routes: the keys that lead to them, for training mode and
    for evaluation."""

    def __init__(self, routes: dict[bool, tuple[Key, ...]]):
        self.routes = routes

    def __call__(self, module: nn.Module, inputs: object, output: Any) -> Tensor:
        for key in self.routes[module.training]:
            output = output[key] if isinstance(output, Mapping | tuple | list) else getattr(output, key)
        return output.flatten(1) if output.dim() > 1 else output.unsqueeze(0)  # squeeze() takes a batch of one away


def find_logits(output: Any, count: int, classes: int) -> tuple[Entry | None, list[Entry]]:
    """Return (the logits of `count` images, the other candidates).

    Preferred among several: the one with the earliest of `NAMES`, then the least nested, then the first.
    """
    fitting = [entry for entry in entries(output) if entry.fits(count, classes)]
    chosen = min(fitting, key=lambda entry: entry.rank, default=None)
    return chosen, [entry for entry in fitting if entry is not chosen]


def are_probabilities(logits: Tensor) -> bool:
    """Return True if each row of [N, K] is a distribution: none negative, and a sum of 1."""
    rows = logits.flatten(1).float()
    return (
        rows.shape[1] > 1
        and bool((rows >= 0).all())
        and torch.allclose(rows.sum(1), rows.new_ones(len(rows)), atol=1e-3)
    )


def entries(output: Any, route: tuple[Key, ...] = (), words: tuple[str, ...] = (), label: str = "") -> Iterator[Entry]:
    """Yield every tensor of `output`, in its own order."""
    if isinstance(output, Tensor):
        yield Entry(output, route, words, label)
    elif len(route) < DEEPEST:
        for key, word, value in parts_of(output):
            more = () if word is None else (word.lower(),)
            part = f"[{key!r}]" if word is None or isinstance(output, Mapping) else f".{word}"
            yield from entries(value, (*route, key), (*words, *more), label + part)


def parts_of(output: Any) -> list[tuple[Key, str | None, Any]]:
    """Return (key, name if it has one, value) of the items of a container; an empty list for anything else."""
    if isinstance(output, Mapping):
        return [(key, key if isinstance(key, str) else None, value) for key, value in output.items()]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", [None] * len(output))
        return [(place, name, value) for place, (name, value) in enumerate(zip(names, output, strict=True))]
    if isinstance(output, nn.Module | type):
        return []
    if dataclasses.is_dataclass(output):
        names = [field.name for field in dataclasses.fields(output)]
    else:
        names = list(getattr(output, "__dict__", ()))
    return [(name, name, getattr(output, name, None)) for name in names]


def described(output: Any) -> str:
    """Describe `output`: the shapes of its tensors, or its type."""
    shapes = [f"{entry.label or 'a tensor'} {list(entry.tensor.shape)}" for entry in entries(output)]
    more = [f"{len(shapes) - 6} more"] if len(shapes) > 6 else []
    return ", ".join([*shapes[:6], *more]) or ("None" if output is None else f"a {type(output).__name__}")
