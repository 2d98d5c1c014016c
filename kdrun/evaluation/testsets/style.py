"""Test sets with uninformative textures: the style of another picture, and the conflict of two classes' cues."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.options import setting
from kdrun.errors import DataError, one_line
from kdrun.evaluation.testsets.base import DerivedSet, Draw, versions_of
from kdrun.evaluation.testsets.pretrained import Pretrained, fixed_arithmetic
from kdrun.evaluation.testsets.quilt import transfer
from kdrun.evaluation.testsets.superpixel import enlarged_all, enlargement, shrunk

if TYPE_CHECKING:
    from PIL import Image

TEXTURES = ("hubble_deep_field", "immunohistochemistry", "coffee", "brick", "grass", "gravel")
ENLARGED = 2  # the style picture is scaled to this multiple of the image's side
VGG = Pretrained("VGG-19", "vgg19-dcbb9e9d.pth")
QUILTING = ("patch", "shape_weight", "candidates")  # parameters of only one of the two methods
GATYS = ("weights", "content_weight", "style_weight", "steps", "lr", "side")


def bundled(name: str) -> np.ndarray:
    """Return scikit-image's picture `name`, uint8 [H, W, 3]."""
    from skimage import data

    try:
        pixels = np.asarray(getattr(data, name)())
    except Exception as error:  # pooch and urllib raise types of their own if the file is not installed
        raise DataError(
            f"style.texture={name}: scikit-image's picture cannot be read ({one_line(error)}); choose another of "
            f"{', '.join(TEXTURES)}."
        ) from error
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


@cache
def texture(name: str, side: int) -> np.ndarray:
    """Return scikit-image's bundled picture `name` as uint8 [side, side, 3]."""
    from PIL import Image

    pixels = bundled(name)
    edge = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + edge, left : left + edge]))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def painted(file: str) -> Image.Image:
    """Return the picture in `file`, RGB. Raises DataError (one line)."""
    from PIL import Image

    try:
        with Image.open(Path(os.path.expanduser(file))) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"style.painting={file}: not a readable picture ({one_line(error)}).") from error


@dataclass(frozen=True)
class Transferred(DerivedSet):
    """Content of an image in the style of another picture, by one of two methods.

    method: quilting, which is offline, or gatys, the style transfer of Gatys et al. 2016 with a pretrained VGG-19.
    For quilting: patch, the patches' share of the side; shape_weight, of the image's luminance against smooth joins;
    candidates, patches to choose from. For gatys: weights, torchvision's file if it is not in torch hub's folder;
    content_weight, style_weight; steps and lr of Adam; side, to which smaller images are enlarged by a whole factor
    before and from which they are shrunk after, since conv5_1 sees 2 x 2 positions of 32 pixels.
    """

    method: str = setting("quilting", choices=("quilting", "gatys"))
    patch: float = setting(0.125, over=0, high=0.5)
    shape_weight: float = setting(0.8, low=0, high=1)
    candidates: int = setting(512, low=1)
    weights: str | None = setting(None)
    content_weight: float = setting(0.8, low=0)
    style_weight: float = setting(0.2, low=0)
    steps: int = setting(85, low=1)
    lr: float = setting(0.2, over=0)
    side: int = setting(128, low=16)

    def __post_init__(self) -> None:
        self.refuse(*((QUILTING, "method=quilting") if self.needs_network else (GATYS, "method=gatys")))

    @property
    def needs_network(self) -> bool:
        return self.method == "gatys"

    def parameters(self) -> dict[str, Any]:
        """Return only the parameters of the method; those of quilting are unchanged since before the second method
        existed."""
        unread = {*QUILTING, "weights"} if self.needs_network else {*GATYS, "method"}
        return {name: value for name, value in super().parameters().items() if name not in unread}

    def needed_files(self) -> dict[str, Path]:
        if not self.needs_network:
            return {}
        return {"weights": VGG.find(self.weights, f"{self.name} method=gatys", f"{self.name} method=quilting")}

    def versions(self) -> dict[str, str]:
        return super().versions() | (versions_of("torch", "torchvision") if self.needs_network else {})

    def source(self, shape: tuple[int, int], others: np.ndarray | None) -> np.ndarray:
        """Return the style of method=gatys, uint8 [1 or N, h, w, 3], for images enlarged to `shape`."""
        raise NotImplementedError

    def made_at(self, height: int, width: int) -> tuple[int, int]:
        factor = enlargement(height, width, self.side)
        return height * factor, width * factor

    def by_network(self, images: np.ndarray, others: np.ndarray | None, device: str) -> np.ndarray:
        import torch

        from kdrun.evaluation.testsets.gatys import Recipe, load_vgg, stylised

        large, factor = enlarged_all(images, self.side)
        styles = self.source((large.shape[1], large.shape[2]), others)
        network = load_vgg(self.needed_files()["weights"], device)
        content, style = (
            torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255 for pixels in (large, styles)
        )
        recipe = Recipe(self.content_weight, self.style_weight, self.steps, self.lr)
        with fixed_arithmetic():
            made = stylised(network, content, style, recipe)
        pixels = made.permute(0, 2, 3, 1).cpu().numpy() * 255
        return np.stack([np.round(shrunk(each, factor)) for each in pixels]).astype(np.uint8)


