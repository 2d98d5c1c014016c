"""Reading of weights files: a file's type, by its content, and the tensors in it. No code in a file is ever run."""

from __future__ import annotations

import argparse
import pickle
import re
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from kdrun.errors import CheckpointError, one_line
from kdrun.files import check_archive, require_file
from kdrun.models.placeholders import load_passing_over

# The first bytes of torch.save before PyTorch 1.6: a pickled magic number.
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# First bytes -> type of such a file, and the way out.
OTHERS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer instead of the weights: run `git lfs pull` in its repository",
    ),
    (b"\x1f\x8b", "compressed with gzip: unpack it (gunzip) and name the unpacked file"),
    (b"BZh", "compressed with bzip2: unpack it (bunzip2) and name the unpacked file"),
    (b"\xfd7zXZ", "compressed with xz: unpack it (unxz) and name the unpacked file"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it (unzstd) and name the unpacked file"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and name the file in it"),
    (b"Rar!", "a RAR archive: unpack it and name the file in it"),
    (b"\x89HDF", "an HDF5 file (Keras), not PyTorch weights: kdrun reads torch.save and safetensors"),
    (b"\x93NUMPY", "a NumPy array, not a network's weights: save tensors by name with torch.save or safetensors"),
    (b"GGUF", "a GGUF file, not PyTorch weights: kdrun reads torch.save and safetensors"),
    (b"\x89PNG", "an image, not weights: name a .pth, .pt or .safetensors file"),
    (b"\xff\xd8\xff", "an image, not weights: name a .pth, .pt or .safetensors file"),
    (b"%PDF", "a PDF document, not weights: name a .pth, .pt or .safetensors file"),
)
NO_WEIGHTS = "neither a torch.save nor a safetensors file: name a .pth, .pt or .safetensors file"
TRUNCATED = "truncated: it starts like a torch.save file but its end is missing; download or copy it again"


def read_content(path: Path) -> Any:
    """Read the content of a weights file: tensors, plain values, and containers of them. Torch files are read with
    `weights_only`, so that no code in them runs.

    Raises CheckpointError (one line) for anything else.
    """
    require_file(path, f"checkpoint {path}")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        check_kind(path, head)
        if is_safetensors(head):
            from safetensors.torch import load_file

            return load_file(path)
        if head.startswith(b"PK"):
            check_archive(path)
        return load_torch_file(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(refusal(path, error)) from error
    except CheckpointError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, IndexError and more
        reason = f"{type(error).__name__}: {one_line(error)}"[:160].rstrip(".")
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({reason}); it may be truncated: download or copy it again."
        ) from error


def check_kind(path: Path, head: bytes) -> None:
    """Raise CheckpointError for a file that holds no weights, with its type and the way out."""
    if not head:
        raise CheckpointError(f"checkpoint {path} is empty (0 bytes): download or save it again.")
    if head.startswith(OLD_TORCH) or is_safetensors(head):
        return
    kind = next((kind for first, kind in OTHERS if head.startswith(first)), None)
    if head.startswith(b"PK"):
        kind = kind_of_archive(zipfile.ZipFile(path).namelist()) if zipfile.is_zipfile(path) else TRUNCATED
        if kind is None:
            return
    elif kind is None and not head.strip(b"\0"):
        kind = "blank (zero bytes), as after an interrupted download or copy: get it again"
    elif kind is None and head[:1] == b"\x80":
        kind = (
            "a plain pickle, which could run code and is not read: re-save its tensors with torch.save or safetensors"
        )
    elif kind is None and tarfile.is_tarfile(path):
        kind = "a tar archive: unpack it and name the weights file in it"
    kind = kind or kind_of_text(head) or NO_WEIGHTS
    raise CheckpointError(f"checkpoint {path} is {kind}.")


def kind_of_text(head: bytes) -> str | None:
    """Describe a text file found instead of weights; return None if it is not text."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not a character cut by the end of `head`
            return None
        text = head[: error.start].decode()
    if any(letter < " " and letter not in "\t\r\n\f\x1b" for letter in text):
        return None
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "<head", "<!--")):
        return "a web page, not weights: the download got a login or error page; download the file itself"
    words = " ".join(text.split())
    shown = words if len(words) <= 40 else f"{words[:40]}…"
    return f"text ({shown!r}), not weights: name a .pth, .pt or .safetensors file"


def kind_of_archive(names: list[str]) -> str | None:
    """Describe a zip archive that torch.save did not write; return None for one that it did."""
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        return (
            "a TorchScript program, which kdrun does not run: if you trust it, "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') saves its weights"
        )
    if "data.pkl" in inner:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz), not PyTorch weights: save its arrays as tensors with torch.save or safetensors"
    found = [name for name in names if name.endswith((".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors"))]
    if not found:
        return (
            f"a zip archive without weights ({(names or ['nothing'])[0]} in it): name a .pth, .pt or .safetensors file"
        )
    return f"a zip archive that torch.save did not write: unpack it and name {found[0]} in it"


def is_safetensors(head: bytes) -> bool:
    """Return True if the first bytes are a length and the JSON header that follows it."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27


def load_torch_file(path: Path) -> Any:
    """Run torch.load with `weights_only`, allowing the harmless extras of RepDistiller's files (NumPy scalars,
    options); other objects become placeholders."""
    import numpy as np

    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar  # type: ignore[attr-defined]
    codes = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"
    harmless = [scalar, np.dtype, argparse.Namespace, *{type(np.dtype(code)) for code in codes}]
    with torch.serialization.safe_globals(harmless), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated storages and beta layouts
        return load_passing_over(path)


def refusal(path: Path, error: Exception) -> str:
    """Return the error line for a pickle that `weights_only` rejected, with the rejected class if PyTorch names it."""
    name = refused_name(error)
    if name is None:
        return f"checkpoint {path} cannot be read as weights: it is damaged, or was not written by torch.save."
    return (
        f"checkpoint {path} holds more than tensors ({name}) and is not unpickled, since that could run code: if "
        "you trust it, load it with the program that wrote it and re-save its state_dict alone "
        "(torch.save(model.state_dict(), FILE))."
    )


def refused_name(error: Exception) -> str | None:
    """Return the class or function that `weights_only` rejected, from PyTorch's message."""
    patterns = (
        r"GLOBAL (\S+) (?:was|whose)",
        r"got <class '([\w.]+)'",
        r"unrecognized function <?(?:[\w-]+ )*?([\w.]+)\b",
    )
    return next((found.group(1) for pattern in patterns if (found := re.search(pattern, str(error)))), None)
