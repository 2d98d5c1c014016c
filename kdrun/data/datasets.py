"""dataset=NAME -> what it is (no decoding, no torch) and its splits."""

from __future__ import annotations

from pathlib import Path

from kdrun.config.options import DatasetOptions
from kdrun.data import cifar, digits, fake, folder
from kdrun.data.splits import AnySet, Dataset, limited, stratified_split
from kdrun.display import Track, untracked

STREAMED = ("imagenet", "folder")


class DataSource:
    """A located data set: `fingerprint` identifies its content, `load` decodes and splits it."""

    def __init__(self, options: DatasetOptions):
        self.options = options
        self.located: cifar.Source | folder.Source | None = None
        if options.name in cifar.ARCHIVES:
            self.located = cifar.locate(options.name, options.root)
        elif options.name in STREAMED:
            self.located = folder.locate(options.root)

    def fingerprint(self) -> str:
        """Identity of the content, without decoding anything."""
        if self.located is not None:
            return self.located.fingerprint()
        if self.options.name == "digits":
            return digits.CONTENT
        return f"fake {self.options.fake_train} {self.options.fake_test} {self.options.fake_classes}"

    @property
    def num_classes(self) -> int:
        """How many classes there are, without decoding anything."""
        if isinstance(self.located, cifar.Source):
            trees = self.located.trees
            return len(trees[0].class_names) if trees else {"cifar10": 10, "cifar100": 100}[self.options.name]
        if isinstance(self.located, folder.Source):
            tree = self.located.train or self.located.flat
            assert tree is not None
            return len(tree.class_names)
        return 10 if self.options.name == "digits" else self.options.fake_classes

    def load(self, cache: Path, track: Track = untracked) -> Dataset:
        """All splits. cache: folder for decoded images and downloads. Raises DataError."""
        options = self.options
        train, val, test, names, notes = self._splits(cache, track)
        train = limited(train, options.train_limit, options.split_seed)
        test = limited(test, options.test_limit, options.split_seed)
        if options.val_fraction and val is None:
            kept, held = stratified_split(train.labels, 1 - options.val_fraction, options.split_seed)
            train, val = train.take(kept), train.take(held)
        return Dataset(train, test, val, names, options.image_size, notes)

    def _splits(self, cache: Path, track: Track) -> tuple[AnySet, AnySet | None, AnySet, list[str], list[str]]:
        options, fraction = self.options, self.options.train_fraction
        if isinstance(self.located, folder.Source):
            train, val, test, names = folder.split(
                self.located, 0.8 if fraction is None else fraction, options.split_seed
            )
            return train, val, test, names, []
        if isinstance(self.located, cifar.Source):
            both = cifar.load(self.located, options.image_size, options.on_error, cache, track)
            return both[0], None, both[1], both[2], both[3]
        if options.name == "digits":
            every = digits.load(options.image_size, cache)
            first, rest = stratified_split(every.labels, 0.8 if fraction is None else fraction, options.split_seed)
            return every.take(first), None, every.take(rest), digits.CLASS_NAMES, []
        made = [
            fake.load(count, options.fake_classes, options.image_size, seed)
            for seed, count in ((1, options.fake_train), (2, options.fake_test))
        ]
        return made[0], None, made[1], [f"class {label}" for label in range(options.fake_classes)], []
