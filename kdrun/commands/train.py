"""kdrun train: compose, check, and start the session; once per job of a multirun."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from kdrun import errors
from kdrun.config.arguments import WITH_VALUE, flag_fault, split_arguments
from kdrun.config.compose import MultirunAsked, checked, keep_choices, load, run_app
from kdrun.config.options import RunConfig
from kdrun.config.own_code import located, own_place
from kdrun.config.settings import OF_TRAIN
from kdrun.console import announce, fact, note, out, show_result, table, track
from kdrun.console.screen import RichDisplay
from kdrun.display import plural
from kdrun.errors import ConfigError, Interrupted, KdrunError, RunError, print_error, print_note, with_notes
from kdrun.hardware import available_cores
from kdrun.runs.directory import rebuild_results, short_path
from kdrun.runs.plan import Plan, make_plan, output_root
from kdrun.runs.recorded import way_out
from kdrun.training.ranks import announced, together

if TYPE_CHECKING:
    from kdrun.runs.ledger import Cell
    from kdrun.sweeps.definition import Sweep

FLAGS = ("-m", "--multirun", "--resolve", *WITH_VALUE)  # the last three are Hydra's


def command(words: list[str]) -> int:
    """Run one training, composed here. Sweeps (-m) and Hydra's own flags (--cfg job …) go through Hydra's
    application."""
    several = be_one_of_several()
    words, dry = split_dry_run(words)
    flags, overrides, config_dir = split_arguments(words)
    check_flags(flags, overrides)
    if dry and not set(flags) <= {"-m", "--multirun"}:
        raise ConfigError(f"dry_run=true: leave out {flags[0]}.")
    if several and (flags or dry or any(word.startswith("sweep=") for word in overrides)):
        raise ConfigError(
            "several processes train one run: leave out -m, sweep= and dry_run=; in a sweep launcher.gpus_per_run=N "
            "gives each run N of them."
        )
    named = any(word.startswith("sweep=") for word in overrides)
    hydras_own = ("hydra/launcher=joblib", "hydra/launcher=basic", "hydra/launcher=submitit", "hydra/sweeper=")
    other = any(word.startswith(hydras_own) for word in overrides)
    if (named or flags) and set(flags) <= {"-m", "--multirun"} and not other:
        return sweep(words, dry)
    if not flags:
        try:
            config = load(overrides, config_dir)
        except MultirunAsked:
            return sweep(["-m", *words], dry) if dry else multirun(words, config_dir)
        if dry:
            return dry_run(config, overrides)
        train(config, overrides)
        return 0
    return multirun(words, config_dir)


def be_one_of_several() -> bool:
    """Silence this process unless it prints for all processes of the run. Return True if there are several."""
    rank, size = announced()
    if size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns about find_unused_parameters
    if rank > 0:
        errors.muted = out.quiet = True
    return size > 1


def check_flags(flags: list[str], overrides: list[str]) -> None:
    """Raise ConfigError for an unknown flag, or one that conflicts with the others."""
    pending = iter(flags)
    for flag in pending:
        name, equals, value = flag.partition("=")
        if name not in FLAGS:
            raise ConfigError(f"train: {flag}: {flag_fault(flag, OF_TRAIN, 'there are -m and --config-dir FOLDER')}")
        if name in WITH_VALUE:
            value = value if equals else next(pending, "")
            known = ("job", "hydra", "all") if name in ("--cfg", "-c") else (value or "a package",)
            if value not in known:
                raise ConfigError(f"train: {f'{name} {value}'.strip()}: choose {' or '.join(known)}.")
            if not {"-m", "--multirun"}.isdisjoint(flags) or any(word.startswith("sweep=") for word in overrides):
                raise ConfigError(f"train: {name} shows one run: leave out -m and sweep=.")


def multirun(words: list[str], config_dir: str | None) -> int:
    """Run every job in turn; a failure is printed at once, and the other jobs continue."""
    failures: list[KdrunError] = []

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        try:
            keep_choices(cfg, HydraConfig.get().runtime.choices, config_dir)
            config = checked(cfg, config_dir)
            # As typed: `++` was added only to pass a method's settings through Hydra.
            train(config, [word.removeprefix("++") for word in HydraConfig.get().overrides.task])
        except KdrunError as error:
            failures.append(error)
            print_error(str(error))

    run_app(task, words)
    if failures:
        print_error(f"{plural(len(failures), 'job')} of the multirun failed; the others are done.")
    return max((error.exit_code for error in failures), default=0)


def split_dry_run(words: list[str]) -> tuple[list[str], bool]:
    """Return (the arguments without dry_run=…, True if it is true). Raises ConfigError for another value."""
    given = [word.partition("=")[2].lower() for word in words if word.startswith("dry_run=")]
    for value in given:
        if value not in ("true", "false"):
            raise ConfigError(f"dry_run={value}: choose true or false.")
    return [word for word in words if not word.startswith("dry_run=")], given[-1:] == ["true"]


def dry_run(config: RunConfig, overrides: list[str]) -> int:
    """Print the estimated cost of one run."""
    from kdrun.runs.ledger import Cell
    from kdrun.sweeps.run import fill
    from kdrun.training.precision import resolve_threads

    plan, cell = make_plan(config, overrides), Cell("", "", config.seed, overrides)
    fill(cell, plan)
    threads = config.threads or resolve_threads().threads if plan.run.pending else 1
    show_forecast([(cell, plan)], 1, threads)
    return 0


def show_forecast(cells: list[tuple[Cell, Plan]], processes: int, threads: int) -> None:
    """Measure and print the cost of runs; nothing is written."""
    from kdrun.sweeps.forecast import Forecast, forecast
    from kdrun.sweeps.forecast_lines import lines_of, remarks, short_of_room, table_of

    pending = [plan for _, plan in cells if plan.run.pending]
    found = forecast(pending, processes, threads, track) if pending else Forecast()
    table("", *table_of(found, cells))
    for name, line in lines_of(found, cells):
        fact(name, line)
    for line in remarks(found):
        note(line)
    if line := short_of_room(found):
        print_note(line)


def dry_sweep(chosen: Sweep, launcher: dict[str, str], config_dir: str | None) -> int:
    """Print the estimated cost of a sweep; return 2 if some of its cells cannot run."""
    from kdrun.sweeps.before import first_cells, foreseen
    from kdrun.sweeps.grouping import group_plans
    from kdrun.sweeps.run import composed
    from kdrun.sweeps.scheduler import make_slots

    chosen = foreseen(chosen, config_dir)
    chosen.specs = [*first_cells(chosen), *chosen.specs]
    found, broken = composed(chosen, config_dir, track)
    wanted = zip(chosen.specs, found, strict=True)
    cells = [(cell, plan) for spec, (cell, plan) in wanted if plan is not None and spec.chosen]
    if cells:
        plans = [plan for _, plan in cells if plan.run.pending]
        slots = make_slots(
            plans,
            launcher.get("processes", "auto"),
            sum(map(len, group_plans(plans))),
            int(launcher.get("gpus_per_run", "1")),
        )
        asked = max((plan.config.threads or 0 for plan in plans), default=0)
        threads = asked or max(available_cores() // max(len(slots), 1), 1)
        fact(chosen.name, f" {plural(len(cells), 'cell')}  {chosen.title}")
        show_forecast(cells, len(slots), threads)
    return 2 if broken else 0


def sweep(words: list[str], dry: bool = False) -> int:
    """Train `-m …` or `sweep=NAME …` on the lanes launcher; return the highest exit code of its runs. dry: only
    estimate the cost."""
    from kdrun.sweeps.before import train_before
    from kdrun.sweeps.definition import multirun_sweep, named_sweep, split_words
    from kdrun.sweeps.launcher import split_launcher
    from kdrun.sweeps.run import run_sweep

    _, own, overrides, config_dir = split_words(words)
    launcher, overrides = split_launcher(overrides)
    if "sweep" in own:
        chosen = named_sweep(own["sweep"], overrides, own.get("name"), config_dir)
    else:
        chosen = multirun_sweep(overrides, own.get("name"), config_dir)
    if dry:
        return dry_sweep(chosen, launcher, config_dir)
    shown = " ".join(word for word in words if word not in ("-m", "--multirun"))
    command, display = f"kdrun train -m {shown}", RichDisplay(name_runs=True)
    chosen, code = train_before(chosen, launcher, command, config_dir, display)
    return run_sweep(chosen, launcher, command, config_dir, display) if code is None else code


def train(config: RunConfig, overrides: list[str]) -> dict[str, Any]:
    """Train one run and return its result; a finished run's result at once. Raises KdrunError (one line)."""
    plan = make_plan(config, overrides)
    if plan.run.finished:
        damage = plan.run.damage(thorough=True)
        if not damage or not plan.run.state_path.is_file():  # else the last checkpoint restores it
            result = plan.run.result()
            show_result("already done", plan, result)
            if damage:
                print_note(f"{damage}; {way_out(plan.run.weights_path)}.")
            return result
    announce(plan)
    from kdrun.models.own_import import pinned  # imports torch: only if there is something to train
    from kdrun.training.session import Session
    from kdrun.training.signals import stop_on_signals
    from kdrun.training.threads import presence

    outcome: list[dict[str, Any] | KdrunError] = []
    with (
        together(plan.run.fail),
        presence(),
        plan.run.lock(),
        pinned(plan.code.files.values()),
        stop_on_signals() as stop,
    ):
        try:
            Session([plan], stop, RichDisplay(), lambda _, found: outcome.append(found)).run()
        except RunError as error:
            plan.run.fail(with_notes(error))
            raise
        except (KdrunError, MemoryError):
            raise
        except Exception as error:
            if stop.signal:
                raise Interrupted(f"stopped by {stop.signal}. The same command resumes from the last save.") from error
            plan.run.fail(f"{located(error)}\n{traceback.format_exc()}")
            if own_place(error):
                raise RunError(f"{located(error)}; traceback in {short_path(plan.run.failed_path)}") from error
            raise
    result = outcome[0]
    if isinstance(result, KdrunError):
        raise result
    if announced()[0] == 0:
        rebuild_results(output_root(config))
    show_result("done", plan, result)
    return result


