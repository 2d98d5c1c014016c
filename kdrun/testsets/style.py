"""Textures that tell nothing: the style of another picture, and the conflict of two classes' cues."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from kdrun.errors import DataError, one_line
from kdrun.options import setting
from kdrun.testsets.base import DerivedSet, Draw
from kdrun.testsets.quilt import transfer

TEXTURES = ("hubble_deep_field", "immunohistochemistry", "coffee", "brick", "grass", "gravel")
ENLARGED = 2  # the style picture is scaled to this many sides of the image: more of it than one image could hold


@cache
def texture(name: str, side: int) -> np.ndarray:
    """scikit-image's bundled picture `name` as uint8 [side, side, 3]."""
    from PIL import Image
    from skimage import data

    try:
        pixels = np.asarray(getattr(data, name)())
    except Exception as error:  # pooch and urllib raise their own kinds where the file is not in the installation
        raise DataError(
            f"style.texture={name}: scikit-image's picture cannot be read ({one_line(error)}); choose another of "
            f"{', '.join(TEXTURES)}."
        ) from error
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    edge = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - edge) // 2, (pixels.shape[1] - edge) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + edge, left : left + edge, :3]))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Style(DerivedSet):
    """The image laid out in patches of one unrelated picture: its own texture and colours are gone.

    The published recipe is Gatys' style transfer with VGG-19 and a painting; this one is the offline way. texture: a
    picture that scikit-image carries. patch: the patches' share of the side. shape_weight: of the image's luminance
    against smooth joins. candidates: patches to choose from.
    """

    name = "style"
    measures = "texture"
    recipe = "image quilting with a bundled picture (offline; published: Gatys with VGG-19)"
    libraries = ("numpy", "scikit-image", "pillow")

    texture: str = setting("immunohistochemistry", choices=TEXTURES)
    patch: float = setting(0.125, over=0, high=0.5)
    shape_weight: float = setting(0.8, low=0, high=1)
    candidates: int = setting(512, low=1)

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        picture = texture(self.texture, ENLARGED * max(image.shape[:2]))
        return transfer(image, picture, draw, patch=self.patch, shape_weight=self.shape_weight,
                        candidates=self.candidates)  # fmt: skip


@dataclass(frozen=True)
class CueConflict(DerivedSet):
    """The shape of each image in the texture of an image of another class; both labels are kept.

    Geirhos et al. 2019 ("ImageNet-trained CNNs are biased towards texture") made their stimuli by style transfer; this
    is the offline way, by image quilting. patch, shape_weight, candidates: as in the style set.
    """

    name = "cue_conflict"
    measures = "shape against texture"
    recipe = "image quilting of two classes (offline; published: style transfer)"
    pairs = True

    patch: float = setting(0.125, over=0, high=0.5)
    shape_weight: float = setting(0.8, low=0, high=1)
    candidates: int = setting(512, low=1)

    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        assert other is not None, "a set of pairs gets its other image"
        return transfer(image, other, draw, patch=self.patch, shape_weight=self.shape_weight,
                        candidates=self.candidates)  # fmt: skip
