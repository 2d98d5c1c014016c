"""Checks of an export: does the file compute the same as the network, and what are its size and speed?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdrun.data.splits import AnySet, ArraySet
from kdrun.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdrun.evaluation.deployed import Card

TOLERANCE = 1e-4  # relative to the largest logit: covers a different order of float32 summation
CHUNK = 64
ROUNDS, ROUND_SECONDS = 5, 0.3
Forward = Callable[[np.ndarray], np.ndarray]


@dataclass
class Form:
    """Form of the network. exact: True if it must agree to `TOLERANCE`, else its accuracy may drop; forward: RGB in
    [0, 1], [N, 3, S, S], to logits [N, K]; difference: max |Δlogit| to the network; scale: its max |logit|; top1 in
    percent; milliseconds for one image and for a batch of `CHUNK`."""

    name: str
    forward: Forward
    exact: bool
    path: Path | None = None
    difference: float = 0.0
    scale: float = 0.0
    right: int = 0
    top1: float = 0.0
    one: float = 0.0
    many: float = 0.0
    problem: str = ""
    size: int = 0  # bytes of `path`, which may be removed later

    def __post_init__(self) -> None:
        self.size = 0 if self.path is None else self.path.stat().st_size


def module_forward(model: nn.Module) -> Forward:
    """Return a PyTorch module's forward as that of a form."""
    import torch

    def forward(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(image)).float().numpy()

    return forward


def images_of(part: AnySet, card: Card, size: int = CHUNK) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (images [n, 3, S, S] in [0, 1], labels [n]) of a split, prepared as for evaluation. Raises DataError for
    an unreadable file."""
    from kdrun.data.inference import read_batches

    if isinstance(part, ArraySet):
        for start in range(0, len(part), size):
            piece = part.take(np.arange(start, min(start + size, len(part))))
            yield card.unit(np.ascontiguousarray(piece.images)).numpy(), piece.labels
        return
    paths = [part.root / name for name in part.paths]
    for number, batch in enumerate(read_batches(paths, card.preparation, size)):
        for path, reason in batch.unreadable:
            raise DataError(f"image {path} cannot be read ({reason}); repair or remove it.")
        yield card.unit(batch.pixels).numpy(), part.labels[number * size : (number + 1) * size]


def compare(
    forms: list[Form], part: AnySet, card: Card, track: Callable[[Iterator[int], int, str], Iterator[int]]
) -> None:
    """Measure difference and accuracy of every form over all images of `part`. The first form is the network itself."""
    reference, *others = forms

    def steps() -> Iterator[int]:
        for number, (image, label) in enumerate(images_of(part, card)):
            expected = reference.forward(image)
            reference.right += int((expected.argmax(1) == label).sum())
            for form in others:
                found = form.forward(image)
                change = np.abs(found - expected).max()
                form.difference = max(form.difference, float(np.inf if np.isnan(change) else change))
                form.scale = max(form.scale, float(np.abs(expected).max()))
                form.right += int((found.argmax(1) == label).sum())
            yield number

    for _ in track(steps(), -(-len(part) // CHUNK), f"comparing {len(forms)} forms on {len(part):,} images"):
        pass
    for form in forms:
        form.top1 = 100 * form.right / len(part)


def judge(forms: list[Form], max_drop: float) -> None:
    """Set `problem` for every form that does not pass. max_drop: percentage points of top-1."""
    reference, *others = forms
    for form in others:
        if form.exact and not form.difference <= TOLERANCE * form.scale:
            form.problem = f"max |Δlogit| {form.difference:.2g} is above {TOLERANCE:g} · {form.scale:.3g}"
        elif not form.exact and reference.top1 - form.top1 > max_drop:
            form.problem = f"top-1 falls by {reference.top1 - form.top1:.2f} points, max_drop={max_drop:g}"


def clock(forms: list[Form], card: Card) -> None:
    """Measure the median milliseconds of each form, alternating between forms, so that a busy moment affects all of
    them."""
    side = card.input_size
    for count, field in ((1, "one"), (CHUNK, "many")):
        image = np.random.default_rng(0).random((count, 3, side, side), dtype=np.float32)
        times: list[list[float]] = [[] for _ in forms]
        for _ in range(ROUNDS):
            for form, kept in zip(forms, times, strict=True):
                form.forward(image)
                end = time.perf_counter() + ROUND_SECONDS / 2
                while not kept or time.perf_counter() < end:
                    start = time.perf_counter()
                    form.forward(image)
                    kept.append(time.perf_counter() - start)
        for form, kept in zip(forms, times, strict=True):
            setattr(form, field, 1000 * float(np.median(kept)))


def deployable(model: nn.Module, card: Card) -> nn.Module:
    """Return `model` with its normalisation in front: RGB in [0, 1] to logits, in float32 on the CPU."""
    import torch
    from torch import nn

    class Normalised(nn.Module):
        """Network with its normalisation: (image - mean) / std, then the network."""

        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            for name, values in (("mean", card.mean), ("std", card.std)):
                self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.model((image - self.mean) / self.std)

    return Normalised().float().cpu().eval()
