"""Start of multiruns and named sweeps: all cells are composed and checked, the ledger is written, and the runs go to
the launcher."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from kdrun.config.compose import load
from kdrun.config.options import RunConfig
from kdrun.config.own_code import read_once
from kdrun.config.schema import check_value
from kdrun.config.settings import settings
from kdrun.data.datasets import located_once
from kdrun.display import Track, duration, plural, untracked
from kdrun.errors import ConfigError, KdrunError, one_line, print_error, print_stopped
from kdrun.runs.directory import rebuild_results, short_path
from kdrun.runs.ledger import Cell, Ledger, TableShape, write_ledger
from kdrun.runs.plan import Plan, code_notes, image_notes, make_plan, output_root
from kdrun.sweeps.adding import added, check_kept
from kdrun.sweeps.cells import CellSpec
from kdrun.sweeps.definition import Sweep
from kdrun.sweeps.messages import SweepDisplay

NO_RUN = "cannot be made"  # column of a multirun's cells that do not compose
SEED = re.compile("seed=[0-9]+")


def run_sweep(
    sweep: Sweep, launcher: dict[str, str], command: str, config_dir: str | None, display: SweepDisplay
) -> int:
    """Compose the cells, write the ledger, run the unfinished ones, and print the outcome."""
    found, broken = composed(sweep, config_dir, display.track)
    cells = [cell for cell, _ in found]
    plans = [plan for _, plan in found if plan is not None]
    if not plans:
        return 2
    root = output_root(plans[0].config)
    ledger = Ledger(sweep.name, sweep.title, command, shape_of(sweep, cells), cells)
    if sweep.adds:
        ledger, line = added(ledger, root)
        if line:
            display.note(line)
    else:
        check_kept(ledger, root)
    write_ledger(root, ledger)
    chosen = [plan for spec, (_, plan) in zip(sweep.specs, found, strict=True) if plan is not None and spec.chosen]
    pending = [plan for plan in chosen if plan.run.pending]
    done = len({str(plan.run.path) for plan in chosen} - {str(plan.run.path) for plan in pending})
    total = len({str(plan.run.path) for plan in chosen})
    already = f", {done} of them done already" if done else ""
    wanted = sum(spec.chosen for spec in sweep.specs)
    display.fact(sweep.name, f" {plural(wanted, 'cell')}, {plural(total, 'run')}{already}  {short_path(root)}")
    for line in (*code_notes(pending), *image_notes(pending)):
        display.note(line)
    if launcher["launcher"] != "lanes" and pending:
        from kdrun.sweeps.slurm import submit

        settings = {key: value for key, value in launcher.items() if key not in ("launcher", "processes")}
        submit(sweep.name, pending, root, launcher["launcher"], settings, display)
        return 2 if broken else 0
    code = launch(
        sweep.name,
        pending,
        launcher,
        root,
        {str(plan.run.path): cell for cell, plan in found if plan},
        display,
    )
    rebuild_results(root)
    display.fact("results so far:", f"kdrun table {sweep.name}")
    return max(code, 2 if broken else 0)


def composed(
    sweep: Sweep, config_dir: str | None, track: Track = untracked
) -> tuple[list[tuple[Cell, Plan | None]], list[Cell]]:
    """Return every cell with its plan, and the chosen cells that cannot run, whose reasons are printed. Raises
    ConfigError."""
    with read_once(), located_once():
        found = compose_cells(sweep.specs, config_dir, track)
    if not found:
        raise ConfigError(f"{sweep.name} has no cells.")
    cells = [cell for cell, _ in found]
    check_distinct(sweep, cells)
    broken = [cell for spec, cell in zip(sweep.specs, cells, strict=True) if cell.run is None and spec.chosen]
    show_broken(broken)
    return found, broken


def unwritten_ledger(sweep: Sweep, config_dir: str | None, track: Track = untracked) -> Ledger:
    """Return the ledger of a sweep as training would write it; cells that cannot run contain the reason."""
    found, _ = composed(sweep, config_dir, track)
    cells = [cell for cell, _ in found]
    return Ledger(sweep.name, sweep.title, "", shape_of(sweep, cells), cells)


def show_broken(cells: list[Cell]) -> None:
    """Print why cells cannot run, one line per reason."""
    places: dict[str, list[str]] = {}
    for cell in cells:
        places.setdefault(cell.reason, []).append(place_of(cell))
    for reason, (first, *others) in places.items():
        if others and len(places) == 1:
            print_error(f"{reason} This affects {len(cells)} cells.")
        elif others:
            print_error(f"{first} and {len(others)} more: {reason}")
        else:
            key = first.partition("=")[0]  # the reason may begin with the cell's name
            print_error(reason if reason.startswith((f"{first}:", f"{key}=")) else f"{first}: {reason}")


def launch(
    name: str,
    pending: list[Plan],
    launcher: dict[str, str],
    root: Path,
    places: dict[str, Cell],
    display: SweepDisplay,
) -> int:
    """Run the pending plans and return the exit code."""
    if not pending:
        return 0
    from kdrun.sweeps.scheduler import Scheduler

    begun = time.monotonic()
    runs = {str(plan.run.path) for plan in pending}
    with display.sweep(len(runs), {run: place_of(cell) for run, cell in places.items()}) as show:
        processes, per_run = launcher.get("processes", "auto"), int(launcher.get("gpus_per_run", "1"))
        outcome = Scheduler(pending, processes, root / "sweeps" / name / "logs", show, display, per_run).run()
    spent = duration(time.monotonic() - begun)
    if outcome.failures:
        print_error(f"{plural(len(outcome.failures), 'run')} failed; the same command tries again: kdrun status {name}")
    if outcome.elsewhere:
        display.note(f"{plural(len(outcome.elsewhere), 'run')} being trained by other processes.")
    if outcome.stopped:
        if outcome.disk_full:
            print_error(outcome.stopped)
        else:
            print_stopped(f"{outcome.stopped} The same command resumes.")
        return 1 if outcome.disk_full else 75
    display.fact(f"{plural(len(outcome.results), 'run')} done", f"in {spent}")
    return 1 if outcome.failures else 0


def compose_cells(
    specs: list[CellSpec], config_dir: str | None, track: Track = untracked
) -> list[tuple[Cell, Plan | None]]:
    """Return each spec as a cell and its plan, or as a cell with the reason why it cannot run. Cells that differ only
    in their seed are composed once."""
    composed: dict[tuple[str, ...], RunConfig | str] = {}
    found = []
    for position in track(iter(range(len(specs))), len(specs), "composing"):
        spec = specs[position]
        seeds = [word for word in spec.overrides if SEED.fullmatch(word)]
        # A cell without a valid seed, or with settings that may depend on it, is composed separately.
        shared = not any("$" in word for word in spec.overrides)
        key = tuple(word for word in spec.overrides if not (shared and word in seeds))
        if key not in composed:
            try:
                composed[key] = load(spec.overrides, config_dir)
            except KdrunError as error:
                composed[key] = str(error)
        config = composed[key]
        seed = int(seeds[-1].partition("=")[2]) if seeds else None
        cell = Cell(spec.row, spec.column, seed or 0, spec.overrides, published=spec.published)
        plan = None
        try:
            if isinstance(config, str):
                raise ConfigError(config)
            if seed is not None:
                check_value("seed", seed, settings()["seed"].rules)
                config = replace(config, seed=seed)
            plan = make_plan(config, spec.overrides)
            fill(cell, plan)
        except KdrunError as error:
            cell.reason = one_line(error)
            if not cell.column:  # a multirun's places follow from its runs, but this cell has none
                own = [word for word in spec.overrides if any(word not in other.overrides for other in specs)]
                cell.row, cell.column = " ".join(own or spec.overrides), NO_RUN
        found.append((cell, plan))
    return found


def fill(cell: Cell, plan: Plan) -> None:
    """Fill in the cell's fields that follow from the run."""
    config = plan.config
    cell.run = str(plan.run.path.relative_to(output_root(config)))
    cell.dataset, cell.teacher, cell.student = config.dataset.name, plan.teacher_name, config.student.name
    cell.method, cell.benchmark, cell.seed = plan.method.name, config.benchmark, config.seed
    cell.own_teacher = plan.method.trains_teacher
    if not cell.column:
        cell.column = f"{config.dataset.name} · {config.teacher.name} → {config.student.name}"
        cell.row = f"{plan.method.name} {cell.row}".strip()


def check_distinct(sweep: Sweep, cells: list[Cell]) -> None:
    """Raise ConfigError if two cells have the same place in the table."""
    counts = Counter((cell.row, cell.column, cell.seed) for cell in cells if cell.run is not None)
    for (row, column, seed), count in counts.items():
        if count > 1:
            raise ConfigError(
                f"{sweep.name}: {count} cells for row {row!r}, column {column!r}, seed {seed}: each cell needs a "
                "place of its own; give them different values, or rows of their own in a sweep's YAML."
            )


def shape_of(sweep: Sweep, cells: list[Cell]) -> TableShape:
    """Return the sweep's table shape; for a multirun with rows and columns in the order of their first cells."""
    shape = sweep.shape
    if not shape.rows:
        shape.rows = list(dict.fromkeys(cell.row for cell in cells if cell.row))
        shape.columns = list(dict.fromkeys(cell.column for cell in cells if cell.column))
        shape.baseline = next((row for row in shape.rows if row.partition(" ")[0] == "none"), None)
        shape.against = next((row for row in shape.rows if row.partition(" ")[0] == "kd"), None)
    return shape


def place_of(cell: Cell) -> str:
    """Return a cell's name for the screen."""
    return cell.row if cell.column == NO_RUN else cell.place
