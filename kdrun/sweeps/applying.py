"""Command-line overrides of a named sweep, cell by cell: a row stays what its label says."""

from __future__ import annotations

from collections.abc import Sequence
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
OF_FILE = ("checkpoint", "checkpoint_weights", "checkpoint_ignore")


def key_of(word: str) -> str:
    """Return the key of an override."""
    return word.partition("=")[0].lstrip("+~")


def applying(row: Sequence[str], column: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the command line's overrides `given` that apply to a cell with the overrides of its row and its column.

    A row or column keeps what it defines. A network that a row chooses does not take the weights file, or other
    settings, of the command line's network. Nothing else decides, so that a sweep can be run row by row.
    """
    defined = {key_of(word) for word in (*row, *column)}.intersection(DEFINING)
    chosen, theirs = ({key_of(word) for word in words} for words in (row, given))
    return [word for word in given if key_of(word) not in defined and not is_of_other(word, chosen, theirs)]


def is_of_other(word: str, row: set[str], given: set[str]) -> bool:
    """Return True if an override of the command line describes another network than the row's. row, given: keys."""
    role, _, rest = key_of(word).partition(".")
    if role not in MODEL_GROUPS:
        return False
    part, value = rest.partition(".")[0], word.partition("=")[2]
    of_file = part in OF_FILE or (part == "pretrained" and value not in ("true", "false"))
    if role in row:
        return of_file or (role in given and part in OF_NETWORK)
    return f"{role}.random" in row and (of_file or part == "pretrained")


def tell_kept(name: str, given: Sequence[str], cells: Sequence[CellSpec], before: Sequence[str]) -> None:
    """Print a note for the command line's overrides that do not apply to each of the chosen cells of sweep `name`.
    before: the overrides of the runs that the cells start from. Raises ConfigError for one that applies to none."""
    places: dict[tuple[str, ...], list[str]] = {}
    for word in given:
        kept = [cell for cell in cells if word in cell.kept_out]
        if kept and len(kept) == len(cells) and word not in before:
            raise ConfigError(
                f"{word}: every row or column of sweep {name} has its own {key_of(word)}. Leave it out: row= and "
                "column= choose cells, and kdrun train -m without sweep= makes a table of your own."
            )
        chosen = [cell for cell in kept if cell.chosen]
        if chosen:
            places.setdefault(labels_of(chosen, cells), []).append(word)
    for labels, words in places.items():
        verb = "choose" if len(labels) > 1 else "chooses"
        print_note(f"{' '.join(words)}: not for {', '.join(labels)}, which {verb} otherwise.", once=True)


def labels_of(some: Sequence[CellSpec], cells: Sequence[CellSpec]) -> tuple[str, ...]:
    """Return the columns that `some` of the chosen cells fill, else their rows."""
    columns = dict.fromkeys(cell.column for cell in some)
    rows = dict.fromkeys(cell.row for cell in some)
    whole = len(some) == sum(cell.chosen and cell.column in columns for cell in cells)
    return tuple(columns if whole else rows)
