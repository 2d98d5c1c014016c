"""A name used again: a second multirun adds its cells to the ledger; a sweep never replaces a multirun's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdrun.display import plural
from kdrun.errors import CheckpointError, ConfigError
from kdrun.runs.ledger import Cell, Ledger, TableShape, changes_numbers, read_ledger

Place = tuple[str, str, int]


def added(new: Ledger, root: Path) -> tuple[Ledger, str]:
    """Return the ledger together with the existing cells of the same name, and a line that reports them.

    Cells that could not run are dropped. A cell with other settings in the same place gets these settings appended to
    its row's name.
    """
    try:
        old = read_ledger(root, new.name)
    except (ConfigError, CheckpointError):  # no ledger yet, or a damaged one
        return new, ""
    runs = {cell.run for cell in new.cells}
    kept = [cell for cell in old.cells if cell.run is not None and cell.run not in runs]
    if not kept:
        return new, ""
    taken = {place_of(cell): cell for cell in kept}
    cells = [apart(cell, taken) for cell in new.cells]
    own = {place_of(cell) for cell in cells}
    kept = [cell for cell in kept if place_of(cell) not in own]  # from another state of the code or the images
    shape = joined_shape(old.shape, new.shape, [*kept, *cells])
    command = " && ".join(dict.fromkeys(one for one in [*old.command.split(" && "), new.command] if one))
    line = f"{new.name} has {plural(len(kept), 'cell')} of earlier commands, kept in its table"
    return replace(new, title=old.title, command=command, shape=shape, cells=[*kept, *cells]), line


def check_kept(new: Ledger, root: Path) -> None:
    """Raise ConfigError if a named sweep's ledger would replace that of a multirun of the same name."""
    try:
        old = read_ledger(root, new.name)
    except (ConfigError, CheckpointError):
        return
    if is_named_sweep(new.command) and "-m" in old.command.split() and not is_named_sweep(old.command):
        held = plural(len(old.cells), "cell")
        raise ConfigError(
            f"sweep={new.name}: a multirun has this name, and the sweep would replace its table of {held}: give the "
            f"sweep another one, as in name={new.name}-2."
        )


def is_named_sweep(command: str) -> bool:
    return any(word.startswith("sweep=") for word in command.split())


def place_of(cell: Cell) -> Place:
    return cell.row, cell.column, cell.seed


def apart(cell: Cell, taken: dict[Place, Cell]) -> Cell:
    """Return a cell in a row of its own, named by the settings that distinguish it, if its place is taken by another
    run."""
    other = taken.get(place_of(cell))
    if other is None:
        return cell
    words = [word for word in cell.overrides if word not in other.overrides and changes_numbers(word.partition("=")[0])]
    kept = [word for word in words if word.partition("=")[0] not in ("seed", "method")]
    return replace(cell, row=" ".join([cell.row, *kept]))


def joined_shape(old: TableShape, new: TableShape, cells: list[Cell]) -> TableShape:
    """Return the old table's shape with the new rows and columns appended."""
    rows, columns = {cell.row for cell in cells}, {cell.column for cell in cells}
    every = [*old.rows, *new.rows, *(cell.row for cell in cells)]
    return replace(
        old,
        rows=[row for row in dict.fromkeys(every) if row in rows],
        columns=[column for column in dict.fromkeys([*old.columns, *new.columns]) if column in columns],
        baseline=old.baseline or new.baseline,
        against=old.against or new.against,
    )
