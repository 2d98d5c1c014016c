"""Data structures passed between engine, models and methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdrun.draws import Draws, Numbers
from kdrun.shares import Share

# Everything a method may request from a network in addition to its logits.
FEATURES = frozenset({"maps", "preact", "pooled", "tokens", "attention", "heads"})


class Mixed(NamedTuple):
    """Second half of each sample's label after mixup or CutMix: label [N] int64 of the other image, share [N]
    float32 of the first."""

    label: Tensor
    share: Tensor


@dataclass(frozen=True)
class Batch:
    """One mini-batch on the training device.

    image [N, C, H, W] normalised float32 in channels-last memory; label [N] int64; index [N] int64, the sample's
    position in the training set; teacher_image [N, C, H, W], which is `image` itself unless `teacher_view` differs;
    strong [N, C, H, W], a strongly augmented view, if the method requests it in `views`; mixed: the second half of each
    label if images are mixed, used by `kdrun.methods.losses.hard_label_loss`.

    share: the images of this process if several train together; None: all. A method with `batch_terms = "batch"` then
    gets the labels and index of the whole batch, but only this process's images, whose index is `image_index`.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    teacher_image: Tensor
    strong: Tensor | None = None
    mixed: Mixed | None = None
    share: Share | None = None

    @property
    def image_index(self) -> Tensor:
        """Return the index of the samples in `image`."""
        if self.share is None or len(self.index) == self.share.own:
            return self.index
        return self.index[self.share.rows]


def applied(function: Callable[[Tensor], Tensor], value: object) -> object:
    """Return `value` with `function` applied to every tensor in it.

    A closure that called itself would be a cycle, and keep what `function` holds until Python's next collection.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(applied(function, item) for item in value)
    if isinstance(value, dict):
        return {key: applied(function, item) for key, item in value.items()}
    return value


class Outputs(NamedTuple):
    """Outputs of a network; everything but `logits` is None unless it was requested.

    logits [N, K]; maps: stage maps [N, C, H, W], the stem first, the deepest last; preact: the same before each
    stage's last activation; pooled [N, D], the classifier's input; tokens: patch tokens [N, L, D] of the last block,
    prefix [N, P, D] its class and distillation tokens; attention: (q, k, v) of the last block, each
    [N, heads, P + L, d]; heads: further logits by name, such as "dist" [N, K]; map_prefix: the prefix tokens
    [N, P, D] at each of the stage maps, if both maps and tokens were requested.
    """

    logits: Tensor
    maps: tuple[Tensor, ...] | None = None
    preact: tuple[Tensor, ...] | None = None
    pooled: Tensor | None = None
    tokens: Tensor | None = None
    prefix: Tensor | None = None
    attention: tuple[Tensor, Tensor, Tensor] | None = None
    heads: dict[str, Tensor] | None = None
    map_prefix: tuple[Tensor, ...] | None = None

    def apply(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Return the outputs with `function` applied to every tensor in them."""
        return Outputs(*(applied(function, value) for value in self))  # type: ignore[arg-type]

    def float(self) -> Outputs:
        """Return the outputs in float32: softmax, Pearson correlation and norms lose too much in half precision."""
        return self.apply(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def only(self, needs: frozenset[str]) -> Outputs:
        """Return the outputs without those that `needs` does not name. Prefix tokens are kept with the tokens (and
        maps)."""
        kept = needs | {"logits"} | ({"prefix"} if "tokens" in needs else set())
        if {"maps", "tokens"} <= needs:
            kept |= {"map_prefix"}
        return Outputs(*(value if name in kept else None for name, value in zip(self._fields, self, strict=True)))  # type: ignore[arg-type]

    def at(self, stages: frozenset[int] | None) -> Outputs:
        """Return the outputs with None for every map except those of `stages` (negative: counted from the end). None
        keeps all."""
        if stages is None:
            return self

        def thin(values: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            if values is None:
                return None
            kept = {stage % len(values) for stage in stages}
            return tuple(value if place in kept else None for place, value in enumerate(values))  # type: ignore[misc]

        return self._replace(maps=thin(self.maps), preact=thin(self.preact), map_prefix=thin(self.map_prefix))


def filled(image: Tensor, size: int) -> Tensor:
    """Repeat the images of a small batch up to `size`; return a larger batch unchanged.

    On some CPUs the last bits of a row of a matrix product depend on the number of rows, so a network's output for an
    image is reproducible only if all batches have the same shape.
    """
    count = len(image)
    return image if count >= size else torch.cat([image] * -(-size // count))[:size]


@dataclass(frozen=True)
class Spec:
    """Measured output shapes of one network, without the batch dimension.

    The first `stems` maps belong to the network's stem, which no method pairs. `classifier` maps pooled [N, D] to
    logits [N, K]; None if the network has no such single module. `head_modules` maps a token [..., D] to the logits of
    each of `heads`.
    """

    num_classes: int
    image_size: int
    maps: tuple[tuple[int, int, int], ...] = ()
    preact: tuple[tuple[int, int, int], ...] | None = None
    stems: int = 0
    pooled: int | None = None
    tokens: tuple[int, int] | None = None
    prefix: int = 0
    attention: tuple[int, int, int] | None = None
    heads: tuple[str, ...] = ()
    classifier: nn.Module | None = None
    head_modules: dict[str, nn.Module] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSpec:
    """Properties of the training set that a method may use: memory banks and their negatives need sizes and labels.

    labels [num_samples] int64 on the CPU, in the order of `Batch.index`.
    """

    num_samples: int
    labels: Tensor
    num_classes: int
    image_size: int


@dataclass
class Progress:
    """Current position in training. epoch and step count from 0.

    A method takes every random number from `draws`, which is the same after a resume, in any lane and on any device. It
    takes values that it computes from `epoch` and `step` through `number`: a plain number in a kernel would keep the
    value that it had when a CUDA graph of the step was recorded.
    """

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    draws: Draws = Draws(0, 0, 0)
    numbers: Numbers | None = None

    @property
    def first(self) -> bool:
        """Return True at the very first step, which is never recorded."""
        return not (self.epoch or self.step)

    def number(self, function: Callable[[Progress], float], dtype: torch.dtype = torch.float32) -> Any:
        """Return function(self): a number on a CPU; on a GPU a scalar tensor of `dtype` at a fixed address.

        float64 multiplies tensors with dimensions as a plain number does, but would make a scalar term float64.
        """
        return function(self) if self.numbers is None else self.numbers.get(function, dtype)
