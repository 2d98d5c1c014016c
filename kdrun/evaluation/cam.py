"""Class activation maps: Grad-CAM, and other kinds through the `grad-cam` package."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import ConfigError, suggest
from kdrun.models.adapters import TimmAdapter, as_map, prefix_count, record_outputs, to_nchw
from kdrun.models.features import Tap

MAPS = frozenset({"maps"})


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Return class activation maps [N, h, w] of `activation` [N, C, h, w], given the gradient of the class's logit by
    it.

    alpha_k = mean over the positions of dy/dA_k;  L = ReLU(sum_k alpha_k A_k)
    Selvaraju et al. 2017, Grad-CAM, equations 1 and 2.
    """
    alpha = gradient.mean(dim=(2, 3), keepdim=True)
    return F.relu((alpha * activation).sum(dim=1))


def scaled(cam: Tensor, side: tuple[int, int]) -> Tensor:
    """Enlarge maps [N, h, w] (bilinear) to `side` and divide each by its largest value; a map of zeros stays zero."""
    large = F.interpolate(cam[:, None], size=side, mode="bilinear", align_corners=False)[:, 0]
    return large / large.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(large.dtype).tiny)


@dataclass(frozen=True)
class Seen:
    """Maps of a batch: logits [N, K], maps in [0, 1] [N, H, W] at the image's size, and the class [N] that they
    explain."""

    logits: Tensor
    maps: Tensor
    target: Tensor


