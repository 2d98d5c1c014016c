"""Creation of models by name: the CIFAR zoo, `timm:`, `torchvision:` and `package.module:callable`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kdrun.errors import ConfigError, one_line, suggest
from kdrun.models import external, mobilenet, resnet, shufflenet, tutorial, vgg, vit, wrn
from kdrun.models.weights import AS_STUDENT, Wanted, load_weights

Factory = Callable[..., nn.Module]

ZOO: dict[str, Factory] = {
    **{f"resnet{d}": partial(resnet.resnet_cifar, d) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}a": partial(resnet.resnet_padded, d) for d in (20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": partial(resnet.resnet_cifar, d, wide=4) for d in (8, 32)},
    **{f"resnet{d}": partial(resnet.resnet_imagenet_depth, d) for d in (18, 34, 50)},
    **{f"wrn_{d}_{k}": partial(wrn.WideResNet, d, k) for d in (16, 40) for k in (1, 2, 4)},
    **{f"vgg{d}": partial(vgg.VGG, d) for d in (8, 11, 13, 16, 19)},
    "mobilenet_v2": partial(mobilenet.MobileNetV2, 1.0),
    "mobilenet_v2_x0_5": partial(
        mobilenet.MobileNetV2, 0.5, last_tap="block"
    ),  # width used only by RepDistiller's benchmark
    "shufflenet_v1": shufflenet.ShuffleNetV1,
    "shufflenet_v2": shufflenet.ShuffleNetV2,
    "deepnn": tutorial.deepnn,
    "lightnn": tutorial.lightnn,
    "vit_cifar_tiny": vit.vit_cifar_tiny,
    "vit_cifar_tiny_distilled": vit.vit_cifar_tiny_distilled,
}
SIZED = ("deepnn", "lightnn", "vit_cifar_tiny", "vit_cifar_tiny_distilled")  # weights depend on the image size
HEADS = ("linear", "dropout_linear")


def create_model(
    name: str,
    *,
    num_classes: int,
    image_size: int = 32,
    pretrained: str | None = None,
    wanted: Wanted = AS_STUDENT,
    preact_last_map: bool = False,
    head: str = "linear",
    head_dropout: float = 0.5,
    kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a network for images [N, 3, image_size, image_size] and `num_classes`.

    pretrained: "true" for timm's or torchvision's own weights, or a file, from which `wanted` selects; the classifier
    is new if the number of classes differs. preact_last_map: tap the last map as RepDistiller does (WRN before the
    final BN and ReLU, MobileNetV2 before the 1280-channel convolution; no other model differs). head="dropout_linear"
    puts Dropout(head_dropout) before the classifier. Raises ConfigError for an unknown name or unfit arguments.
    """
    kwargs = dict(kwargs or {})
    source, _, bare = name.partition(":")
    fetched = pretrained == "true"
    if source == "timm":
        model = external.create_timm(bare, num_classes, image_size, fetched, wanted.role, kwargs)
    elif source == "torchvision":
        model = external.create_torchvision(bare, num_classes, fetched, wanted.role, kwargs)
    elif fetched:
        raise ConfigError(
            f"{name} has no published weights here; set {wanted.role}.pretrained=FILE or {wanted.role}.checkpoint=FILE."
        )
    elif bare:
        model = external.create_own(name, num_classes, image_size, kwargs)
    else:
        model = create_zoo(name, num_classes, image_size, preact_last_map, kwargs)
    if pretrained and not fetched:
        convert = external.timm_layouts(model) if source == "timm" else None
        load_weights(model, Path(os.path.expanduser(pretrained)), name, new_head=True, wanted=wanted, convert=convert)
    if head == "dropout_linear":
        external.replace_head(model, num_classes, head_dropout)
    return model


def create_zoo(
    name: str, num_classes: int, image_size: int, preact_last_map: bool, kwargs: dict[str, Any]
) -> nn.Module:
    """Create a model of `ZOO`."""
    if name not in ZOO:
        raise ConfigError(
            f"model {name}: no such network.{suggest(name, ZOO)} The zoo has {', '.join(ZOO)}; others: "
            "timm:NAME, torchvision:NAME or package.module:callable."
        )
    if preact_last_map and name.startswith("wrn"):
        kwargs.setdefault("preact_last_map", True)
    if preact_last_map and name.startswith("mobilenet"):
        kwargs.setdefault("last_tap", "block")
    if name in SIZED:
        kwargs.setdefault("image_size", image_size)
    try:
        return ZOO[name](num_classes=num_classes, **kwargs)
    except Exception as error:  # wrong arguments can raise any type
        raise ConfigError(f"{name} cannot be built with {kwargs}: {one_line(error)}") from error
