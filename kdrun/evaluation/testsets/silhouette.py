"""Test set with the foreground as one flat shape on a flat background."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.options import setting
from kdrun.evaluation.testsets.base import DerivedSet, Draw, versions_of
from kdrun.evaluation.testsets.pretrained import Pretrained, fixed_arithmetic, normalised
from kdrun.evaluation.testsets.superpixel import enlarged, enlarged_all, enlargement, segment_means, shrunk, superpixels

if TYPE_CHECKING:
    from torch import nn

FCN = Pretrained("FCN-ResNet101", "fcn_resnet101_coco-7ecb50ca.pth")
SLIC = ("segments", "compactness")  # parameters of the offline mask only
NEAREST = 3  # border segments that represent the background: a single one may be the object itself


def foreground(image: np.ndarray, segments: int, compactness: float) -> np.ndarray:
    """Return the mask of what differs from the border in colour, bool [H, W], by classical methods (no network).

    Each SLIC segment's saliency is its CIELAB distance to the nearest border segments, weighted by how near it is to
    the centre; Otsu's threshold over the pixels, the largest connected part, its holes filled. An image of one colour
    has an empty mask.
    """
    from scipy import ndimage
    from skimage.color import rgb2lab
    from skimage.filters import threshold_otsu

    number, _ = superpixels(image, segments, compactness)
    colour = segment_means(number, rgb2lab(image))
    border = np.unique(np.concatenate([number[0], number[-1], number[:, 0], number[:, -1]]))
    distance = np.linalg.norm(colour[:, None] - colour[border][None], axis=2)
    distance[border, np.arange(len(border))] = np.inf  # a border segment is judged by the others
    saliency = np.sort(distance, axis=1)[:, :NEAREST]
    saliency = np.where(np.isfinite(saliency), saliency, 0).mean(axis=1)
    height, width = number.shape
    rows, columns = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
    centred = np.exp(-(rows**2 + columns**2))
    score = saliency[number] * centred
    if np.ptp(score) < 1e-6:
        return np.zeros(number.shape, dtype=bool)
    mask = score > threshold_otsu(score)
    found: Any = ndimage.label(mask)
    parts, count = found
    if count > 1:
        mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return np.asarray(ndimage.binary_fill_holes(mask))


@cache
def load_fcn(place: Path, device: str) -> nn.Module:
    """Load torchvision's FCN-ResNet101 with the weights in `place`. Raises CheckpointError if they do not fit."""
    import torch
    from torchvision.models.segmentation import fcn_resnet101

    from kdrun.models.weights import load_weights

    with torch.device("meta"):  # drawing weights takes seconds, and they are replaced at once
        network = fcn_resnet101(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    network = network.to_empty(device="cpu")
    load_weights(network, place, FCN.network)
    return network.requires_grad_(False).eval().to(device)


def segmented(network: nn.Module, images: np.ndarray, device: str) -> np.ndarray:
    """Return where a class other than the background (0) has the largest logit: uint8 [N, H, W, 3] -> bool [N, H,
    W]."""
    import torch

    with torch.no_grad():
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
        logits = network(normalised(pixels))["out"]
    return (logits.argmax(dim=1) != 0).cpu().numpy()


@dataclass(frozen=True)
class Silhouette(DerivedSet):
    """The foreground filled with one grey level, the background with another.

    mask: offline, from superpixels and the border's colours, or fcn, the published recipe: whatever the segmentation
    network FCN-ResNet101 takes for one of its 20 classes; the offline masks are coarser. weights: torchvision's file
    for mask=fcn, if it is not in torch hub's folder. ink, paper: grey levels of fore- and background. side: as in the
    superpixel set, segments, compactness too, for mask=offline.
    """

    name = "silhouette"
    measures = "shape"
    usual = "SLIC and border-colour mask (offline; published: FCN-ResNet101)"
    libraries = ("numpy", "scipy", "scikit-image", "pillow")

    mask: str = setting("offline", choices=("offline", "fcn"))
    ink: int = setting(0, low=0, high=255)
    paper: int = setting(255, low=0, high=255)
    segments: int = setting(100, low=4)
    compactness: float = setting(10.0, over=0)
    side: int = setting(128, low=8)
    weights: str | None = setting(None)

    def __post_init__(self) -> None:
        self.refuse(*((SLIC, "mask=offline") if self.needs_network else (("weights",), "mask=fcn")))

    @property
    def needs_network(self) -> bool:
        return self.mask == "fcn"

    @property
    def recipe(self) -> str:
        return "FCN-ResNet101 mask" if self.needs_network else self.usual

    def parameters(self) -> dict[str, Any]:
        """Return only the parameters of this kind of mask; those of the offline one are unchanged since before the
        second kind existed."""
        unread = {*SLIC, "weights"} if self.needs_network else {"mask", "weights"}
        return {name: value for name, value in super().parameters().items() if name not in unread}

    def needed_files(self) -> dict[str, Path]:
        if not self.needs_network:
            return {}
        return {"weights": FCN.find(self.weights, "silhouette mask=fcn", "silhouette mask=offline")}

    def versions(self) -> dict[str, str]:
        return super().versions() | (versions_of("torch", "torchvision") if self.needs_network else {})

    def shares(self) -> tuple[object, ...] | None:
        return None if self.needs_network else ("superpixels", self.segments, self.compactness, self.side)

    def made_at(self, height: int, width: int) -> tuple[int, int]:
        factor = enlargement(height, width, self.side)
        return height * factor, width * factor

    def by_network(self, images: np.ndarray, others: np.ndarray | None, device: str) -> np.ndarray:
        large, factor = enlarged_all(images, self.side)
        network = load_fcn(self.needed_files()["weights"], device)
        with fixed_arithmetic():
            masks = segmented(network, large, device)
        return np.stack([self.filled(shrunk(mask, factor) >= 0.5) for mask in masks])

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        if self.needs_network:
            return self.by_network(image[None], None, "cpu")[0]
        large, factor = enlarged(image, self.side)
        return self.filled(shrunk(foreground(large, self.segments, self.compactness), factor) >= 0.5)

    def filled(self, mask: np.ndarray) -> np.ndarray:
        """Return the two grey levels: bool [H, W] -> uint8 [H, W, 3]."""
        return np.where(mask[..., None], np.uint8(self.ink), np.uint8(self.paper)).repeat(3, axis=2)
