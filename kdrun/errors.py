"""Errors that a user can act on: one line says what is wrong, with which value, and what to do."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable


class KdrunError(Exception):
    """Shown as its one line, without a traceback; the command ends with `exit_code`."""

    exit_code = 2


class ConfigError(KdrunError):
    """A setting is wrong: name, value, type, range or combination."""


class DataError(KdrunError):
    """A data set is missing, damaged or does not fit."""


class CheckpointError(KdrunError):
    """A file of weights is missing, damaged, unsafe or of another architecture."""


class PairingError(KdrunError):
    """A method cannot run on this pair of networks."""


class RunError(KdrunError):
    """A run failed while training; its directory holds `failed.txt` and the last good checkpoint."""

    exit_code = 1


class DiskFull(RunError):
    """No room for a file: none of the neighbours can go on either."""


class LockedElsewhere(RunError):
    """Another process is at this run: no failure of it."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C: everything is saved and the same command resumes. Like KeyboardInterrupt it
    passes by every `except Exception`, which would take it for a damaged image or a failed run.

    75 is EX_TEMPFAIL of sysexits.h: "try again later", the code to requeue on.
    """

    exit_code = 75


# What a name out of somebody else's file could move, recolour or reverse on a terminal, and what no encoding has.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters as one would write them: \\x1b."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


muted = False  # of several processes that train one run, one prints


def print_error(line: str, whoever: bool = False) -> None:
    """The one line of an error on stderr; in red on a terminal, unless NO_COLOR is set. Rich would take longer to
    import than the mistake takes to find. whoever: from a muted process too."""
    if muted and not whoever:
        return
    line = printable(line)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[1;31merror:\x1b[0m {line}" if colour else f"error: {line}", file=sys.stderr)


def print_note(line: str) -> None:
    """What one should know of the results that follow, beside them: on stderr."""
    if not muted:
        print(f"note: {printable(line)}", file=sys.stderr)


def suggest(wrong: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the nearest known name, or nothing."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return a, b, c and 4 more."""
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def one_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def reason_of(error: BaseException) -> str:
    """What failed.txt says: our own errors by their line, any other by its type and its line."""
    line, kind = one_line(error), type(error).__name__
    return line if isinstance(error, KdrunError) or line == kind else f"{kind}: {line}"


def with_notes(error: BaseException) -> str:
    """Return an error's message and, below it, its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())]).rstrip("\n")


def trace_behind(error: BaseException) -> str:
    """Return the traceback of the unexpected error that caused a failure; "" where the failure's line says all."""
    cause = error.__cause__
    if cause is None or isinstance(cause, KdrunError | MemoryError) or type(cause).__name__ == "OutOfMemoryError":
        return ""
    return "".join(traceback.format_exception(cause))
