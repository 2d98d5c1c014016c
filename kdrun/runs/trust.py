"""Signatures of runs trained under this account: signature.json next to config.yaml, made with the user's own key.

The signature covers the configuration and the content of the user's own code. A directory from somebody else, an edited
configuration or edited code is thus recognised as not trained here. Whoever has the key file can sign.
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
    """Sign a run's config.yaml together with `code`: name -> SHA-256 of the user's own files. Does nothing if there
    is no key and none can be created, or if the folder is read-only."""
    key = signing_key(make=True)
    if key is not None:
        with suppress(RunError, OSError):
            write_json(folder / SIGNATURE, {"code": dict(code), "hmac": signature(key, folder, code)})


def signed_code(folder: Path) -> dict[str, str] | None:
    """Return name -> SHA-256 of the own code with which a run was signed under this account; None if it was not
    signed here, or if its config.yaml has changed since."""
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
    """Return the HMAC-SHA256 in hexadecimal."""
    content = {"config": sha256_of(folder / "config.yaml"), "code": dict(code)}
    return hmac.new(key, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def signing_key(make: bool = False) -> bytes | None:
    """Return the user's key, which nobody else may read; None if there is none. make: create one."""
    place = user_cache() / "signing.key"
    with suppress(OSError):
        found = place.lstat()
        mine = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
        if stat.S_ISREG(found.st_mode) and mine:
            key = place.read_bytes()
            return key if len(key) == KEY_BYTES else None
        return None  # a key that others can read proves nothing
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
            os.link(scratch, place)  # atomic: the first of several processes wins
        finally:
            scratch.unlink(missing_ok=True)
    return signing_key() if place.exists() else None
