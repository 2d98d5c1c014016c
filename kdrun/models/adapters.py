"""Uniform access to a network's features: zoo models provide them directly, timm models through
`forward_intermediates`, all other modules through a probe that locates their stages once."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.models.layers import ZooModel
from kdrun.structures import Outputs

Adapter = Callable[[Tensor, frozenset[str]], Outputs]


def make_adapter(model: nn.Module, example: Tensor) -> NativeAdapter | TimmAdapter | ProbeAdapter:
    """Return the adapter for `model`.

    example [N, 3, H, W]: forwarded once if a probe is needed, as for every model with hooks of its own, since only a
    call of the whole model runs them.
    """
    hooked = bool(model._forward_hooks or model._forward_pre_hooks)
    if isinstance(model, ZooModel) and not hooked:
        return NativeAdapter(model)
    if hasattr(model, "forward_intermediates") and hasattr(model, "forward_head") and not hooked:
        adapter = TimmAdapter(model)
        if shows_features(adapter, example):
            return adapter
    return ProbeAdapter(model, example)


def shows_features(adapter: TimmAdapter, example: Tensor) -> bool:
    """Return True if the model's intermediates are tensors: CoaT and CrossViT return lists of parallel branches."""
    training = adapter.model.training
    try:
        with torch.no_grad():
            adapter.model.eval()
            found = adapter(example, frozenset({"maps", "tokens", "pooled"}))
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError, AssertionError):
        return False
    finally:
        adapter.model.train(training)
    return all(isinstance(part, Tensor) for part in (found.logits, *(found.maps or ())))


class NativeAdapter:
    """Adapter for zoo models: `outputs` is their own forward."""

    def __init__(self, model: ZooModel):
        self.model = model
        self.stems = model.stems
        self.head_modules: dict[str, nn.Module] = {}

    @property
    def classifier(self) -> nn.Module:
        return self.model.get_classifier()

    def __call__(self, image: Tensor, needs: frozenset[str]) -> Outputs:
        return self.model.outputs(image, needs)


