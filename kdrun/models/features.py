"""Networks as methods see them: uniform outputs, measured shapes, and the pairing of two networks' stages."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.adapters import make_adapter
from kdrun.models.first_pass import Traits
from kdrun.structures import FEATURES, Outputs, Spec

Shape = tuple[int, int, int]


class Tap(nn.Module):
    """Tap: a network behind the interface that engine and methods use, which returns the requested features with the
    logits.

    needs: which of `kdrun.structures.FEATURES` to return in addition to the logits. The attribute `stages`: which of
    the maps, None for all. input_size: side to which this network's images are resized (bilinear, antialiased).
    data_stats and own_stats: ((mean), (std)) of the incoming images and of the network's training; if they differ,
    images are re-normalised. Checkpoints hold the wrapped model's own state dict. traits: from the first passes.
    """

    def __init__(
        self,
        model: nn.Module,
        image_size: int,
        needs: frozenset[str] = frozenset(),
        input_size: int | None = None,
        data_stats: tuple[list[float], list[float]] | None = None,
        own_stats: tuple[list[float], list[float]] | None = None,
        traits: Traits | None = None,
    ):
        super().__init__()
        unknown = needs - FEATURES
        assert not unknown, f"unknown features {sorted(unknown)}; known: {sorted(FEATURES)}"
        self.model = model
        self.needs = needs
        self.traits = traits or Traits()
        self.stages: frozenset[int] | None = None
        self.image_size = image_size
        self.input_size = None if input_size == image_size else input_size
        side = input_size or image_size
        parameter = next(model.parameters())
        self.adapter = make_adapter(model, torch.zeros(2, 3, side, side, device=parameter.device))
        scale = shift = None
        if data_stats and own_stats and data_stats != own_stats:
            data_mean, data_std, mean, std = (torch.tensor(values) for values in (*data_stats, *own_stats))
            scale, shift = (data_std / std).view(3, 1, 1), ((data_mean - mean) / std).view(3, 1, 1)
        self.scale: Tensor | None
        self.shift: Tensor | None
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def prepare(self, image: Tensor) -> Tensor:
        """Convert image [N, 3, H, W] to this network's own normalisation and size."""
        if self.scale is not None and self.shift is not None:
            image = image * self.scale + self.shift
        if self.input_size is not None:
            image = F.interpolate(image, size=self.input_size, mode="bilinear", antialias=True)
        return image

    def forward(self, image: Tensor) -> Outputs:
        return self.adapter(self.prepare(image), self.needs).only(self.needs).at(self.stages)


def measure(tap: Tap, num_classes: int) -> Spec:
    """Run one image of zeros through `tap` in eval mode and record every shape, without changing any statistic."""
    model, training = tap.model, tap.model.training
    parameter = next(model.parameters())
    image = torch.zeros(2, 3, tap.image_size, tap.image_size, device=parameter.device)
    try:
        model.eval()
        with torch.no_grad():
            out = tap.adapter(tap.prepare(image), FEATURES)
            plain = model(tap.prepare(image))
    finally:
        model.train(training)
    assert out.logits.shape == plain.shape, f"{type(model).__name__} returns {tuple(plain.shape)} as logits"
    attention = out.attention[0] if out.attention else None
    return Spec(
        num_classes=num_classes,
        image_size=tap.image_size,
        maps=tuple(shape_of(item) for item in out.maps or ()),
        preact=None if out.preact is None else tuple(shape_of(item) for item in out.preact),
        stems=tap.adapter.stems,
        pooled=None if out.pooled is None else out.pooled.shape[1],
        tokens=None if out.tokens is None else (out.tokens.shape[1], out.tokens.shape[2]),
        prefix=0 if out.prefix is None else out.prefix.shape[1],
        attention=None if attention is None else (attention.shape[1], attention.shape[2], attention.shape[3]),
        heads=tuple(out.heads or ()),
        classifier=tap.adapter.classifier,
        head_modules=tap.adapter.head_modules,
    )


def shape_of(item: Tensor) -> Shape:
    return (item.shape[1], item.shape[2], item.shape[3])


def pair_maps(student: Spec, teacher: Spec) -> list[tuple[int, int]]:
    """Return which student map learns from which teacher map: (student index, teacher index), shallow to deep.

    Stems are left out. Networks with the same number of stages at the same resolutions pair one to one; otherwise as
    many stages as the shorter network has are paired in order with the least total distance. The distance of two stages
    is |log2 of the ratio of their resolutions|, then the difference of their relative depths. Empty if one of the
    networks has no maps.
    """
    ours = list(range(student.stems, len(student.maps)))
    theirs = list(range(teacher.stems, len(teacher.maps)))
    swap = len(ours) > len(theirs)
    short, long = (theirs, ours) if swap else (ours, theirs)
    short_maps, long_maps = (teacher.maps, student.maps) if swap else (student.maps, teacher.maps)

    def distance(i: int, j: int) -> float:
        resolution = abs(math.log2(short_maps[short[i]][1] / long_maps[long[j]][1]))
        return resolution + 0.5 * abs((i + 1) / len(short) - (j + 1) / len(long))

    @cache
    def best(i: int, j: int) -> tuple[float, tuple[int, ...]]:
        """Return the cheapest placement of short[i:] into long[j:], as (cost, chosen positions)."""
        if i == len(short):
            return 0.0, ()
        options = []
        for position in range(j, len(long) - (len(short) - i) + 1):
            cost, rest = best(i + 1, position + 1)
            options.append((cost + distance(i, position), (position, *rest)))
        return min(options)

    chosen = best(0, 0)[1] if short else ()
    pairs = [(short[i], long[position]) for i, position in enumerate(chosen)]
    return [(b, a) for a, b in pairs] if swap else pairs