HELP = """
usage: kdrun train [key=value …] [-m] [sweep=NAME] [dry_run=true] [--cfg job] [--config-dir FOLDER]

Trains one student. Without arguments: a resnet20 teaches a resnet8 handwritten digits. A missing teacher is trained
first, once for all runs. The same command resumes an interrupted run, and shows the result of a finished one.
  method=kd|dkd|…      kdrun list methods         teacher=NAME student=NAME   kdrun list teachers
  dataset=digits|cifar100|folder|…                dataset.root=FOLDER         the images: kdrun data FOLDER
  student.kwargs.KEY=VALUE teacher.kwargs.KEY=…   arguments of its constructor, in addition to num_classes
  epochs=N batch_size=N seed=N                    optimizer.lr=… optimizer.schedule=cosine …
  device=auto|cpu|cuda:N precision=auto|fp32|tf32|bf16 compile=auto|true|false threads=N
  benchmark=NAME pair=NAME                        a publication's protocol, pair and weights
  logger=[tensorboard,wandb]                      in addition to metrics.csv, which is always written
  output_root=FOLDER                              default ./outputs, or $KDRUN_OUTPUTS

Many runs, as lanes: runs with the same data, teacher, length and seed train in one process on one teacher forward.

  -m, --multirun       every combination of comma-separated values: kdrun train -m method=kd,dkd seed=0,1,2
  sweep=NAME           a table of conf/sweep (kdrun list sweeps); row=… column=… seed=… choose parts of it
  name=NAME            its name in kdrun table, status and report
  launcher.processes=N number of processes; auto: one per GPU, or per core; 0: in this process, for debugging
  launcher.gpus_per_run=N  N GPUs, or processes on a CPU, train each run together; with launcher=slurm they are on
                       launcher.nodes=M machines
  launcher=slurm launcher.timeout_min=240 launcher.slurm_partition=… launcher.gpus_per_node=1 …
                       a SLURM job for each group of lanes; they save, requeue themselves and resume
                       (pip install 'kdrun[slurm]'); launcher=submitit_local does the same without a cluster
  hydra/launcher=joblib, hydra/launcher=submitit_slurm …  Hydra's own launchers, one job for each run

One run on N GPUs of this machine (docs/several_devices.md: several machines, SLURM):

  torchrun --nproc-per-node=N -m kdrun train …

  dry_run=true         measure a few steps and estimate the cost: time, memory and disk of each run, teachers to train,
                       finished runs, total time; nothing is written
  --cfg job            print the composed configuration and stop
  --config-dir FOLDER  a folder with your own groups (method/mine.yaml …)

Models: a zoo name, timm:NAME, torchvision:NAME or package.module:callable.
"""
