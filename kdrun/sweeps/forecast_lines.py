"""A forecast as a table and lines, for a user who decides whether to begin."""

from __future__ import annotations

from collections.abc import Sequence

from kdrun.display import count, duration, plural, size
from kdrun.runs.directory import short_path
from kdrun.runs.ledger import Cell
from kdrun.runs.plan import Plan
from kdrun.sweeps.forecast import Forecast

COLUMNS = ["seeds", "done", "epochs", "s/epoch", "time each", "params", "FLOPs", "memory", "disk"]
BUSY = 1.25  # times as long as on a core of one's own, from which on it is said


def table_of(found: Forecast, cells: Sequence[tuple[Cell, Plan]]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows: a row for each place of the sweep's table, with all its seeds."""
    places: dict[tuple[str, str], list[tuple[Cell, Plan]]] = {}
    for cell, plan in cells:
        places.setdefault((cell.column, cell.row), []).append((cell, plan))
    several = len({column for column, _ in places}) > 1
    rows = []
    for (column, row), those in places.items():
        costs = [cost for _, plan in those if (cost := found.runs.get(str(plan.run.path))) is not None]
        done = len(those) - len(costs)
        config = those[0][1].config
        seeds = in_short([cell.seed for cell, _ in those])
        name = [row, column] if several else [row]
        if not costs:
            rows.append([*name, seeds, f"{done}", f"{config.epochs}", *["–"] * 6])
            continue
        cost = max(costs, key=lambda cost: cost.seconds)
        rows.append(
            [
                *name,
                seeds,
                f"{done}" if done else "–",
                f"{config.epochs}",
                f"{cost.epoch:.2f}" if cost.epoch < 10 else f"{cost.epoch:,.0f}",
                duration(cost.seconds),
                count(cost.params),
                count(cost.flops),
                size(cost.memory),
                size(cost.disk),
            ]
        )
    heads = [*(["run", "pair"] if several else ["run"]), *COLUMNS]
    return without_common(heads, rows)


def without_common(heads: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Leave out the columns of what is done and of epochs where no row has anything to tell apart."""
    common = {"done": "–", "epochs": rows[0][heads.index("epochs")] if len(rows) > 1 else ""}
    kept = [
        place
        for place, head in enumerate(heads)
        if head not in common or any(row[place] != common[head] for row in rows)
    ]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def in_short(seeds: Sequence[int]) -> str:
    """Return 0–4 of 0, 1, 2, 3, 4, and others as they are."""
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, seeds))


def lines_of(found: Forecast, cells: Sequence[tuple[Cell, Plan]]) -> list[tuple[str, str]]:
    """Return (name, line) of the teachers, the totals, and what the figures are."""
    paths = {str(plan.run.path): plan for _, plan in cells}
    lines = []
    for path, teacher in found.teachers.items():
        plan = next(plan for plan in paths.values() if plan.teacher_run and str(plan.teacher_run.path) == path)
        assert plan.teacher_run is not None
        about = f"{plural(teacher.epochs, 'epoch')}, {count(teacher.params)} parameters, {count(teacher.flops)} FLOPs"
        where = short_path(plan.teacher_run.path)
        lines.append(("teacher to be trained:", f"{teacher.name}, {about}, {duration(teacher.seconds)}, into {where}"))
    done = len(paths) - len(found.runs)
    lines.append(("runs:", f"{len(paths):,}, {done:,} of them done, {len(found.runs):,} to be trained"))
    if found.runs:
        lines.append(("total time:", total_in_words(found)))
        lines.append(("memory:", f"about {size(found.memory)} at once"))
        lines.append(("disk:", f"about {size(found.disk)}; {size(found.free)} are free"))
    return lines


def total_in_words(found: Forecast) -> str:
    """Return the clock time with what it rests on."""
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
    each = f"{found.processes} processes of {threads}" if found.processes > 1 else f"one process of {threads}"
    text = f"about {duration(found.seconds)} ({found.numerics}, {each})"
    if found.slowdown > BUSY:
        text += f"; {duration(found.seconds * found.slowdown)} while other programs are as busy as now"
    return text


def remarks(found: Forecast) -> list[str]:
    """Return what one should know of the figures."""
    if not found.runs:
        return []
    found_by = "measured in a few steps of each network and each method, on blank images; nothing was written"
    lines = [
        f"{found_by}. s/epoch is of a run on its own; lanes share their teacher's pass, which the total counts.",
        "FLOPs are of one image's forward pass, a multiply-add counts two. Compiled networks may be faster.",
    ]
    if found.streamed:
        lines.append(
            "Reading and decoding the image files is not in the times: more workers hide it (dataset.workers)."
        )
    return lines


def short_of_room(found: Forecast) -> str:
    """Return what to do where the disk is too small, or nothing."""
    if found.disk <= found.free:
        return ""
    return f"about {size(found.disk)} are needed and {size(found.free)} are free: set output_root=… to a larger disk."
