"""Command-line overrides of a named sweep, cell by cell: a row stays what its label says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields

from kdrun.config.groups import GROUPS, MODEL_GROUPS
from kdrun.config.options import ModelOptions
from kdrun.errors import ConfigError, print_note
from kdrun.sweeps.cells import CellSpec

# What makes a row or a column itself. Other values of the command line, such as epochs, apply to every cell.
DEFINING = (
    *(*GROUPS, "optimizer@teacher.recipe", "teacher_view", "teacher.random"),
    *(f"{role}.checkpoint" for role in MODEL_GROUPS),
)
OF_NETWORK = {field.name for field in fields(ModelOptions)}
FILES = ("checkpoint", "checkpoint_weights", "checkpoint_ignore")  # each describes a file of exactly one network


def key_of(word: str) -> str:
    """Return the key of an override."""
    return word.partition("=")[0].lstrip("+~")


def applying(own: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the command line's overrides `given` that apply to a cell with the overrides `own` of its row (and of its
    column, if there are several).

    A network that the row chooses does not take the weights file, or other settings, of the command line's network.
    """
    mine, theirs = {key_of(word) for word in own}, {key_of(word) for word in given}
    return [word for word in given if not is_kept(key_of(word), mine, theirs)]


def is_kept(key: str, own: Collection[str], given: Collection[str]) -> bool:
    """Return True if a cell keeps its own value where the command line has the key."""
    if key in DEFINING and key in own:
        return True
    role, _, rest = key.partition(".")
    if role not in MODEL_GROUPS:
        return False
    part = rest.partition(".")[0]
    if role in own:
        return part in FILES or (role in given and part in OF_NETWORK)
    return f"{role}.random" in own and part in (*FILES, "pretrained")


def tell_kept(name: str, given: Sequence[str], cells: Sequence[CellSpec]) -> None:
    """Print a note for the command line's overrides that do not apply to each of the cells of sweep `name`. Raises
    ConfigError for one that applies to none."""
    places: dict[tuple[str, ...], list[str]] = {}
    for word in given:
        kept = [cell for cell in cells if word not in applying(cell.own, given)]
        if kept and len(kept) == len(cells):
            raise ConfigError(
                f"{word}: each chosen row or column of sweep {name} has its own {key_of(word)}. Leave it out: row= and "
                "column= choose cells, and kdrun train -m without sweep= makes a table of your own."
            )
        if kept:
            places.setdefault(labels_of(kept, cells), []).append(word)
    for labels, words in places.items():
        verb = "have their" if len(labels) > 1 else "has its"
        print_note(f"{' '.join(words)}: not for {', '.join(labels)}, which {verb} own.", once=True)


def labels_of(some: Sequence[CellSpec], cells: Sequence[CellSpec]) -> tuple[str, ...]:
    """Return the columns that `some` of the cells fill, else their rows."""
    columns = dict.fromkeys(cell.column for cell in some)
    rows = dict.fromkeys(cell.row for cell in some)
    whole = len(some) == sum(cell.column in columns for cell in cells)
    return tuple(columns if whole else rows)
