"""Image files as tensors, in Pillow's pixels: torchvision's decoders give them in two thirds of the time."""

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

# Not PNG: a damaged one can kill the process in torchvision 0.29. Nothing to gain for the others.
FORMATS = ("JPEG", "WEBP")
MODES = ("RGB", "L")
ORIENTATION = 0x0112  # the EXIF tag

# Parts of a JPEG: frames as all decoders know them; tables, comments and Adobe's note on colours.
FRAMES = (b"\xc0", b"\xc1", b"\xc2")
PASSED = (b"\xdb", b"\xc4", b"\xdd", b"\xfe", b"\xee")
MOST_PIXELS = 50_000_000  # of more Pillow may say something

# As `ImageOps.exif_transpose` turns what a camera held otherwise; [3, H, W] -> [3, H, W].
TURNED: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip((1, 2)),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.rot90(-1, (1, 2)),
    7: lambda pixels: pixels.rot90(2, (1, 2)).transpose(1, 2),
    8: lambda pixels: pixels.rot90(1, (1, 2)),
}

# torchvision warns with every image that its decoders will move into a package of their own, and torch of bytes that
# nothing must be written to: nothing is.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)


def read_pixels(path: str | os.PathLike[str]) -> Tensor:
    """One file as uint8 [3, H, W], channels last in memory: the pixels of `read_image`, and its errors.

    Whatever torchvision refuses, or would not read as Pillow does, is Pillow's.
    """
    from PIL import Image

    with open(path, "rb", buffering=0) as file:
        encoded = file.readall()
    with suppress(RuntimeError):  # whether it is damaged is for Pillow to say
        if is_plain_jpeg(encoded) and "JPEG" in alike():
            return decoded(encoded)
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format in alike() and image.mode in MODES and getattr(image, "n_frames", 1) == 1:
            orientation = image.getexif().get(ORIENTATION, 1)
            with suppress(RuntimeError):
                return turned(decoded(encoded), orientation)
        return torch.from_numpy(rgb_pixels(image, None).copy()).permute(2, 0, 1)


def is_plain_jpeg(encoded: bytes) -> bool:
    """Return True for a JPEG in grey or colour whose head holds nothing that its pixels depend on, such as the camera's
    orientation. Pillow's own look at it takes a tenth of the time of decoding."""
    known, at = False, 2
    if not encoded.startswith(b"\xff\xd8"):
        return False
    while encoded[at : at + 1] == b"\xff":
        marker, content = encoded[at + 1 : at + 2], encoded[at + 4 : at + 10]
        if marker == b"\xda":
            return known
        if marker in FRAMES:
            precision, components = content[:1], content[5:]
            pixels = int.from_bytes(content[1:3], "big") * int.from_bytes(content[3:5], "big")
            known = precision == b"\x08" and components in (b"\x01", b"\x03") and pixels <= MOST_PIXELS
        elif marker not in PASSED and not (marker == b"\xe0" and content.startswith(b"JFIF\0")):
            return False
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return False


def turned(pixels: Tensor, orientation: Any) -> Tensor:
    """[3, H, W] upright by its EXIF tag."""
    turn = TURNED.get(orientation)
    return pixels if turn is None else turn(pixels).permute(1, 2, 0).contiguous().permute(2, 0, 1)


def decoded(encoded: bytes) -> Tensor:
    """uint8 [3, H, W] by torchvision. Raises RuntimeError for what it does not read."""
    from torchvision.io import ImageReadMode, decode_image

    with unprinted():
        return decode_image(torch.frombuffer(encoded, dtype=torch.uint8), ImageReadMode.RGB)


@contextmanager
def unprinted() -> Iterator[None]:
    """Meanwhile a C library's remarks go nowhere: libjpeg prints one for each image that is damaged a little, without
    its name."""
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
    """Return a file descriptor that swallows what is written to it."""
    return os.open(os.devnull, os.O_WRONLY)


@cache
def alike() -> frozenset[str]:
    """The formats in which this torchvision has Pillow's pixels, tried on an image of each kind: other builds come with
    other libraries, or with none, and later versions are to come without decoders."""
    found = set()
    for name in FORMATS:
        with suppress(Exception):  # no decoder, or none of Pillow's to compare with
            if all(is_alike(encoded) for encoded in samples(name)):
                found.add(name)
    return frozenset(found)


def is_alike(encoded: bytes) -> bool:
    """Return True if torchvision has Pillow's pixels of an image."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return torch.equal(decoded(encoded).permute(1, 2, 0), torch.from_numpy(rgb_pixels(image, None).copy()))


def samples(name: str) -> Iterator[bytes]:
    """An image in full and in halved colours, at once and by and by, and in grey."""
    from PIL import Image

    ramp = torch.arange(52)[:, None, None] * torch.tensor([3, 5, 11]) + torch.arange(37)[:, None] * 7
    image = Image.fromarray((ramp % 256).to(torch.uint8).numpy())
    kinds = [{"subsampling": part, "progressive": late} for part in (0, 1, 2) for late in (False, True)]
    for settings in kinds if name == "JPEG" else [{"lossless": False}, {"lossless": True}]:
        for picture in (image, image.convert("L")):
            file = io.BytesIO()
            picture.save(file, name, **settings)
            yield file.getvalue()
