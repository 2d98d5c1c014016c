"""Files as tensors: Pillow's pixels and errors for every kind of file, whoever decodes it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdrun.config.augment import Augment
from kdrun.data import pixels
from kdrun.data.augment import area_and_ratio, area_shares, shares_of, view_draws
from kdrun.data.decode import read_image, why_unreadable
from kdrun.data.pixels import alike, is_plain_jpeg, read_pixels
from kdrun.data.resident import Normalise

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((60, 44), Image.Resampling.BICUBIC)


def encoded(name: str, image: Image.Image = PICTURE, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **settings)
    return file.getvalue()


def held(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def resampled(jpeg: bytes, sampling: int, width: int, height: int) -> bytes:
    """A JPEG whose colours are halved in another way, with as many blocks."""
    at = jpeg.index(b"\xff\xc0")
    head = jpeg[: at + 5] + struct.pack(">HH", height, width)
    return head + jpeg[at + 9 : at + 11] + bytes([sampling]) + jpeg[at + 12 :]


def both(place: Path) -> tuple[torch.Tensor | str, torch.Tensor | str]:
    """Return Pillow's pixels and ours, or the reason why there are none."""
    found: list[torch.Tensor | str] = []
    for read in (lambda: torch.from_numpy(read_image(place, None).copy()).permute(2, 0, 1), lambda: read_pixels(place)):
        try:
            found.append(read())
        except Exception as error:
            found.append(f"{type(error).__name__}: {why_unreadable(error, place)}")
    return found[0], found[1]


def check_same(place: Path) -> None:
    expected, found = both(place)
    if isinstance(expected, str) or isinstance(found, str):
        assert isinstance(expected, str) and expected == found
    else:
        assert torch.equal(expected, found)
        assert expected.stride() == found.stride()


