"""kdrun compare: show the differences between runs, in settings and in results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from kdrun import console
from kdrun.config.arguments import output_root_setting, parse
from kdrun.config.options import setting
from kdrun.errors import ConfigError, KdrunError
from kdrun.files import spreadsheet_safe, write_text
from kdrun.reporting.compare import MISSING, Row, Side, differing, figures, label_of, read_side
from kdrun.runs.directory import find_runs, outputs_folder

HELP = """
usage: kdrun compare RUN RUN … [save=FILE.csv|FILE.md] [output_root=FOLDER]

RUN is a run directory, a glob of them, a digest prefix, or a directory of teachers/.

Prints the settings that differ, by their names on the command line, and all results in result.json and evals/ (written
by kdrun eval and kdrun gradcam) side by side. Settings that differ from the first run's are yellow; the best result is
green and marked with *. For an unfinished run, its state and the last recorded accuracy are shown.
"""


@dataclass
class Options:
    save: Path | None = setting(None, suffixes=(".csv", ".md"), help="also write the comparison to this file")
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("compare", words, Options)
    root, place = outputs_folder(parsed.options.output_root), parsed.options.save
    places = list(dict.fromkeys(place for name in parsed.names for place in find_runs(name, root)))
    if len(places) < 2:
        raise ConfigError(f"compare needs at least two runs, got {len(places)} (kdrun list runs).")
    sides, damaged = read_sides(places)
    show(sides)
    for line in damaged:
        console.note(f"skipped: {line}")
    if place is not None:
        write_text(place, as_markdown(sides) if place.suffix.lower() == ".md" else as_csv(sides))
        console.note(f"wrote {place}")
    return 0


def read_sides(places: Sequence[Path]) -> tuple[list[Side], list[str]]:
    """Return (the runs that can be read, a line for each damaged one). Raises the first error if fewer than two are
    left."""
    sides: list[Side] = []
    errors: list[KdrunError] = []
    for place in places:
        try:
            sides.append(read_side(place))
        except KdrunError as error:
            errors.append(error)
    if len(sides) < 2:
        raise errors[0]
    return sides, [str(error) for error in errors]


def show(sides: list[Side]) -> None:
    """Print a legend of the runs, the settings that differ, and the results."""
    for name, side in zip(letters(sides), sides, strict=True):
        state = f"[green]{side.state}[/]" if side.state == "done" else f"[bold yellow]{escape(side.state)}[/]"
        console.say(f"[bold]{name}[/]  {escape(label_of(side))}  {state}")
    settings, found = differing(sides), figures(sides)
    console.say("")
    if settings:
        print_rows("setting", settings, sides)
    else:
        console.say("the settings are the same")
    console.say("")
    if found:
        print_rows("figure", found, sides)
    else:
        console.say("no results yet")


def letters(sides: Sequence[Side]) -> list[str]:
    """Return short names for columns: A, B, … Z, A1, B1, …"""
    return [chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "") for place in range(len(sides))]


def print_rows(title: str, rows: list[Row], sides: list[Side]) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in letters(sides):
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(escape(row.key), *(coloured(row, place) for place in range(len(row.values))))
    console.out.print(table)


def coloured(row: Row, place: int) -> str:
    text = escape(cell(row, place))
    if place in row.best:
        return f"[bold green]{text}[/]"
    return f"[yellow]{text}[/]" if not is_figure(row) and row.values[place] != row.values[0] else text


def is_figure(row: Row) -> bool:
    """Return True for a row of results. They nearly always differ, so only settings are marked if they differ from
    the first run's."""
    return all(value == MISSING or isinstance(value, float) for value in row.values)


def cell(row: Row, place: int) -> str:
    return words_for(row.values[place]) + (" *" if place in row.best else "  " if row.best else "")


def words_for(value: Any) -> str:
    """Return a value as typed: whole numbers with separators, others with as many digits as useful."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.6g}"
    return "[" + ",".join(map(words_for, value)) + "]" if isinstance(value, list) else str(value)


def as_csv(sides: list[Side]) -> str:
    """Return the comparison as CSV: kind, key, and a column with exact values for each run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "key", *(label_of(side) for side in sides)])
    writer.writerow(["state", "state", *(side.state for side in sides)])
    for kind, rows in (("setting", differing(sides)), ("figure", figures(sides))):
        for row in rows:
            values = ("" if value is MISSING else as_typed(value) for value in row.values)
            writer.writerow(spreadsheet_safe([kind, row.key, *values]))
    return text.getvalue()


def as_typed(value: Any) -> Any:
    return words_for(value) if value is None or isinstance(value, bool | list) else value


def as_markdown(sides: list[Side]) -> str:
    """Return the comparison as two Markdown tables, with the best result in bold."""
    names = letters(sides)
    lines = [f"- **{name}** {label_of(side)}: {side.state}" for name, side in zip(names, sides, strict=True)]
    for title, rows in (("setting", differing(sides)), ("figure", figures(sides))):
        if rows:
            lines += ["", f"| {title} | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
        for row in rows:
            cells = [words_for(value).replace("|", "\\|") for value in row.values]
            cells = [f"**{text}**" if place in row.best else text for place, text in enumerate(cells)]
            lines.append(f"| {row.key} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
