"""Which runs were trained under this account: signature.json beside config.yaml, by a key of the user's own.

The signature covers the configuration and the content of the user's own code, so that a directory from somebody else,
an edited configuration and edited code are told from what was trained here. Whoever has the key file can sign.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kdrun.errors import CheckpointError, RunError
from kdrun.files import read_json, sha256_of, write_json
from kdrun.hardware import user_cache

SIGNATURE = "signature.json"
KEY_BYTES = 32


def sign(folder: Path, code: Mapping[str, str]) -> None:
    """Sign a run's config.yaml together with `code`: name -> SHA-256 of the user's own files. Where there can be no
    key, or the folder is only to be read, nothing is signed."""
    key = signing_key(make=True)
    if key is not None:
        with suppress(RunError, OSError):
            write_json(folder / SIGNATURE, {"code": dict(code), "hmac": signature(key, folder, code)})


def signed_code(folder: Path) -> dict[str, str] | None:
    """name -> SHA-256 of the own code that a run was signed with under this account; None where it was not, or where
    its config.yaml is another one since."""
    key = signing_key()
    try:
        told = read_json(folder / SIGNATURE)
        code, found = told["code"], str(told["hmac"])
        if key is None or not hmac.compare_digest(signature(key, folder, code).encode(), found.encode()):
            return None
    except (CheckpointError, KeyError, OSError, TypeError, ValueError):
        return None
    return dict(code)


def signature(key: bytes, folder: Path, code: Mapping[str, str]) -> str:
    """HMAC-SHA256, in hexadecimal."""
    content = {"config": sha256_of(folder / "config.yaml"), "code": dict(code)}
    return hmac.new(key, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def signing_key(make: bool = False) -> bytes | None:
    """The user's key, which nobody else may read; None where there is none. make: draw one."""
    place = user_cache() / "signing.key"
    with suppress(OSError):
        found = place.lstat()
        mine = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
        if stat.S_ISREG(found.st_mode) and mine:
            key = place.read_bytes()
            return key if len(key) == KEY_BYTES else None
        return None  # a key that others know says nothing
    if not make:
        return None
    scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        try:
            os.link(scratch, place)  # whole, and the first of several processes wins
        finally:
            scratch.unlink(missing_ok=True)
    return signing_key() if place.exists() else None