class TimmAdapter:
    """Adapter for timm models: stage maps and final tokens come from one `forward_intermediates`."""

    def __init__(self, model: Any):
        self.model = model
        # DeiT's two heads read two tokens; without a distillation token (LeViT, EfficientFormer) both read the mean.
        self.distilled = hasattr(model, "head_dist") and hasattr(model, "dist_token")
        self.head_modules: dict[str, nn.Module] = {"dist": model.head_dist} if self.distilled else {}
        reductions = [info["reduction"] for info in getattr(model, "feature_info", [])]
        self.indices = stage_indices(reductions)
        self.stems = 1 if len(self.indices or []) == 5 else 0
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        known = inspect.signature(model.forward_intermediates).parameters
        self.shows_map_prefix = bool(self.prefix) and "return_prefix_tokens" in known
        self.attention: tuple[Tensor, Tensor, Tensor] | None = None
        self.capture = False
        last = getattr(model, "blocks", None)
        attention = getattr(last[-1], "attn", None) if isinstance(last, nn.Sequential | nn.ModuleList) else None
        self.has_attention = isinstance(getattr(attention, "qkv", None), nn.Linear) and hasattr(attention, "num_heads")
        if self.has_attention:
            attention.qkv.register_forward_hook(self._keep_attention)  # type: ignore[union-attr]
            self.num_heads = int(attention.num_heads)  # type: ignore[union-attr]

    @property
    def classifier(self) -> nn.Module | None:
        found = self.model.get_classifier()
        return found if isinstance(found, nn.Module) else None

    def _keep_attention(self, module: nn.Module, inputs: object, qkv: Tensor) -> None:
        if self.capture:
            n, tokens, width = qkv.shape
            split = qkv.reshape(n, tokens, 3, self.num_heads, width // (3 * self.num_heads)).permute(2, 0, 3, 1, 4)
            self.attention = (split[0], split[1], split[2])

    def __call__(self, image: Tensor, needs: frozenset[str]) -> Outputs:
        if not needs:
            return Outputs(self.model(image))
        self.capture = "attention" in needs and self.has_attention
        split = self.shows_map_prefix and {"maps", "tokens"} <= needs
        more = {"return_prefix_tokens": True} if split else {}
        final, maps = self.model.forward_intermediates(image, indices=self.indices, output_fmt="NCHW", **more)
        maps, map_prefix = zip(*maps, strict=True) if split else (maps, None)
        attention, self.attention, self.capture = self.attention, None, False
        heads, logits = None, None
        if self.distilled:
            logits, distilled = self.model.head(final[:, 0]), self.model.head_dist(final[:, 1])
            heads = {"dist": distilled}
            # A method that reads both heads gets them separately; everything else sees their mean, as in inference.
            if "heads" not in needs or not self.model.training:
                logits = (logits + distilled) / 2
        tokens = final if final.dim() == 3 else None
        count = 0 if tokens is None else patch_count(tokens, maps[-1], self.prefix)
        tokens = tokens if count else None
        return Outputs(
            self.model.forward_head(final) if logits is None else logits,
            maps=tuple(maps),
            pooled=self.model.forward_head(final, pre_logits=True) if "pooled" in needs else None,
            tokens=None if tokens is None else tokens[:, -count:],
            prefix=None if tokens is None or tokens.shape[1] == count else tokens[:, :-count],
            attention=attention,
            heads=heads,
            map_prefix=map_prefix,
        )


class ProbeAdapter:
    """Adapter for all other modules. One forward records the output of every submodule; the last output of each
    resolution (CNN) or four evenly spaced blocks (transformer) become the stage maps."""

    def __init__(self, model: nn.Module, example: Tensor):
        self.model = model
        self.captured: dict[str, Tensor] = {}
        self.active = False
        records, logits = record_outputs(model, example)
        self.maps, self.tokens, self.sequence_first = choose_stages(records, len(example), example.shape[-1])
        self.stems = 1 if not self.tokens and len(self.maps) >= 5 else 0
        self.classifier = find_classifier(records, logits)
        self.head_modules: dict[str, nn.Module] = {}
        modules = dict(model.named_modules())
        for name in self.maps:
            modules[name].register_forward_hook(partial(self._keep, name))  # unlike a closure, it can be pickled
        if self.classifier is not None:
            self.classifier.register_forward_pre_hook(self._keep_pooled)

    def _keep(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self.active:
            self.captured[name] = output

    def _keep_pooled(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.active:
            self.captured["pooled"] = inputs[0]

    def __call__(self, image: Tensor, needs: frozenset[str]) -> Outputs:
        self.active = bool(needs)
        try:
            logits = self.model(image)
        finally:
            self.active = False
        captured, self.captured = self.captured, {}
        if not needs:
            return Outputs(logits)
        stages = [captured[name] for name in self.maps]
        tokens = prefix = map_prefix = None
        if self.sequence_first:
            stages = [stage.transpose(0, 1) for stage in stages]
        if self.tokens:
            count = stages[-1].shape[1] - prefix_count(stages[-1].shape[1])
            map_prefix = tuple(stage[:, :-count] for stage in stages)
            prefix, tokens = map_prefix[-1], stages[-1][:, -count:]
            stages = [as_map(stage[:, -count:]) for stage in stages]
        maps = tuple(to_nchw(stage) for stage in stages)
        pooled = captured.get("pooled")
        return Outputs(logits, maps, pooled=pooled, tokens=tokens, prefix=prefix, map_prefix=map_prefix)


def stage_indices(reductions: Sequence[int]) -> list[int] | None:
    """Return the indices of the intermediates that serve as stages: the last of every resolution, or four evenly
    spaced blocks if all share one (a ViT's quarter ends, as in OFA). None leaves the choice to timm."""
    if not reductions:
        return None
    if len(set(reductions)) > 1:
        return [i for i, value in enumerate(reductions) if i + 1 == len(reductions) or reductions[i + 1] != value]
    return quarter_ends(len(reductions))


def quarter_ends(count: int) -> list[int]:
    """Return the last index of each quarter of `count` blocks, or all of them if there are fewer than five."""
    return list(range(count)) if count <= 4 else [math.ceil(count * part / 4) - 1 for part in (1, 2, 3, 4)]


def record_outputs(model: nn.Module, example: Tensor) -> tuple[list[tuple[str, nn.Module, Tensor]], Tensor]:
    """Return (name, module, output) of every submodule that returns one tensor, in the order of execution, in eval
    mode; and the network's own output."""
    records: list[tuple[str, nn.Module, Tensor]] = []
    handles = []

    def recorder(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                records.append((name, module, output))

        return record

    for name, module in model.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            handles.append(module.register_forward_hook(recorder(name)))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            logits = model(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return records, logits


def choose_stages(
    records: list[tuple[str, nn.Module, Tensor]], images: int, image_size: int
) -> tuple[list[str], bool, bool]:
    """Return (module names, True if they return tokens, True if these are [L, N, D]). A module that runs twice in one
    forward cannot be a tap."""
    counts: dict[str, int] = {}
    for name, _, _ in records:
        counts[name] = counts.get(name, 0) + 1
    once = [record for record in records if counts[record[0]] == 1]
    numbered = [(name, out) for name, _, out in once if out.dim() == 3 and re.search(r"(^|[._])\d+$", name)]
    found = [(batch, *blocks_among([one for one in numbered if one[1].shape[batch] == images])) for batch in (0, 1)]
    for batch, blocks, _ in sorted(found, key=lambda one: not one[2]):
        if blocks:
            return [blocks[i] for i in quarter_ends(len(blocks))], True, batch == 1
    last: dict[int, str] = {}
    for name, _, out in once:
        if out.dim() == 4 and out.shape[0] == images:
            side = out.shape[1] if is_nhwc(out) else out.shape[2]
            if 1 < side <= image_size:
                last[side] = name
    return [last[side] for side in sorted(last, reverse=True)], False, False


def blocks_among(numbered: list[tuple[str, Tensor]]) -> tuple[list[str], bool]:
    """Return (the names of a transformer's blocks, True if all return one shape): those nearest the root, or the
    nearest four or more of one shape if the former differ, as the steps of a patch embedding do."""
    depths: dict[int, list[tuple[str, Tensor]]] = {}
    for name, out in numbered:
        depths.setdefault(name.count("."), []).append((name, out))
    for depth in sorted(depths):
        if len({out.shape for _, out in depths[depth]}) == 1 and (depth == min(depths) or len(depths[depth]) >= 4):
            return [name for name, _ in depths[depth]], True
    return [name for name, _ in depths[min(depths)]] if depths else [], False


def find_classifier(records: list[tuple[str, nn.Module, Tensor]], logits: Tensor) -> nn.Module | None:
    """Return the last Linear that returned the logits themselves, else any [N, K]; None if the network ends
    otherwise."""
    linear = [(module, out) for _, module, out in records if isinstance(module, nn.Linear) and out.dim() == 2]
    exact = [(module, out) for module, out in linear if out.shape == logits.shape and torch.equal(out, logits)]
    return (exact or linear or [(None, logits)])[-1][0]


def is_nhwc(x: Tensor) -> bool:
    """Return True if a 4-d output has its channels last by shape (torchvision's Swin)."""
    return x.shape[1] == x.shape[2] and x.shape[2] != x.shape[3]


def to_nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2) if is_nhwc(x) else x


def patch_count(tokens: Tensor, last: Tensor, prefix: int) -> int:
    """Return the number of patch tokens among the final ones [N, L, D]: L less the declared prefix, unless the last map
    [N, D, H, W] shows that more of them are none (VOLO's class token); 0 if there are fewer than its positions (PiT
    keeps only the class token)."""
    length, grid = tokens.shape[1], last.shape[-2] * last.shape[-1]
    return 0 if length < grid else grid if length - grid <= 2 else length - prefix


def prefix_count(length: int) -> int:
    """Return the number of leading tokens that are not patches: the smallest number that leaves a square grid."""
    for count in range(length):
        if math.isqrt(length - count) ** 2 == length - count:
            return count
    return 0


def as_map(tokens: Tensor) -> Tensor:
    """Return patch tokens [N, L, D] as a map [N, D, √L, √L]."""
    n, length, width = tokens.shape
    side = math.isqrt(length)
    return tokens.transpose(1, 2).reshape(n, width, side, side)
