"""Forecast as a table and lines, for a user who decides whether to start."""

from __future__ import annotations

from collections.abc import Sequence

from kdrun.display import count, duration, plural, size
from kdrun.runs.directory import short_path
from kdrun.runs.ledger import Cell
from kdrun.runs.plan import Plan
from kdrun.sweeps.forecast import Forecast

COLUMNS = ["seeds", "done", "epochs", "s/epoch", "time each", "params", "FLOPs", "memory", "disk"]
BUSY = 1.25  # slowdown by other programs from which it is mentioned


def table_of(found: Forecast, cells: Sequence[tuple[Cell, Plan]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: a row for each place of the sweep's table, with all its seeds."""
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
    """Leave out the columns for finished runs and epochs if they are the same in all rows."""
    common = {"done": "–", "epochs": rows[0][heads.index("epochs")] if len(rows) > 1 else ""}
    kept = [
        place
        for place, head in enumerate(heads)
        if head not in common or any(row[place] != common[head] for row in rows)
    ]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


def in_short(seeds: Sequence[int]) -> str:
    """Return 0–4 for 0, 1, 2, 3, 4, and other seeds unchanged."""
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]}–{ordered[-1]}"
    return ", ".join(map(str, seeds))


def lines_of(found: Forecast, cells: Sequence[tuple[Cell, Plan]]) -> list[tuple[str, str]]:
    """Return (name, line) for the teachers, the totals, and the remarks."""
    paths = {str(plan.run.path): plan for _, plan in cells}
    lines = []
    for path, teacher in found.teachers.items():
        plan = next(plan for plan in paths.values() if plan.teacher_run and str(plan.teacher_run.path) == path)
        assert plan.teacher_run is not None
        about = f"{plural(teacher.epochs, 'epoch')}, {count(teacher.params)} parameters, {count(teacher.flops)} FLOPs"
        where = short_path(plan.teacher_run.path)
        lines.append(("teacher to train:", f"{teacher.name}, {about}, {duration(teacher.seconds)}, into {where}"))
    done = len(paths) - len(found.runs)
    lines.append(("runs:", f"{len(paths):,}, {done:,} done, {len(found.runs):,} to train"))
    if found.runs:
        lines.append(("total time:", total_in_words(found)))
        lines.append(("memory:", f"about {size(found.memory)} at once"))
        lines.append(("disk:", f"about {size(found.disk)}; {size(found.free)} free"))
    return lines


def total_in_words(found: Forecast) -> str:
    """Return the clock time with its assumptions."""
    threads = plural(found.threads, "thread")
    each = f"{plural(max(found.processes, 1), 'process', 'processes')} with {threads}"
    text = f"about {duration(found.seconds)} ({found.numerics}, {each})"
    if found.slowdown > BUSY:
        text += f"; {duration(found.seconds * found.slowdown)} if other programs stay as busy as now"
    return text


def remarks(found: Forecast) -> list[str]:
    """Return remarks on the figures."""
    if not found.runs:
        return []
    found_by = "Measured in a few steps of each network and each method, on blank images; nothing was written"
    lines = [
        f"{found_by}. s/epoch is for a run on its own; the total accounts for lanes, which share their teacher's pass.",
        "FLOPs are per image and forward pass; a multiply-add counts as two. Compiled networks may be faster.",
    ]
    if found.streamed:
        lines.append(
            "The times exclude reading and decoding the image files; more workers hide these (dataset.workers)."
        )
    return lines


def short_of_room(found: Forecast) -> str:
    """Return a warning if the disk is too small, or an empty string."""
    if found.disk <= found.free:
        return ""
    return f"about {size(found.disk)} needed but only {size(found.free)} free: set output_root=… to a larger disk."
