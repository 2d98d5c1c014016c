"""kdrun train: compose, check, and hand over to the session; once per job of a multirun."""

from __future__ import annotations

from omegaconf import DictConfig

from kdrun.config.arguments import split_arguments
from kdrun.config.compose import MultirunAsked, checked, keep_choices, load, run_app
from kdrun.errors import Interrupted, KdrunError, print_error


def command(words: list[str]) -> int:
    """A single run is composed here; sweeps (-m) and Hydra's own flags (--cfg job …) go through Hydra's application."""
    flags, overrides, config_dir = split_arguments(words)
    named = any(word.startswith("sweep=") for word in overrides)
    hydras_own = ("hydra/launcher=joblib", "hydra/launcher=basic", "hydra/launcher=submitit", "hydra/sweeper=")
    other = any(word.startswith(hydras_own) for word in overrides)
    if (named or flags) and set(flags) <= {"-m", "--multirun"} and not other:
        from kdrun.sweeps.run import command as sweep

        return sweep(words)
    if not flags:
        try:
            config = load(overrides, config_dir)
        except MultirunAsked:
            return multirun(words, config_dir)
        from kdrun.commands.single import train  # heavy: only once the configuration is right

        train(config, overrides)
        return 0
    return multirun(words, config_dir)


def multirun(words: list[str], config_dir: str | None) -> int:
    """Every job in turn; a failed one is shown at once and the others go on."""
    failures: list[KdrunError] = []

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        try:
            keep_choices(cfg, HydraConfig.get().runtime.choices, config_dir)
            config = checked(cfg, config_dir)
            from kdrun.commands.single import train

            # As typed: `++` is what lets a method's settings pass Hydra, and no user wrote it.
            train(config, [word.removeprefix("++") for word in HydraConfig.get().overrides.task])
        except Interrupted:
            raise
        except KdrunError as error:
            failures.append(error)
            print_error(str(error))

    run_app(task, words)
    if failures:
        print_error(f"{len(failures)} job(s) of the multirun failed; the others are done.")
    return max((error.exit_code for error in failures), default=0)


HELP = """
usage: kdrun train [key=value …] [-m] [sweep=NAME] [--cfg job] [--config-dir FOLDER]

Trains one student. Without arguments: resnet20 teaches resnet8 handwritten digits. A teacher that is not there yet is
trained first, once for all runs. The same command resumes an interrupted run and shows a finished one.

  method=kd|dkd|…      kdrun list methods         teacher=NAME student=NAME   kdrun list teachers
  dataset=digits|cifar100|…                       dataset.root=FOLDER         where the images are
  epochs=N batch_size=N seed=N                    optimizer.lr=… optimizer.schedule=cosine …
  device=auto|cpu|cuda:N precision=auto|fp32|tf32|bf16 compile=auto|true|false threads=N
  benchmark=NAME pair=NAME                        a publication's protocol, pair and weights
  logger=[tensorboard,wandb]                      beside metrics.csv, which is always written
  output_root=FOLDER                              default ./outputs, or $KDRUN_OUTPUTS

Many runs, as lanes: those that share data, teacher, length and seed train in one process on one teacher forward.

  -m, --multirun       every combination of comma-separated values: kdrun train -m method=kd,dkd seed=0,1,2
  sweep=NAME           a table of conf/sweep (kdrun list sweeps); row=… column=… seed=… choose parts of it
  name=NAME            what kdrun table, status and report call it
  launcher.processes=N processes at once; auto: one per GPU, or per core; 0: in this process, for debugging
  launcher=slurm launcher.timeout_min=240 launcher.slurm_partition=… launcher.gpus_per_node=1 …
                       a SLURM job for each group of lanes; they save, requeue themselves and resume
                       (pip install 'kdrun[slurm]'); launcher=submitit_local is the same without a cluster
  hydra/launcher=joblib, hydra/launcher=submitit_slurm …  Hydra's own launchers, one job for each run

  --cfg job            print the composed configuration and stop
  --config-dir FOLDER  a folder with groups of your own (method/mine.yaml …)

Models are typed as a zoo name, timm:NAME, torchvision:NAME or package.module:callable.
"""
