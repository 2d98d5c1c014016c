"""TensorBoard and Weights & Biases loggers, in addition to metrics.csv, which is always written: the same numbers
and names."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from kdrun.errors import ConfigError


class Logger(Protocol):
    """Logger of an epoch's metrics by split, as in metrics.csv; epoch counts from 1."""

    def log(self, epoch: int, metrics: dict[str, dict[str, float]]) -> None: ...

    def close(self) -> None: ...


def log(loggers: Iterable[Logger], epoch: int, metrics: dict[str, dict[str, float]]) -> None:
    """Pass an epoch's metrics to every logger."""
    for logger in loggers:
        logger.log(epoch, metrics)


def check_loggers(names: list[str]) -> None:
    """Raise ConfigError for a logger whose package is not installed, before anything trains."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"logger={name}: the package is not installed: pip install 'kdrun[{name}]'.")


def make_loggers(names: list[str], folder: Path, config: dict[str, Any], digest: str, epoch: int) -> list[Logger]:
    """Create the loggers of a run in `folder` that continues after `epoch`."""
    made: list[Logger] = []
    if "tensorboard" in names:
        made.append(TensorBoard(folder / "tensorboard", epoch))
    if "wandb" in names:
        made.append(WeightsAndBiases(folder, config, digest))
    return made


class TensorBoard:
    """TensorBoard event files in the run's own folder: tensorboard --logdir outputs/runs."""

    def __init__(self, folder: Path, epoch: int):
        from torch.utils.tensorboard.writer import SummaryWriter

        # A resumed run repeats the epochs after its checkpoint, so their earlier log entries are hidden.
        self.writer = SummaryWriter(str(folder), purge_step=epoch + 1 if epoch else None)

    def log(self, epoch: int, metrics: dict[str, dict[str, float]]) -> None:
        for split, values in metrics.items():
            for name, value in values.items():
                self.writer.add_scalar(f"{split}/{name}", value, epoch)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Weights & Biases run, one per run directory, identified by its digest; project and mode come from WANDB_*
    variables."""

    def __init__(self, folder: Path, config: dict[str, Any], digest: str):
        import wandb  # type: ignore[import-not-found]

        self.run = wandb.init(
            project=None,
            id=digest[:16],
            resume="allow",
            dir=str(folder),
            config=config,
            name=f"{folder.parent.name} {folder.name}",
            reinit="create_new",
        )

    def log(self, epoch: int, metrics: dict[str, dict[str, float]]) -> None:
        self.run.log(
            {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()},
            step=epoch,
        )

    def close(self) -> None:
        self.run.finish()
