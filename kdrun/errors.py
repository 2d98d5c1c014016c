"""Errors that a user can act on. One line says what is wrong, with which value, and what to do."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterable


class KdrunError(Exception):
    """Base class of kdrun's errors, shown as one line without a traceback. The command ends with `exit_code`."""

    exit_code = 2


class ConfigError(KdrunError):
    """Wrong setting: name, value, type, range or combination."""


class DataError(KdrunError):
    """Data set that is missing, damaged or unsuitable."""


class CheckpointError(KdrunError):
    """Weights file that is missing, damaged, unsafe or of another architecture."""


class PairingError(KdrunError):
    """Pair of networks that a method cannot run on."""


class RunError(KdrunError):
    """Run that failed while training; its directory holds `failed.txt` and the last good checkpoint."""

    exit_code = 1


class DiskFull(RunError):
    """Full disk: no other run on it can continue either."""


class LockedElsewhere(RunError):
    """Lock held by another process, which is training the run. Not counted as a failure of the run."""


class Interrupted(KeyboardInterrupt):
    """Stop by SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C, after saving: the same command resumes.

    Like KeyboardInterrupt it is not caught by `except Exception`, which would take it for a damaged image or a failed
    run. 75 is EX_TEMPFAIL of sysexits.h ("try again later"), the code on which schedulers requeue.
    """

    exit_code = 75
    asked = True  # False: not by a signal to this process, but by the death of another process of the run


# Characters with which a name from a foreign file could control a terminal, and lone surrogates.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return `text` with control characters escaped: \\x1b."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


noted: set[str] = set()  # the notes of this command
muted = False  # when several processes train one run, only one prints


def print_error(line: str, whoever: bool = False) -> None:
    """Print the one line of an error on stderr; in red on a terminal, unless NO_COLOR is set.

    Without rich, whose import would delay the message. whoever: print from a muted process too.
    """
    if muted and not whoever:
        return
    line = printable(line)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[1;31merror:\x1b[0m {line}" if colour else f"error: {line}", file=sys.stderr)


def print_stopped(line: str) -> None:
    """Print the line of a stop that was asked for, on stderr. It is no error: the same command resumes."""
    if not muted:
        print(printable(line), file=sys.stderr)


def print_note(line: str, once: bool = False) -> None:
    """Print a note about the results that follow, on stderr. once: only the first time in this command."""
    if muted or (once and line in noted):
        return
    noted.add(line)
    print(f"note: {printable(line)}", file=sys.stderr)


def out_of_memory(error: BaseException) -> str:
    """Return a line for PyTorch's error about a GPU's full memory; "" for any other. It is told by its name: importing
    torch for it would slow every command down."""
    if type(error).__name__ != "OutOfMemoryError":
        return ""
    return f"out of memory ({one_line(error)[:160]}): set a smaller batch_size or eval_batch_size"


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Return ' Did you mean X?' for the most similar known name, or an empty string."""
    names = list(known)
    near = [name for name in names if name.lower() == wrong.lower()]  # KD for Kd, in which half of the letters differ
    near = near or difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return names as a list: a, b, c and 4 more."""
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Return the text of failed.txt: the line of one of kdrun's errors; type and line of any other."""
    line, kind = one_line(error), type(error).__name__
    return line if isinstance(error, KdrunError) or line == kind else f"{kind}: {line}"


def with_notes(error: BaseException) -> str:
    """Return an error's message and, below it, its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())]).rstrip("\n")


def trace_behind(error: BaseException) -> str:
    """Return the traceback of the unexpected error that caused a failure; "" where the failure's line says all."""
    cause = error.__cause__
    if cause is None or isinstance(cause, KdrunError | MemoryError) or out_of_memory(cause):
        return ""
    return "".join(traceback.format_exception(cause))