WIDE = PICTURE.resize((160, 128))
KINDS = {
    "baseline": encoded("JPEG"),
    "full colours": encoded("JPEG", subsampling=0),
    "halved colours": encoded("JPEG", subsampling=1),
    "4:4:0": resampled(encoded("JPEG", WIDE, subsampling=1), 0x12, 80, 256),
    "4:4:0, held by 6": resampled(encoded("JPEG", WIDE, subsampling=1, exif=held(6)), 0x12, 80, 256),
    "4:1:1": resampled(encoded("JPEG", WIDE, subsampling=2), 0x41, 320, 64),
    "progressive": encoded("JPEG", progressive=True),
    "restarts": encoded("JPEG", restart_marker_blocks=2),
    "grey": encoded("JPEG", PICTURE.convert("L")),
    "not YCbCr": encoded("JPEG", keep_rgb=True),
    "CMYK": encoded("JPEG", PICTURE.convert("CMYK")),
    "comment": encoded("JPEG", comment="of a cat"),
    "colour profile": encoded("JPEG", icc_profile=bytes(300)),
    "several images": encoded("MPO", save_all=True, append_images=[PICTURE.rotate(180)]),
    "one pixel": encoded("JPEG", PICTURE.resize((1, 1))),
    "trailing bytes": encoded("JPEG") + b"more",
    "webp": encoded("WEBP"),
    "lossless webp": encoded("WEBP", lossless=True),
    "transparent webp": encoded("WEBP", PICTURE.convert("RGBA")),
    "animated webp": encoded("WEBP", save_all=True, append_images=[PICTURE.rotate(180)]),
    "turned webp": encoded("WEBP", exif=held(6)),
    "png": encoded("PNG"),
    "grey png of 16 bits": encoded("PNG", Image.fromarray(RNG.integers(0, 2**16, (9, 8), dtype=np.uint16))),
    "palette": encoded("PNG", PICTURE.convert("P")),
    "transparent png": encoded("PNG", PICTURE.convert("RGBA")),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    **{f"held by {turn}": encoded("JPEG", exif=held(turn)) for turn in range(10)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_pillows(kind, tmp_path):
    place = tmp_path / "image"
    place.write_bytes(KINDS[kind])
    assert not isinstance(both(place)[0], str)
    check_same(place)


def test_torchvision_reads_what_it_reads_alike(tmp_path, monkeypatch):
    """With decoders of torchvision installed. Pillow does not decode what torchvision reads."""
    assert alike() == {"JPEG", "WEBP"}
    monkeypatch.setattr(pixels, "rgb_pixels", None)
    for kind in ("baseline", "halved colours", "progressive", "grey", "comment", "colour profile", "webp", "held by 6"):
        (tmp_path / "image").write_bytes(KINDS[kind])
        assert read_pixels(tmp_path / "image").dtype == torch.uint8
    plain = {kind for kind, content in KINDS.items() if is_plain_jpeg(content)}
    assert {"baseline", "progressive", "grey", "comment"} <= plain
    assert not plain & {"CMYK", "several images", "webp", "png", "held by 6", "4:4:0", "4:1:1"}


@pytest.mark.parametrize("kind", ["4:4:0", "4:4:0, held by 6", "4:1:1"])
def test_pillow_reads_chroma_that_other_versions_scale_otherwise(kind, tmp_path, monkeypatch):
    """torchvision 0.26 gives other pixels for 4:4:0."""
    assert alike() == {"JPEG", "WEBP"}
    monkeypatch.setattr(pixels, "decoded", None)
    (tmp_path / "image").write_bytes(KINDS[kind])
    check_same(tmp_path / "image")


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey", "held by 6", "webp", "png"])
def test_damaged_files_have_pillows_errors(kind, tmp_path, capfd):
    """Cut anywhere, or with bytes changed or lost, above all in the head; and libraries say nothing of it."""
    generator, content, place = np.random.default_rng(1), KINDS[kind], tmp_path / "image"
    for turn in range(60):
        damaged = bytearray(content)
        at = int(generator.integers(len(content) if turn % 2 else min(len(content), 650)))
        if turn % 3 == 0:
            del damaged[at:]
        elif turn % 3 == 1:
            damaged[at] = generator.integers(256)
        else:
            del damaged[at]
        place.write_bytes(damaged)
        check_same(place)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there(tmp_path):
    check_same(tmp_path / "gone")
    (tmp_path / "empty").write_bytes(b"")
    check_same(tmp_path / "empty")


@pytest.mark.parametrize("how", ["without decoders", "of another library"])
def test_another_torchvision(how, tmp_path, monkeypatch):
    """Pillow reads everything where torchvision has no decoders, or decodes to other pixels."""
    usual = pixels.decoded

    def other(content: bytes) -> torch.Tensor:
        if how == "without decoders":
            raise ImportError("cannot import name 'decode_image' from 'torchvision.io'")
        return usual(content) ^ 1

    alike.cache_clear()
    monkeypatch.setattr(pixels, "decoded", other)
    try:
        assert alike() == set()
        for kind in ("baseline", "webp", "held by 6"):
            (tmp_path / "image").write_bytes(KINDS[kind])
            check_same(tmp_path / "image")
    finally:
        alike.cache_clear()


def test_areas_of_one_image_are_those_of_a_batch():
    augment = Augment(crop="resized", resized_scale=[0.08, 1.0])
    draws = view_draws(augment, 3, 1, 0, torch.arange(500))
    areas = torch.stack(area_and_ratio(augment, draws), dim=2).tolist()
    for aspect in (0.2, 0.75, 1.0, 3.0):
        expected = torch.stack(area_shares(augment, draws, aspect), dim=1)
        found = torch.tensor([shares_of(one, aspect) for one in areas], dtype=torch.float64)
        assert torch.equal((found * 500).round(), (expected * 500).round())
        assert (found - expected).abs().max() < 2e-16  # PyTorch's square root may be a bit off


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 224, 224), (1, 3, 50_000)])
def test_normalising_by_rows_changes_no_bit(shape):
    images = torch.from_numpy(RNG.integers(0, 256, (*shape, 3), dtype=np.uint8))
    normalise = Normalise(([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), torch.device("cpu"))
    found = normalise(images)
    assert torch.equal(found, (images.float() * normalise.scale + normalise.shift).permute(0, 3, 1, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)
