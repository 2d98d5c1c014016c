"""Style transfer by a network (Gatys, Ecker & Bethge 2016, "Image style transfer using convolutional neural
networks")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from kdrun.errors import CheckpointError
from kdrun.evaluation.testsets.pretrained import in_unit_range, normalised

CONTENT = 22  # conv4_2, after its ReLU: positions in torchvision's VGG-19
STYLE = {1: 1.0, 6: 0.8, 11: 0.5, 20: 0.3, 29: 0.1}  # conv1_1, conv2_1, conv3_1, conv4_1, conv5_1, after their ReLU


@dataclass(frozen=True)
class Recipe:
    """Parameters of a style transfer. content_weight, style_weight: of the two losses; steps, lr: of Adam, on
    normalised pixels."""

    content_weight: float
    style_weight: float
    steps: int
    lr: float


@cache
def load_vgg(place: Path, device: str) -> nn.Sequential:
    """Load VGG-19 up to conv5_1 with the weights in `place`, frozen. Raises CheckpointError if they do not fit."""
    from torchvision.models.vgg import cfgs, make_layers

    from kdrun.models.weights import read_state_dict

    layers = make_layers(cfgs["E"])[: max(STYLE) + 1]
    state = read_state_dict(place)
    own = layers.state_dict()
    for name, value in own.items():
        found = state.get(f"features.{name}")
        if found is None or found.shape != value.shape:
            what = "missing" if found is None else f"{tuple(found.shape)}, not {tuple(value.shape)}"
            raise CheckpointError(f"{place} holds no VGG-19 of torchvision: features.{name} is {what}.")
    layers.load_state_dict({name: state[f"features.{name}"] for name in own})
    return layers.requires_grad_(False).eval().to(device)


def activations(network: nn.Sequential, image: Tensor) -> dict[int, Tensor]:
    """Return the maps [N, C, h, w] of the layers that the losses compare, by position; image [N, 3, H, W],
    normalised."""
    found = {}
    for position, layer in enumerate(network):
        image = layer(image)
        if position in STYLE or position == CONTENT:
            found[position] = image
    return found


def gram(maps: Tensor) -> Tensor:
    """Return the unnormalised inner products of channels over all positions: [N, C, h, w] -> [N, C, C]."""
    flat = maps.flatten(2)
    return flat @ flat.transpose(1, 2)


def style_loss(maps: dict[int, Tensor], wanted: dict[int, Tensor]) -> Tensor:
    """Return the distance of the Gram matrices from the `wanted` ones [1 or N, C, C] by position, one value per image,
    [N].

    Equation:
        sum_l w_l mean_ij (G_l - A_l)_ij^2 / (d_l h_l w_l), for a layer of d channels and h x w positions.
    """
    total = next(iter(maps.values())).new_zeros(())
    for position, weight in STYLE.items():
        found = maps[position]
        off = (gram(found) - wanted[position]).square().mean(dim=(1, 2))
        total = total + weight * off / found[0].numel()
    return total


def content_loss(maps: dict[int, Tensor], wanted: Tensor) -> Tensor:
    """Return the mean squared difference from the `wanted` maps of conv4_2, one value per image, [N]."""
    return (maps[CONTENT] - wanted).square().mean(dim=(1, 2, 3))


def stylised(network: nn.Sequential, content: Tensor, style: Tensor, recipe: Recipe) -> Tensor:
    """Return `content` [N, 3, H, W] in the style of `style` [1 or N, 3, H, W]; all in [0, 1].

    The losses of the images are summed and Adam keeps its moments by element, so images do not affect each other.
    Starts from the content. The equation: content_weight * content_loss + style_weight * style_loss.
    """
    with torch.no_grad():
        kept = activations(network, normalised(content))[CONTENT]
        wanted = {position: gram(maps) for position, maps in activations(network, normalised(style)).items()}
    pixels = normalised(content).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([pixels], lr=recipe.lr)
    for _ in range(recipe.steps):
        optimizer.zero_grad(set_to_none=True)
        maps = activations(network, pixels)
        loss = recipe.content_weight * content_loss(maps, kept) + recipe.style_weight * style_loss(maps, wanted)
        loss.sum().backward()
        optimizer.step()
    return in_unit_range(pixels.detach())