@dataclass(frozen=True)
class Style(Transferred):
    """Image in the style of one unrelated picture, without its own texture and colours.

    The published recipe is method=gatys with a painting; the offline way composes the image from patches of the
    picture. texture: a picture bundled with scikit-image. painting: a file with another one, for method=gatys.
    """

    name = "style"
    measures = "texture"
    usual = "image quilting with a bundled picture (offline; published: Gatys with VGG-19)"
    libraries = ("numpy", "scikit-image", "pillow")

    texture: str = setting("immunohistochemistry", choices=TEXTURES)
    painting: str | None = setting(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.needs_network:
            self.refuse(("painting",), "method=gatys")
        elif self.painting is not None:
            self.refuse(("texture",), "painting=null")

    @property
    def recipe(self) -> str:
        if not self.needs_network:
            return self.usual
        return f"Gatys with VGG-19 and {self.texture if self.painting is None else 'a painting'}"

    def parameters(self) -> dict[str, Any]:
        unread = {"painting"} if self.painting is None else {"painting", "texture"}
        return {name: value for name, value in super().parameters().items() if name not in unread}

    def needed_files(self) -> dict[str, Path]:
        if self.painting is None:
            return super().needed_files()
        place = Path(os.path.expanduser(self.painting))
        if not place.is_file():
            raise DataError(
                f"style.painting={self.painting}: no such file; give a picture, or leave it out for a "
                "bundled one (texture=…)."
            )
        return super().needed_files() | {"painting": place}

    def source(self, shape: tuple[int, int], others: np.ndarray | None) -> np.ndarray:
        from PIL import Image, ImageOps

        picture = Image.fromarray(bundled(self.texture)) if self.painting is None else painted(self.painting)
        height, width = shape
        return np.array(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))[None]

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        if self.needs_network:
            return self.by_network(image[None], None, "cpu")[0]
        picture = texture(self.texture, ENLARGED * max(image.shape[:2]))
        return transfer(
            image, picture, draw, patch=self.patch, shape_weight=self.shape_weight, candidates=self.candidates
        )


@dataclass(frozen=True)
class CueConflict(Transferred):
    """Shape of each image in the texture of an image of another class; both labels are kept.

    Geirhos et al. 2019 ("ImageNet-trained CNNs are biased towards texture") made their stimuli by style transfer, as
    method=gatys does; the offline way is image quilting.
    """

    name = "cue_conflict"
    measures = "shape against texture"
    usual = "image quilting of two classes (offline; published: style transfer)"
    pairs = True

    @property
    def recipe(self) -> str:
        return "Gatys with VGG-19 of two classes" if self.needs_network else self.usual

    def source(self, shape: tuple[int, int], others: np.ndarray | None) -> np.ndarray:
        assert others is not None, "a set of pairs gets its other images"
        return enlarged_all(others, self.side)[0]

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        assert other is not None, "a set of pairs gets its other image"
        if self.needs_network:
            return self.by_network(image[None], other[None], "cpu")[0]
        return transfer(
            image, other, draw, patch=self.patch, shape_weight=self.shape_weight, candidates=self.candidates
        )
