"""Files that survive a kill at any instant: written next to their destination, synced, then renamed over it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from kdrun.errors import CheckpointError, DiskFull, RunError, one_line

onlooking = False  # when several processes train one run, only one writes
LEAST_ROOM = 2**20  # bytes
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# Errors of zipfile (and of numpy.load, which uses it) for a damaged archive.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
CHECKSUM = "checksum"  # its key in a JSON file


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file in the same folder, flush it to disk, and rename it to `path`.

    Raises DiskFull, or RunError for a folder that cannot be written; `path` is then unchanged. Does nothing in a
    process that is only `onlooking`.
    """
    if onlooking:
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        with scratch.open("xb") as file:  # x: never follow a planted symlink
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise refused(error, path) from error
    except RuntimeError as error:  # torch.save wraps the OSError
        if isinstance(error.__context__, OSError):
            raise refused(error.__context__, path) from error
        if shutil.disk_usage(path.parent).free < LEAST_ROOM:
            raise DiskFull(f"{path} cannot be written ({one_line(error)}); is the disk full?") from error
        raise  # not the disk: PyTorch raises the death of a loader's worker at an arbitrary line
    finally:
        with suppress(OSError):  # the parent may be a file
            scratch.unlink(missing_ok=True)


def refused(error: OSError, path: Path) -> RunError:
    """Return the error for a failed write: DiskFull if the disk or the user's quota is full, else RunError."""
    return (DiskFull if error.errno in NO_ROOM else RunError)(explain_os_error(error, path))


def explain_os_error(error: OSError, path: Path) -> str:
    """Return the one-line message for a failed write."""
    if error.errno in NO_ROOM:
        return f"disk full while writing {path}: free some space and run the same command again; it resumes."
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return (
            f"{path} cannot be written ({error.strerror}): train into a folder of yours with output_root=… (or "
            "KDRUN_OUTPUTS); kdrun eval and export of another's run take save=…."
        )
    return f"{path} cannot be written ({error.strerror or error})."


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, if the system allows a folder to be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object with a checksum of its content as the last entry, which `read_json` checks and removes."""
    plain = json.loads(json.dumps(content, default=str))
    write_text(path, json.dumps({**plain, CHECKSUM: checksum_of(plain)}, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. A file without a checksum is accepted: it is from elsewhere or from an earlier version.

    Raises CheckpointError if the file is damaged or has changed since it was written.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    told = content.pop(CHECKSUM, None)
    if told is not None and told != checksum_of(content):
        raise CheckpointError(f"{path} has changed since it was written (its checksum does not match).")
    return content


def checksum_of(content: Any) -> str:
    """Return 64 bits of the SHA-256 of plain values, in hexadecimal, independent of their order and spacing in a
    file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def spreadsheet_safe(row: Iterable[Any]) -> list[Any]:
    """Return a row for a CSV file. Text that a spreadsheet would take for a formula is prefixed with an apostrophe,
    as spreadsheets write it themselves; numbers are kept."""
    return [f"'{cell}" if isinstance(cell, str) and is_formula(cell) else cell for cell in row]


def is_formula(cell: str) -> bool:
    """Return True if a spreadsheet would take the text for a formula."""
    if not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_archive(path: Path) -> None:
    """Raise ValueError if a file of torch.save (a zip archive) has changed since it was written, by the archive's
    checksums, which torch.load does not check."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except DAMAGED_ARCHIVE as error:
        raise ValueError(f"it has changed since it was written: {one_line(error)}") from error
    if damaged is not None:
        raise ValueError(f"it has changed since it was written: the checksum of {damaged} in it does not match")


def require_file(path: Path, called: str) -> None:
    """Raise CheckpointError unless `path` is a regular file (no folder, pipe or device). called: its name in the
    message."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "no such file" if missing else f"cannot be opened ({error.strerror or error})"
        raise CheckpointError(f"{called}: {reason}.") from error
    except ValueError as error:  # the path contains a null byte
        raise CheckpointError(f"{called}: no such file.") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(f"{called} is a directory: name the file of weights in it.")
    if not stat.S_ISREG(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise CheckpointError(f"{called} is {kind}, not a file: save the weights to disk first.")
