"""kdrun clean: what an output folder holds that nobody needs, shown with its size and removed where the user agrees."""

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

Shows how much an output folder holds of each kind that can be removed, and asks before it removes it:

  unstarted     directories of runs that never started
  checkpoints   last.pt of finished runs whose weights are whole: only a damaged run would need it
  caches        decoded and downloaded images and derived test sets, which are made again when they are needed

Results, weights and metrics of runs stay; kdrun runs remove RUN … removes whole runs. What another process is at is
passed over.
"""


@dataclass
class Options:
    what: list[str] = setting(list(KINDS), choices=tuple(KINDS), help="which kinds; all without it")
    yes: bool = setting(False, help="remove without asking")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("clean", words, Options)
    if parsed.names:
        raise ConfigError(f"clean {parsed.names[0]}: clean takes settings only; runs are removed by kdrun runs remove.")
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
        console.note(f"nothing is removed{hint}" if found else "there is nothing to remove")
    return 1 if failed else 0


def asked(kind: str, items: list[Removable]) -> bool:
    return console.confirm(f"remove {kind} ({len(items):,}, {size(total(items))})?")


def total(items: list[Removable]) -> int:
    return sum(item.size for item in items)


def try_to_remove(item: Removable) -> bool:
    """Remove one; print why where that cannot be."""
    try:
        remove(item)
    except KdrunError as error:
        print_error(str(error))
        return False
    return True
