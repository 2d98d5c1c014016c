"""The command line. Nothing heavy is imported here: `--help` and mistakes must answer at once."""

from __future__ import annotations

import codecs
import importlib
import io
import locale
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from kdrun.commands import COMMANDS

USAGE = f"""kdrun: knowledge distillation of image classifiers, from one YAML-configured command.

usage: kdrun COMMAND [key=value …]

commands:
{chr(10).join(f"  {name:<10} {text}" for name, text in COMMANDS.items())}

kdrun train runs as it is: a resnet20 teaches a resnet8 handwritten digits, offline, in a minute or two.
Groups choose files in conf/ (method=dkd teacher=vgg16 student=resnet8 dataset=cifar100 optimizer=…), every value can
be set (epochs=30 method.temperature=2), and -m runs every combination: kdrun train -m method=kd,dkd seed=0,1,2.

  kdrun COMMAND --help    what a command takes
  kdrun train --cfg job   the composed configuration, without running it
  kdrun --version
"""


SPIN_COUNT = "30000"  # of rounds; libgomp's own is 300,000 to 30 billion


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a run failed, 2 the request was wrong, 75 stopped by a
    signal after saving (run the same command again)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    spin_briefly()
    write_in_any_encoding()
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from kdrun import __version__

        print(f"kdrun {__version__}")
        return 0
    from kdrun.errors import Interrupted, KdrunError, print_error, suggest

    try:
        if words[0] not in COMMANDS:
            raise KdrunError(
                f"{words[0]}: no such command.{suggest(words[0], COMMANDS)} There are: {', '.join(COMMANDS)}."
            )
        return run_command(words[0], words[1:])
    except KdrunError as error:
        print_error(str(error))
        return error.exit_code
    except Interrupted as stopped:
        print_error(str(stopped))
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError as error:
        print_error(
            f"there is not enough memory ({str(error) or 'no size is known'}): ask for fewer or smaller images."
        )
        return 1
    except BrokenPipeError:  # the reader of `kdrun list | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(name: str, words: list[str]) -> int:
    """Print the help of a command, or run it; what trains ends resumably on a signal from its first line on."""
    with ExitStack() as signals:
        if name in ("train", "tune"):
            from kdrun.training.signals import stop_on_signals

            signals.enter_context(stop_on_signals())
        module = importlib.import_module(f"kdrun.commands.{name}")
        if any(word in ("-h", "--help") for word in words):
            from kdrun.config.arguments import NoOptions, options_help

            settings = options_help(getattr(module, "Options", NoOptions))
            print("\n\n".join(part for part in (module.HELP.strip(), settings) if part))
            return 0
        return module.command(words)


def spin_briefly() -> None:
    """Let OpenMP's threads give up their core soon where they wait for one another: a run that shares its cores with
    other work would otherwise spend most of its time on waiting, and the other work's too. Read by libgomp as torch is
    imported; a user's own choice stays."""
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
    """Show signs that a terminal's or a log's encoding lacks by ones that it has: → as ->, others as \\u4e2d."""

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
    """Start again in Python's UTF-8 mode where the locale has another encoding for files: what is written here is read
    elsewhere, and names are in any script. What is printed stays in the locale's encoding."""
    if locale.getpreferredencoding(False).lower().replace("-", "") != "utf8":
        os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def leave_current_folder() -> None:
    """Import no library from the folder that kdrun was started in, which may hold somebody else's files: neither here,
    where `python -m` looks there first, nor in the processes that are started. One's own code is still found there
    where a command line names it, and so is kdrun in a plain checkout."""
    here = os.getcwd()
    if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) != here:
        if sys.path[:1] in ([here], [""]):
            del sys.path[0]
        os.environ.setdefault("PYTHONSAFEPATH", "1")


def console() -> None:
    """The console script."""
    write_files_in_utf8()
    leave_current_folder()
    sys.exit(main())
