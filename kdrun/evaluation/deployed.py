"""Trained networks as they are used: their weights, and the preparation of images."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.compose import load
from kdrun.config.options import RESIZES
from kdrun.data.datasets import STREAMED
from kdrun.data.inference import Preparation
from kdrun.data.splits import ArraySet, Dataset
from kdrun.display import Track, untracked
from kdrun.errors import ConfigError
from kdrun.evaluation.loading import open_data
from kdrun.evaluation.targets import Target, Which, open_networks, target_of_file, target_of_run
from kdrun.runs.checkpoints import is_names, is_triple, recorded_data
from kdrun.runs.directory import find_runs, outputs_folder
from kdrun.training.build import Data

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdrun.evaluation.examine import Subject
    from kdrun.training.precision import Numerics


LARGEST_SIDE = 8192  # largest image side that a file may request, in pixels


@dataclass(frozen=True)
class Card:
    """Card of an exported network: everything needed to use it. image_size, resize, streamed: as in `Preparation`;
    input_size: side to which images are then resized for the network (bilinear, antialiased), usually the same;
    mean, std: the network's normalisation of channels in [0, 1]."""

    network: str
    class_names: list[str]
    image_size: int
    resize: str
    streamed: bool
    input_size: int
    mean: list[float]
    std: list[float]

    @classmethod
    def read(cls, told: Any) -> Card:
        """Return the card stored in a file. Raises KeyError, TypeError or ValueError if it is invalid."""
        card = cls(**{field.name: told[field.name] for field in fields(cls)})
        if not is_names(card.class_names) or not all(map(is_triple, (card.mean, card.std))):
            raise ValueError("class_names, mean or std")
        if not all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in (card.image_size, card.input_size)):
            raise ValueError("image_size or input_size")
        if card.resize not in RESIZES or not isinstance(card.network, str):
            raise ValueError("resize or network")
        return card

    @property
    def preparation(self) -> Preparation:
        return Preparation(self.image_size, self.resize, self.streamed)

    def unit(self, pixels: np.ndarray) -> Tensor:
        """Convert uint8 [N, S, S, 3] to RGB in [0, 1], [N, 3, input_size, input_size]: the input of an exported
        file."""
        import torch
        import torch.nn.functional as F

        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        if self.input_size != self.image_size:
            image = F.interpolate(image, size=self.input_size, mode="bilinear", antialias=True)
        return image


@dataclass
class Deployed:
    """Network on its device, in evaluation mode."""

    target: Target
    card: Card
    subject: Subject
    data: Data  # one black image per class: for shapes, names and normalisation

    @property
    def numerics(self) -> Numerics:
        return self.subject.network.numerics

    @property
    def model(self) -> nn.Module:
        """Return the module that maps the output of `transform` to logits [N, K]."""
        return self.subject.deployed

    def transform(self, pixels: np.ndarray) -> Tensor:
        """Convert uint8 [N, S, S, 3] to the network's own input, on its device: the arithmetic of evaluation."""
        import torch

        from kdrun.data.resident import Normalise

        device = self.numerics.torch_device
        return self.subject.tap.prepare(Normalise(self.data.stats, device)(torch.from_numpy(pixels).to(device)))

    def logits(self, pixels: np.ndarray) -> Tensor:
        """Return logits [N, K] in float32, at the run's precision."""
        import torch

        with torch.inference_mode(), self.numerics.autocast():
            return self.model(self.transform(pixels)).float()


def find_target(word: str, which: Which, settings: dict[str, str], config_dir: str | None = None) -> Target:
    """Return the one network that `word` refers to: a RUN of the command line or a weights file. settings: values
    allowed for a finished run, or a file's whole configuration."""
    if Path(os.path.expanduser(word)).is_file():
        rest = [f"{key}={value}" for key, value in settings.items()]
        return target_of_file(word, load([*rest, f"student.checkpoint={word}", "method=none"], config_dir), which)
    found = find_runs(word, outputs_folder(settings.get("output_root")))
    if len(found) > 1:
        raise ConfigError(f"RUN {word} matches {len(found)} runs; give one, such as {found[0]}.")
    return target_of_run(found[0], which, settings)


def home(target: Target) -> Path | None:
    """Return the directory of a target's run."""
    return None if target.folder is None else target.folder.parent


def deploy(target: Target, numerics: Numerics, track: Track = untracked) -> Deployed:
    """Load the network. The data set is read only the first time, for its class names and normalisation."""
    from kdrun.evaluation.examine import Subject

    config = target.config
    names, stats = described(target, track)
    side = config.dataset.image_size
    black = ArraySet(np.zeros((len(names), side, side, 3), np.uint8), np.arange(len(names)))
    data = Data(Dataset(black, black, None, names, side), stats, config)
    network, deployed, _ = open_networks(replace(target, teacher=None), data, numerics)
    subject = Subject(network, deployed)
    mean, std = normalisation(subject, stats)
    card = Card(
        target.options.name,
        names,
        side,
        config.dataset.resize,
        config.dataset.name in STREAMED,
        subject.tap.input_size or side,
        mean,
        std,
    )
    return Deployed(target, card, subject, data)


def normalisation(subject: Subject, stats: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    """Return mean and std of the network's own input: the data set's, unless its tap re-normalises.

    (x - mean) / std · scale + shift = (x - (mean - shift / scale · std)) / (std / scale).
    """
    tap = subject.tap
    mean, std = (np.asarray(values, np.float64) for values in stats)
    if tap.scale is not None and tap.shift is not None:
        scale, shift = (values.detach().cpu().double().numpy().ravel() for values in (tap.scale, tap.shift))
        mean, std = mean - shift / scale * std, std / scale
    return [round(float(value), 6) for value in mean], [round(float(value), 6) for value in std]


def described(target: Target, track: Track) -> tuple[list[str], tuple[list[float], list[float]]]:
    """Return (class names, (mean, std)) of the data set that a network was trained on: as recorded by its run, else
    from the data set itself."""
    run = home(target)
    if run is not None and (known := recorded_data(run)):
        return known
    _, data = open_data(target.config, track)
    return data.splits.class_names, data.stats