class View:
    """Network prepared for class activation maps.

    deployed: the module whose logits count, if the method deploys more than the student. layer: path of a module,
    instead of the automatic choice: the deepest stage map of a CNN with more than one position; for a transformer the
    input of the last block's attention (not the output: if the head reads only the class token, no gradient reaches the
    patch tokens there). kind: a class of the grad-cam package instead of our own.
    """

    def __init__(self, tap: Tap, deployed: nn.Module | None = None, layer: str | None = None, kind: str | None = None):
        self.tap, self.kind = tap.eval(), kind
        self.model: nn.Module = tap.model if deployed is None else deployed
        self.model.eval()
        tap.needs = MAPS
        ramp = torch.linspace(-2, 2, 3 * tap.image_size**2).view(1, 3, tap.image_size, tap.image_size)
        self.example = ramp.to(next(tap.model.parameters()).device)
        self.stage = None
        self.path = layer
        if layer is None and deployed is None:
            self.stage = self._stage()
        if self.stage is None and self.path is None:
            self.path = self._find_path()
        self.module = None if self.stage is not None else module_of(tap.model, self.path or "")
        self.kept: Tensor | None = None
        if self.module is not None:
            self.module.register_forward_hook(self._keep)
        with torch.enable_grad():
            found = self.as_map(self.forward(self.example)[1])
        self.grid = (int(found.shape[2]), int(found.shape[3]))

    @property
    def layer(self) -> str:
        """Return the layer's name: the stage as `kdrun taps` counts them, or the module's path."""
        return f"f{self.stage}" if self.stage is not None else str(self.path)

    def see(self, image: Tensor, target: Tensor | None = None) -> Seen:
        """Return maps of `target` [N], or of the class that the network predicts. image [N, 3, H, W], normalised as
        the data."""
        if self.kind is not None:
            return self._by_package(image, target)
        with torch.enable_grad():
            logits, activation = self.forward(image.detach().clone().requires_grad_())
            wanted = logits.argmax(dim=1) if target is None else target
            score = logits.gather(1, wanted[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, activation)
        cam = grad_cam(self.as_map(activation).detach().float(), self.as_map(gradient).float())
        return Seen(logits.detach().float(), scaled(cam, (image.shape[2], image.shape[3])), wanted)

    def _stage(self) -> int | None:
        """Return the deepest stage map that the logits depend on; timm returns those of its transformers as copies."""
        with torch.enable_grad():
            out = self.tap(self.example.clone().requires_grad_())
            for number in reversed(range(len(out.maps or ()))):
                stage = out.maps[number]
                if stage.shape[-1] == 1:
                    continue
                reached = stage.requires_grad and torch.autograd.grad(
                    out.logits.sum(), stage, allow_unused=True, retain_graph=True
                )
                if reached and reached[0] is not None:
                    return number
        return None

    def _find_path(self) -> str:
        """Return the path of the module to watch, from the outputs of all modules for one image."""
        image = self.tap.prepare(self.example)
        records, _ = record_outputs(self.tap.model, image)
        tokens = token_layer(records)
        if tokens is not None:
            return tokens
        with torch.no_grad():
            stages = [stage for stage in self.tap(self.example).maps or () if stage.shape[-1] > 1]
        for name, _, output in reversed(records):  # the module whose output is the deepest stage
            if stages and output.shape == stages[-1].shape and torch.equal(output, stages[-1]):
                return name
        for name, _, output in reversed(records):
            if output.dim() == 4 and to_nchw(output).shape[-1] > 1:
                return name
        raise ConfigError(f"{type(self.tap.model).__name__} has no feature map to draw: name a module with layer=PATH.")

    def _keep(self, module: nn.Module, inputs: object, output: object) -> None:
        self.kept = output if isinstance(output, Tensor) else None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, the activation on the path to the logits, as its module returns it)."""
        if self.stage is not None:
            out = self.tap(image)
            assert out.maps is not None
            return out.logits, out.maps[self.stage]
        logits = self.model(self.tap.prepare(image))
        kept, self.kept = self.kept, None
        self.as_map(self._usable(kept))
        assert kept is not None
        return logits, kept

    def _usable(self, output: Tensor | None) -> Tensor:
        if output is None or output.dim() not in (3, 4) or (output.dim() == 3 and output.shape[1] < 4):
            shape = "no tensor" if output is None else "x".join(map(str, output.shape[1:]))
            raise ConfigError(f"layer={self.path}: returns {shape}, neither a feature map nor patch tokens.")
        return output

    def as_map(self, output: Tensor) -> Tensor:
        """Return the output of a CNN, a channels-last network or a transformer as [N, C, h, w], without prefix
        tokens."""
        if output.dim() == 4:
            return output if self.stage is not None else to_nchw(output)
        adapter = self.tap.adapter
        prefix = adapter.prefix if isinstance(adapter, TimmAdapter) else prefix_count(output.shape[1])
        return as_map(output[:, prefix:])

    def _by_package(self, image: Tensor, target: Tensor | None) -> Seen:
        """Return the same through the `grad-cam` package, whose maps are scaled from their smallest to their largest
        value."""
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        with torch.no_grad():
            logits = self.model(self.tap.prepare(image)).float()
        wanted = logits.argmax(dim=1) if target is None else target
        whole = Whole(self.tap, self.model)
        silent = contextlib.redirect_stderr(io.StringIO())  # the package's own progress bars
        with silent, torch.enable_grad(), getattr(pytorch_grad_cam, str(self.kind))(whole, []) as cam:
            cam.target_layers, cam.activations_and_grads = [whole], Recorder(self)
            maps = cam(image.detach().clone().requires_grad_(), [ClassifierOutputTarget(int(one)) for one in wanted])
        return Seen(logits, torch.from_numpy(maps).float().to(logits.device), wanted)


class Recorder:
    """Recorder for the package's kinds at our layer: the activation of the last forward and, after the package's
    backward, its gradient, both [N, C, h, w].

    The package's own recorder takes the gradient before an in-place ReLU and the activation after it, and such a ReLU
    ends the stages of many networks.
    """

    def __init__(self, view: View):
        self.view = view
        self.activations: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def __call__(self, image: Tensor) -> Tensor:
        logits, kept = self.view.forward(image)
        self.activations, self.gradients = [self.view.as_map(kept).detach()], []
        kept.register_hook(lambda gradient: self.gradients.append(self.view.as_map(gradient).detach()))
        return logits

    def release(self) -> None:
        """Release nothing: the package calls this at its end."""


class Whole(nn.Module):
    """Network with its tap as one module: images as normalised for the data set -> logits."""

    def __init__(self, tap: Tap, model: nn.Module):
        super().__init__()
        self.tap, self.model = tap, model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(self.tap.prepare(image))


def module_of(model: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`. Raises ConfigError."""
    known = dict(model.named_modules())
    known.pop("", None)
    if path not in known:
        raise ConfigError(f"layer={path}: {type(model).__name__} has no such module.{suggest(path, known)}")
    return known[path]


def token_layer(records: list[tuple[str, nn.Module, Tensor]]) -> str | None:
    """Return the first normalisation within the last block of a transformer, whose output its attention reads; None
    for other networks."""
    blocks = [name for name, _, output in records if output.dim() == 3 and re.search(r"(^|[._])\d+$", name)]
    depth = min((name.count(".") for name in blocks), default=0)
    blocks = [name for name in blocks if name.count(".") == depth]
    if not blocks:
        return None
    inside = [record for record in records if record[0].startswith(f"{blocks[-1]}.")]
    norms = [name for name, module, output in inside if isinstance(module, nn.LayerNorm) and output.dim() == 3]
    return norms[0] if norms else blocks[-2 if len(blocks) > 1 else -1]
