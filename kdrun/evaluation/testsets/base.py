"""Base classes of derived test sets: each is a pure, seeded function of one image."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kdrun.errors import ConfigError, DataError
from kdrun.evaluation.testsets.pretrained import content_of


def versions_of(*distributions: str) -> dict[str, str]:
    return {distribution: version(distribution) for distribution in distributions}


@dataclass(frozen=True)
class Draw:
    """Random streams of one image, independent of the batch, order or process in which it is created.

    key: of the set, its parameters and the seed, 128 bits; index: the image's position in the test set. The streams are
    Philox's (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key is the key, the upper half of
    the counter is the index.
    """

    key: int
    index: int

    def generator(self) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.key, counter=self.index << 128))

    def shared(self) -> np.random.Generator:
        """Return the stream shared by all images of the set."""
        return np.random.Generator(np.random.Philox(key=self.key, counter=1 << 255))

    def partner(self) -> np.random.Generator:
        """Return the stream that chooses another image."""
        return np.random.Generator(np.random.Philox(key=self.key, counter=self.index << 128 | 1 << 254))


@dataclass(frozen=True)
class NamedSet:
    """Test set other than the clean one, with its parameters as fields.

    name, measures: for lists and tables. usual: the recipe of the default parameters. libraries: distributions whose
    version can change a pixel. revision: increased whenever the same parameters give other pixels.
    """

    name: ClassVar[str]
    measures: ClassVar[str]
    usual: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    revision: ClassVar[int] = 1

    @property
    def recipe(self) -> str:
        """Return which of several published or offline recipes this is, as named by tables and manifests."""
        return self.usual

    def parameters(self) -> dict[str, Any]:
        """Return the fields that decide a pixel."""
        return asdict(self)

    def needed_files(self) -> dict[str, Path]:
        """Return the files whose content decides a pixel. Raises DataError for a missing one."""
        return {}

    def identity(self, seed: int) -> dict[str, Any]:
        """Return everything that decides a pixel, except the images themselves."""
        contents = {f"{name}_sha256": content_of(place) for name, place in self.needed_files().items()}
        return {
            "set": self.name,
            "recipe": self.recipe,
            "revision": self.revision,
            "parameters": self.parameters(),
            "seed": seed,
            **contents,
        }

    def key(self, seed: int) -> int:
        """Return the 128 bits that seed all draws of this set."""
        text = json.dumps(self.identity(seed), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")

    def versions(self) -> dict[str, str]:
        return versions_of(*self.libraries)

    def refuse(self, names: tuple[str, ...], way: str) -> None:
        """Raise ConfigError if one of the fields `names`, which only `way` uses, was changed."""
        defaults = {field.name: field.default for field in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"{self.name}.{name}={getattr(self, name)}: only {way} has this parameter; "
                    f"leave it out, or set {way}."
                )


class DerivedSet(NamedSet, ABC):
    """Set made from the clean one, image by image. pairs: True if `image` needs another image, of another class.
    seconds_per_megapixel: approximate time, if it is short, to decide whether processes would pay."""

    pairs: ClassVar[bool] = False
    seconds_per_megapixel: ClassVar[float] = math.inf

    @property
    def needs_network(self) -> bool:
        """Return True if a pretrained network makes the images, in batches on a device."""
        return False

    @abstractmethod
    def image(self, image: np.ndarray, draw: Draw, other: np.ndarray | None = None) -> np.ndarray:
        """Return the derived image: uint8 [H, W, 3] -> uint8 [H, W, 3]; `image` is not modified."""

    def shares(self) -> tuple[object, ...] | None:
        """Return a key that is equal for sets that begin with the same computation on an image, which is then done
        only once."""
        return None

    def made_at(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) at which images of this size pass through the network."""
        return height, width

    def by_network(self, images: np.ndarray, others: np.ndarray | None, device: str) -> np.ndarray:
        """Derive all of uint8 [N, H, W, 3] at once on a torch device, each independently of the others. For
        `needs_network`."""
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise DataError (one line) if the parameters do not fit images of this size."""


def partners(derived: DerivedSet, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return for each image the index of another one, of a class drawn uniformly from the other classes, int64 [N].

    labels [N]. Raises DataError if there is only one class.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(f"testset={derived.name}: needs images of two classes; this test set has one.")
    members = {label: np.flatnonzero(labels == label) for label in classes.tolist()}
    key = derived.key(seed)
    chosen = np.empty(len(labels), dtype=np.int64)
    for index, label in enumerate(labels.tolist()):
        generator = Draw(key, index).partner()
        others = classes[classes != label]
        pool = members[int(generator.choice(others))]
        chosen[index] = pool[generator.integers(len(pool))]
    return chosen
