"""kdrun bias: measure which biases students inherit from their teacher."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from kdrun import console
from kdrun.config.arguments import figures_setting, output_root_setting, parse
from kdrun.config.options import setting
from kdrun.display import plural
from kdrun.errors import ConfigError
from kdrun.evaluation.bias_grid import Column, column_entries
from kdrun.evaluation.shape_bias_csv import read_decisions
from kdrun.evaluation.targets import PASSED
from kdrun.reporting.bias import VIEWS
from kdrun.runs.directory import outputs_folder, short_path
from kdrun.runs.ledger import Ledger, known_ledgers, read_ledger, result_of

HELP = """
usage: kdrun bias NAME [value=ratio|kept|shift|transfer|accuracy|agreement|errors|kl|consistency]
                  [testset=NAME[:key=value,…],…] [device=… precision=… eval_batch_size=… dataset.root=…]
                  [save=FOLDER] [output_root=FOLDER]
       kdrun bias decisions=FILE.csv,…

NAME is the ledger of a sweep (kdrun train -m sweep=bias_cnn_to_vit), which need not be complete. Every finished run and
the teacher are evaluated once on the derived test sets of the sweep, or of testset=; predictions are stored in the
runs. Prints two measures for each set, with confidence intervals over seeds and images that are simultaneous for all
rows and sets. The shift: how many points distillation moved the share of accuracy kept (above chance, relative to clean
images) away from the independent student of the same network. The transfer ratio: the shift as a fraction of the
distance to the teacher, only where that distance exceeds noise. value= shows one measure instead. All measures
(accuracy kept, agreement, agreement on the teacher's errors, KL, error consistency) are written to grid.csv and
grid.md, with a heat map, in sweeps/NAME/bias/ of the output folder or save=.

decisions= takes collected responses to cue-conflict images (columns subj, object_response, imagename, as in Geirhos
et al. 2019 or model-vs-human) and prints the shape bias and coverage of every subject.
"""

if TYPE_CHECKING:
    from kdrun.evaluation.bias_runs import Answering

FIRST = ("shift", "transfer")


@dataclass
class Options:
    value: str | None = setting(None, choices=tuple(VIEWS), help="one measure for each set; default: the first two")
    testset: str | None = setting(
        None, shows="NAME[:key=value,…],…", help="test sets to use instead of the sweep's (kdrun list testsets)"
    )
    save: Path | None = setting(None, shows="FOLDER", help="output folder, instead of sweeps/NAME/bias/")
    decisions: list[Path] = setting([], help="files of collected responses to evaluate; no other argument")
    trust: bool = setting(False, help="allow runs from elsewhere to execute the user code that they name")
    figures: list[str] = figures_setting()
    output_root: Path | None = output_root_setting()


def command(words: list[str]) -> int:
    parsed = parse("bias", words, Options, passes=[key for key in PASSED if key != "output_root"])
    options = parsed.options
    if options.decisions:
        if parsed.names or len(words) > 1:
            raise ConfigError("decisions=… takes no sweep and no other settings.")
        return show_decisions(options.decisions)
    root = outputs_folder(options.output_root)
    if len(parsed.names) != 1:
        known = ", ".join(known_ledgers(root)) or "none yet"
        raise ConfigError(f"bias needs the name of one sweep; {root}/sweeps has: {known}.")
    ledger = read_ledger(root, parsed.names[0])
    return grid_of(ledger, root, options, parsed.rest)


def chosen_sets(ledger: Ledger, text: str | None) -> list[str]:
    """Return the test sets of testset=, else of the sweep, else all that are derived from the test images."""
    from kdrun.evaluation.testsets.registry import parse_list, title

    chosen = parse_list(",".join(ledger.shape.testsets) or "all" if text is None else text)
    return list(dict.fromkeys(title(one) for one in chosen))


def grid_of(ledger: Ledger, root: Path, options: Options, passed: dict[str, str]) -> int:
    """Evaluate what is missing, compare, print and write the grid."""
    from kdrun.evaluation.bias_runs import Answering

    done = sum(result_of(cell, root) is not None for cell in ledger.cells)
    if not done:
        raise ConfigError(
            f"{ledger.name}: none of its {plural(len(ledger.cells), 'cell')} is finished; to continue: {ledger.command}"
        )
    answering = Answering(ledger, root, chosen_sets(ledger, options.testset), passed, console.track, options.trust)
    columns = [answering.column(name) for name in dict.fromkeys(cell.column for cell in ledger.cells)]
    show(ledger, root, columns, answering, done, options)
    return 0


def show(ledger: Ledger, root: Path, columns: list[Column], answering: Answering, done: int, options: Options) -> None:
    from kdrun.evaluation.testsets.registry import parse
    from kdrun.reporting.bias import Grid, footnotes, summary_grid, view_grid
    from kdrun.reporting.bias_picture import write_grid
    from kdrun.reporting.html.bias_section import bias_folder
    from kdrun.reporting.text import text_grid

    entries = [entry for column in columns for entry in column_entries(column)]
    used = dict.fromkeys(name for column in columns for name in column.names if column.names[name])
    grid = Grid(
        ledger.name,
        ledger.title,
        columns,
        entries,
        {name: parse(name).recipe for name in used},
        about(ledger, root, done),
        answering.notes,
    )
    console.say(f"[bold]{escape(grid.title)}[/]")
    for line in grid.about:
        console.note(line)
    shown = [options.value] if options.value else list(FIRST)
    for column in columns:
        console.say(f"\n[bold]{escape(column.name)}[/]  teacher {escape(str(column.teacher_name))}")
        for heading, (heads, rows) in [
            ("", summary_grid(grid, column)),
            *((VIEWS[name].heading, view_grid(grid, column, VIEWS[name])) for name in shown),
        ]:
            if heading:
                console.say(f"\n{escape(heading)}")
            console.say(escape("\n".join(text_grid(heads, rows, console.out.width))))
        for line in footnotes(grid, column):
            console.note(line)
    for line in answering.notes:
        console.note(f"left out: {line}")
    folder = options.save or bias_folder(root, ledger.name)
    written = write_grid(grid, folder, options.figures) + answering.write_sheets(folder)
    console.note(f"wrote {short_path(folder)}/  ({', '.join(place.name for place in written)})")


def about(ledger: Ledger, root: Path, done: int) -> list[str]:
    """Return lines on the sweep's progress and training."""
    results = [result for cell in ledger.cells if (result := result_of(cell, root)) is not None]
    where = Counter(f"{result['precision']} on {result['device']}" for result in results)
    trained = f"trained in {', '.join(where)}"
    return [
        f"{done} of {plural(len(ledger.cells), 'cell')} done; {trained}; weights of the last epoch",
        "s per epoch: of the whole process, also for several runs that trained as lanes",
    ]


def show_decisions(files: list[Path]) -> int:
    """Print shape bias and coverage of every subject in every file."""
    found = {}
    for place in files:
        found |= read_decisions(place)
    rows = [
        [
            subject,
            "–" if one.bias is None else f"{one.bias:.1f}",
            f"{one.coverage:.1f}",
            str(one.shape),
            str(one.texture),
            str(one.count),
        ]
        for subject, one in found.items()
    ]
    console.table("", ["subject", "shape bias, %", "coverage, %", "shape", "texture", "images"], rows)
    console.note(
        "shape bias = shape / (shape + texture) decisions; coverage = (shape + texture) / images; "
        "images whose two cues belong to one class are left out"
    )
    return 0
