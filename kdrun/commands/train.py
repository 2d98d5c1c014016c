"""kdrun train: compose, check, and hand over to the session; once per job of a multirun."""

from __future__ import annotations

from omegaconf import DictConfig

from kdrun.compose import MultirunAsked, checked, load, run_app, split_arguments
from kdrun.errors import Interrupted, KdrunError, print_error


def command(words: list[str]) -> int:
    """A single run is composed here; sweeps (-m) and Hydra's own flags (--cfg job …) go through Hydra's application."""
    flags, overrides, config_dir = split_arguments(words)
    named = any(word.startswith("sweep=") for word in overrides)
    other = any(word.startswith("hydra/launcher=") and word != "hydra/launcher=lanes" for word in overrides)
    if (named or flags) and set(flags) <= {"-m", "--multirun"} and not other:
        from kdrun.commands.sweep import command as sweep

        return sweep(words)
    if not flags:
        try:
            config = load(overrides, config_dir)
        except MultirunAsked:
            return multirun(words, config_dir)
        from kdrun.commands.session import train  # heavy: only once the configuration is right

        train(config, overrides)
        return 0
    return multirun(words, config_dir)


def multirun(words: list[str], config_dir: str | None) -> int:
    """Every job in turn; a failed one is shown at once and the others go on."""
    failures: list[KdrunError] = []

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        try:
            config = checked(cfg, config_dir)
            from kdrun.commands.session import train

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
usage: kdrun train [key=value …] [-m] [--cfg job] [--config-dir FOLDER]

Trains one student. Without arguments: resnet20 teaches resnet8 handwritten digits. A teacher that is not there yet is
trained first, once for all runs. The same command resumes an interrupted run and shows a finished one.

  method=kd|dkd|…      kdrun list methods         teacher=NAME student=NAME   kdrun list teachers
  dataset=digits|cifar100|…                       dataset.root=FOLDER         where the images are
  epochs=N batch_size=N seed=N                    optimizer.lr=… optimizer.schedule=cosine …
  device=auto|cpu|cuda:N precision=auto|fp32|tf32|bf16 compile=auto|true|false threads=N
  benchmark=NAME pair=NAME                        a publication's protocol, pair and weights
  output_root=FOLDER                              default ./outputs, or $KDRUN_OUTPUTS

  -m, --multirun       every combination of comma-separated values: kdrun train -m method=kd,dkd seed=0,1,2
  --cfg job            print the composed configuration and stop
  --config-dir FOLDER  a folder with groups of your own (method/mine.yaml …)

Models are typed as a zoo name, timm:NAME, torchvision:NAME or package.module:callable.
"""
