"""Search space of `kdrun tune`: settings with a range or a list of values, and candidates spread over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdrun.config.compose import translate
from kdrun.config.method_schema import read_method
from kdrun.config.options import RunConfig
from kdrun.config.settings import settings
from kdrun.config.words import rewrite, unquoted
from kdrun.errors import ConfigError

# Without a range: temperatures from a quarter to four times the default, weights from an eighth to eight times.
DEFAULT_RANGES = {"temperature": 4.0, "_weight": 8.0}
FIXED = "ce_weight"  # the reference weight: a common factor would only act like a learning rate
FIGURES = 3  # significant digits of a drawn number


@dataclass(frozen=True)
class Dimension:
    """Searched setting: `values` as typed, or numbers between `low` and `high`, on a logarithmic scale if both are
    above 0. whole: True if it takes only whole numbers."""

    key: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def described(self) -> str:
        """Return the setting with its values or range."""
        return f"{self.key} {', '.join(self.values) if self.values else f'{self.low:g} to {self.high:g}'}"

    def at(self, share: float) -> str:
        """Return the value at `share` of the range, from 0 to below 1, as a command-line argument."""
        if self.values:
            return f"{self.key}={self.values[int(share * len(self.values))]}"
        if self.low > 0:
            number = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            number = self.low + share * (self.high - self.low)
        return f"{self.key}={round(number) if self.whole else f'{number:.{FIGURES}g}'}"


def split_searched(words: Sequence[str], config_dir: str | None) -> tuple[list[Dimension], list[str]]:
    """Return (the settings with a range or several values, the other arguments). Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        parsed = OverridesParser.create().parse_overrides(rewrite(words, config_dir, several=True))
    except Exception as error:
        raise translate(error) from error
    searched, rest = [], []
    for word, found in zip(words, parsed, strict=True):
        key = found.key_or_group
        if not found.is_sweep_override():
            rest.append(word)
        elif key == "method" or key.startswith(("teacher", "dataset")) or key == "seed":
            raise ConfigError(f"{word}: a search covers the settings of one method, for one teacher and data set.")
        elif found.is_interval_sweep():
            value = found.value()
            searched.append(between(word, key, float(value.start), float(value.end)))  # type: ignore[union-attr]
        else:
            values = tuple(unquoted(f"{key}={one}").partition("=")[2] for one in found.sweep_string_iterator())
            searched.append(Dimension(key, values))
    return searched, rest


def between(word: str, key: str, low: float, high: float) -> Dimension:
    """Return the dimension of an interval. Raises ConfigError for an empty one."""
    if not low < high:
        raise ConfigError(f"{word}: the first bound must be the smaller one.")
    return Dimension(key, low=low, high=high)


def usual(config: RunConfig) -> list[Dimension]:
    """Return the temperature and the weights of a run's method, around their values. Raises ConfigError for a method
    without any."""
    found = []
    for name, value in config.method.items():
        factor = next((factor for ending, factor in DEFAULT_RANGES.items() if name.endswith(ending)), None)
        if factor is not None and name != FIXED and isinstance(value, int | float) and value > 0:
            found.append(Dimension(f"method.{name}", low=value / factor, high=value * factor))
    if not found:
        own = [f"method.{name}" for name in read_method(config.method["_target_"]).parameters]
        example = own[0] if own else "optimizer.lr"
        raise ConfigError(
            f"this method has no weight and no temperature to search: give a setting with a range, such as "
            f"'{example}=interval(0.05,0.5)'."
        )
    return found


def typed(dimensions: Sequence[Dimension], config: RunConfig) -> list[Dimension]:
    """Return the dimensions, with those of whole numbers marked."""
    parameters = read_method(config.method["_target_"]).parameters

    def is_whole(key: str) -> bool:
        known, name = settings().get(key), key.removeprefix("method.")
        return known.kind is int if known is not None else parameters.get(name, "").startswith("int")

    return [replace(one, whole=is_whole(one.key)) for one in dimensions]


def candidates(dimensions: Sequence[Dimension], count: int, seed: int) -> list[list[str]]:
    """Return up to `count` different choices of overrides, the first of which is empty: everything at its default.

    The others are a scrambled Halton sequence, whose points are evenly spread for any number; or every combination, if
    there are only lists of values and no more combinations than that.
    """
    from scipy.stats import qmc

    every = math.prod(len(one.values) for one in dimensions)
    if all(one.values for one in dimensions) and every < count:
        combinations = itertools.product(*(one.values for one in dimensions))
        found = [
            [f"{one.key}={value}" for one, value in zip(dimensions, chosen, strict=True)] for chosen in combinations
        ]
        return [[], *found]
    points = qmc.Halton(len(dimensions), rng=seed).random(count - 1)
    drawn = ([one.at(float(share)) for one, share in zip(dimensions, point, strict=True)] for point in points)
    return [[], *(list(words) for words in dict.fromkeys(map(tuple, drawn)))]
