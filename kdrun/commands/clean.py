"""kdrun clean: show removable content of an output folder with its size, and remove it after asking."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kdrun import console
from kdrun.config.arguments import output_root_setting, parse
from kdrun.config.options import setting
from kdrun.display import size
from kdrun.errors import ConfigError, KdrunError, print_error
from kdrun.runs.directory import outputs_folder
from kdrun.runs.tidy import KINDS, Removable, removable, remove

HELP = """
usage: kdrun clean [what=unstarted,checkpoints,caches] [yes=true] [output_root=FOLDER]

Shows how much space each kind of removable content takes in an output folder, and asks before removing it:

  unstarted     directories of runs that never started
  checkpoints   last.pt of finished runs with intact weights: needed only to repair a damaged run
  caches        decoded and downloaded images and derived test sets, created again when needed

Results, weights and metrics of runs are kept; kdrun runs remove RUN … removes whole runs. Runs that are being trained
are skipped.
"""


@dataclass
class Options:
    what: list[str] = setting(list(KINDS), choices=tuple(KINDS), help="kinds to remove; default: all")
    yes: bool = setting(False, help="remove without asking")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("clean", words, Options)
    if parsed.names:
        raise ConfigError(f"clean {parsed.names[0]}: clean takes only settings; to remove runs, use kdrun runs remove.")
    root, options = outputs_folder(parsed.options.output_root), parsed.options
    if not root.is_dir():
        raise ConfigError(f"output_root={root}: no such folder.")
    found = removable(root, options.what)
    by_kind = {kind: [item for item in found if item.kind == kind] for kind in options.what}
    rows = [[kind, f"{len(items):,}", size(total(items)), KINDS[kind]] for kind, items in by_kind.items()]
    console.table("", ["what", "number", "size", ""], rows)
    chosen = [kind for kind, items in by_kind.items() if items and (options.yes or asked(kind, items))]
    failed = False
    for kind in chosen:
        gone = [item for item in by_kind[kind] if try_to_remove(item)]
        failed |= len(gone) < len(by_kind[kind])
        console.fact("removed", f"{kind}: {len(gone):,}, {size(total(gone))}")
    if not chosen:
        hint = "" if sys.stdin.isatty() or not found else "; yes=true removes without asking"
        console.note(f"nothing removed{hint}" if found else "nothing to remove")
    return 1 if failed else 0


def asked(kind: str, items: list[Removable]) -> bool:
    return console.confirm(f"remove {kind} ({len(items):,}, {size(total(items))})?")


def total(items: list[Removable]) -> int:
    return sum(item.size for item in items)


def try_to_remove(item: Removable) -> bool:
    """Remove one item. If that fails, print why and return False."""
    try:
        remove(item)
    except KdrunError as error:
        print_error(str(error))
        return False
    return True
