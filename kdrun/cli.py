"""The command line. Nothing heavy is imported here: `--help` and error messages must appear at once."""

from __future__ import annotations

import codecs
import importlib
import io
import locale
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from kdrun.commands import COMMANDS

USAGE = f"""kdrun: knowledge distillation of image classifiers, from one YAML-configured command.

usage: kdrun COMMAND [key=value …]

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in COMMANDS.items())}

kdrun train works without arguments: a resnet20 teaches a resnet8 to read handwritten digits, offline, in a minute.
A group selects a file in conf/ (method=dkd teacher=vgg16 student=resnet8 dataset=cifar100 optimizer=…), any value can
be set (epochs=30 method.temperature=2), and -m runs every combination: kdrun train -m method=kd,dkd seed=0,1,2.

  kdrun COMMAND --help    arguments and settings of a command
  kdrun train --cfg job   print the composed configuration without running it
  kdrun --version
"""


SPIN_COUNT = "30000"  # iterations; libgomp's default is 300,000 to 30 billion


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: a run failed; 2: the request was wrong; 75: stopped by a signal after saving (the same command resumes).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    spin_briefly()
    write_in_any_encoding()
    if not words or words[0] in ("-h", "--help", "help"):
        print_help(USAGE.rstrip())
        return 0
    if words[0] == "--version":
        from kdrun import __version__

        print(f"kdrun {__version__}")
        return 0
    from kdrun.errors import Interrupted, KdrunError, noted, out_of_memory, print_error, print_stopped, suggest

    noted.clear()
    try:
        if words[0] not in COMMANDS:
            raise KdrunError(
                f"{words[0]}: no such command.{suggest(words[0], COMMANDS)} Available: {', '.join(COMMANDS)}."
            )
        return run_command(words[0], words[1:])
    except KdrunError as error:
        print_error(str(error))
        return error.exit_code
    except Interrupted as stopped:
        (print_stopped if stopped.asked else print_error)(str(stopped))
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError as error:
        print_error(f"out of memory ({str(error) or 'size unknown'}): use fewer or smaller images.")
        return 1
    except RuntimeError as error:
        if not (line := out_of_memory(error)):
            raise
        print_error(f"{line}.")
        return 1
    except BrokenPipeError:  # as in `kdrun list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(name: str, words: list[str]) -> int:
    """Print the help of a command, or run it. Commands that train stop resumably on a signal from their first line
    on."""
    with ExitStack() as signals:
        if name in ("train", "tune"):
            from kdrun.training.signals import stop_on_signals

            signals.enter_context(stop_on_signals())
        module = importlib.import_module(f"kdrun.commands.{name}")
        if any(word in ("-h", "--help") for word in words):
            from kdrun.config.arguments import NoOptions, options_help

            settings = options_help(getattr(module, "Options", NoOptions))
            print_help("\n\n".join(part for part in (module.HELP.strip(), settings) if part))
            return 0
        return module.command(words)


def print_help(text: str) -> None:
    """Print help, on a terminal folded to its width; a pipe gets it as it is."""
    from kdrun.display import fitted

    print(fitted(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)


def spin_briefly() -> None:
    """Shorten the time for which OpenMP's threads spin while they wait for each other.

    A run that shares its cores with other work would otherwise waste most of its time, and the other work's, on
    spinning. libgomp reads the value when torch is imported; a user's own choice is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


PLAIN = {
    "→": "->",
    "±": "+-",
    "×": "x",
    "…": "...",
    "·": "|",
    "−": "-",
    "–": "-",
    "Δ": "d",
    "²": "^2",
    "≤": "<=",
    "≥": ">=",
}


def write_in_any_encoding() -> None:
    """Replace characters that the terminal's or log's encoding lacks by similar ones: → by ->, others by \\u4e2d."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        lacking = error.object[error.start : error.end]
        return "".join(PLAIN.get(sign) or sign.encode("unicode_escape").decode() for sign in lacking), error.end

    codecs.register_error("kdrun", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="kdrun")


def write_files_in_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale has another file encoding.

    Files written here are read elsewhere, and names can be in any script. Output on the terminal keeps the locale's
    encoding.
    """
    if locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def leave_current_folder() -> None:
    """Remove the current folder from the import path, for this process and its children: it may hold somebody else's
    files, and `python -m` looks there first.

    User code named on the command line is still imported from there, and so is kdrun in a plain checkout.
    """
    here = os.getcwd()
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) != here:
        if sys.path[:1] in ([here], [""]):
            del sys.path[0]
        os.environ.setdefault("PYTHONSAFEPATH", "1")


def open_streams() -> None:
    """Give the process an output and an error stream where it was started without (`>&-`, some services)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def console() -> None:
    """Run the console script."""
    open_streams()
    write_files_in_utf8()
    leave_current_folder()
    sys.exit(main())
