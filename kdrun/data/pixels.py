"""Image files as tensors with exactly Pillow's pixels, through torchvision's decoders, which take two thirds of the
time."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdrun.data.decode import rgb_pixels

# Not PNG: a damaged one can kill the process in torchvision 0.29. For the others there is no gain.
FORMATS = ("JPEG", "WEBP")
MODES = ("RGB", "L")
ORIENTATION = 0x0112  # the EXIF tag

# Segments of a JPEG: frames that all decoders support; tables, comments and Adobe's colour marker.
FRAMES = (b"\xc0", b"\xc1", b"\xc2")
PASSED = (b"\xdb", b"\xc4", b"\xdd", b"\xfe", b"\xee")
MOST_PIXELS = 50_000_000  # above this, Pillow may warn or refuse
# Sampling factors of luma and chroma in `samples`. Versions of libjpeg-turbo upsample others differently, such as the
# 4:4:0 of a photograph that was rotated without loss.
SAMPLED = (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11")

# Rotations by EXIF orientation, as in `ImageOps.exif_transpose`; [3, H, W] -> [3, H, W].
TURNED: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip((1, 2)),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.rot90(-1, (1, 2)),
    7: lambda pixels: pixels.rot90(2, (1, 2)).transpose(1, 2),
    8: lambda pixels: pixels.rot90(1, (1, 2)),
}

# torchvision warns for every image that its decoders will move to a separate package; torch warns about read-only
# bytes, to which nothing is written here.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


def read_pixels(path: str | os.PathLike[str]) -> Tensor:
    """Read one file as uint8 [3, H, W], channels last in memory: the pixels of `read_image`, and its errors.

    Pillow reads whatever torchvision refuses, or would read differently.
    """
    from PIL import Image

    with open(path, "rb", buffering=0) as file:
        encoded = file.readall()
    with suppress(RuntimeError):  # Pillow decides whether it is damaged
        if is_plain_jpeg(encoded) and "JPEG" in alike():
            return decoded(encoded)
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format in alike() and is_tested(image):
            orientation = image.getexif().get(ORIENTATION, 1)
            with suppress(RuntimeError):
                return turned(decoded(encoded), orientation)
        return torch.from_numpy(rgb_pixels(image, None).copy()).permute(2, 0, 1)


def is_tested(image: Any) -> bool:
    """Return True if an image of Pillow, of a format in `alike`, is of a kind in `samples`: one frame, in grey or in
    colours that a JPEG holds in a tested chroma sampling."""
    sampling = bytes(16 * across + down for _, across, down, _ in getattr(image, "layer", ()))  # "" if it is no JPEG
    usual = len(sampling) < 2 or sampling in SAMPLED
    return usual and image.mode in MODES and getattr(image, "n_frames", 1) == 1


def is_plain_jpeg(encoded: bytes) -> bool:
    """Return True for a grey or colour JPEG whose header contains nothing that affects its pixels, such as the
    camera's orientation, and has a tested chroma sampling. Pillow's own check takes a tenth of the decoding time."""
    known, at = False, 2
    if not encoded.startswith(b"\xff\xd8"):
        return False
    while encoded[at : at + 1] == b"\xff":
        marker, content = encoded[at + 1 : at + 2], encoded[at + 4 : at + 10]
        if marker == b"\xda":
            return known
        if marker in FRAMES:
            precision, components = content[:1], int.from_bytes(content[5:], "big")
            sampling = encoded[at + 11 : at + 10 + 3 * components : 3]
            pixels = int.from_bytes(content[1:3], "big") * int.from_bytes(content[3:5], "big")
            known = precision == b"\x08" and (components == 1 or sampling in SAMPLED) and pixels <= MOST_PIXELS
        elif marker not in PASSED and not (marker == b"\xe0" and content.startswith(b"JFIF\0")):
            return False
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return False


def turned(pixels: Tensor, orientation: Any) -> Tensor:
    """Rotate [3, H, W] upright according to its EXIF tag."""
    turn = TURNED.get(orientation)
    return pixels if turn is None else turn(pixels).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def decoded(encoded: bytes) -> Tensor:
    """Decode to uint8 [3, H, W] by torchvision. Raises RuntimeError for formats that it does not read."""
    from torchvision.io import ImageReadMode, decode_image

    with unprinted():
        return decode_image(torch.frombuffer(encoded, dtype=torch.uint8), ImageReadMode.RGB)


@contextmanager
def unprinted() -> Iterator[None]:
    """Discard a C library's output in this block: libjpeg prints a line for each slightly damaged image, without its
    name."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    try:
        os.dup2(nowhere(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@cache
def nowhere() -> int:
    """Return a file descriptor that discards whatever is written to it."""
    return os.open(os.devnull, os.O_WRONLY)


@cache
def alike() -> frozenset[str]:
    """Return the formats in which this torchvision gives Pillow's pixels, tested with an image of each kind: other
    builds have other libraries or none, and later versions may lack decoders."""
    found = set()
    for name in FORMATS:
        with suppress(Exception):  # no decoder in torchvision or in Pillow
            if all(is_alike(encoded) for encoded in samples(name)):
                found.add(name)
    return frozenset(found)


def is_alike(encoded: bytes) -> bool:
    """Return True if torchvision gives Pillow's pixels for an image."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return torch.equal(decoded(encoded).permute(1, 2, 0), torch.from_numpy(rgb_pixels(image, None).copy()))


def samples(name: str) -> Iterator[bytes]:
    """Yield an image with full and halved chroma, baseline and progressive, and in grey."""
    from PIL import Image

    ramp = torch.arange(52)[:, None, None] * torch.tensor([3, 5, 11]) + torch.arange(37)[:, None] * 7
    image = Image.fromarray((ramp % 256).to(torch.uint8).numpy())
    kinds = [{"subsampling": part, "progressive": late} for part in (0, 1, 2) for late in (False, True)]
    for settings in kinds if name == "JPEG" else [{"lossless": False}, {"lossless": True}]:
        for picture in (image, image.convert("L")):
            file = io.BytesIO()
            picture.save(file, name, **settings)
            yield file.getvalue()
