"""Data sets by name: their location and identity (without decoding, without torch), and their splits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kdrun.config.options import DatasetOptions
from kdrun.data import cifar, digits, fake, folder, overview
from kdrun.data.image_tree import Tree
from kdrun.data.splits import AnySet, Dataset, FileSet, limited, stratified_split
from kdrun.display import Track, untracked
from kdrun.errors import DataError

STREAMED = ("imagenet", "folder")


shared: list[dict[tuple[str, str | None, bool], cifar.Source | folder.Source]] = []  # stack of `located_once`


@contextmanager
def located_once() -> Iterator[None]:
    """Scan each folder only once inside the block, so that the runs of a sweep see the same state of the images."""
    shared.append({})
    try:
        yield
    finally:
        shared.pop()


def located(name: str, root: str | None, may_lack: bool) -> cifar.Source | folder.Source | None:
    """Return the location of the images; None for built-in or synthetic ones. Raises DataError."""
    known, key = shared[-1] if shared else {}, (name, root, may_lack)
    if key not in known and name in STREAMED:
        known[key] = folder.locate(root, may_lack)
    elif key not in known and name in cifar.ARCHIVES:
        known[key] = cifar.locate(name, root, may_lack)
    return known.get(key)


USUAL_FRACTION = 0.8  # conf/dataset/folder.yaml sets it for folders of both kinds


def refuse_cache(options: DatasetOptions) -> None:
    """Raise DataError if `dataset.cache` does not go with the other settings."""
    if options.cache == "none":
        return
    if options.name not in STREAMED:
        raise DataError(
            f"dataset.cache={options.cache} is for image files that are read in every epoch "
            f"(dataset={' or '.join(STREAMED)}), and dataset={options.name} is decoded once anyway: leave it out."
        )
    if options.augment.crop == "resized":
        raise DataError(
            f"dataset.cache={options.cache} keeps each image at {options.image_size}x{options.image_size}, and "
            "dataset.augment.crop=resized enlarges parts of the files themselves: choose crop=padded or none, or leave "
            "dataset.cache out."
        )


class DataSource:
    """Located data set: `fingerprint` identifies its content, `load` decodes and splits it."""

    def __init__(self, options: DatasetOptions):
        self.options = options
        self.located = located(options.name, options.root, options.allow_missing_classes)
        own_val = isinstance(self.located, folder.Source) and self.located.val is not None
        if options.evaluate_on == "val" and not options.val_fraction and not own_val:
            raise DataError(
                "dataset.evaluate_on=val: there are no validation images; dataset.val_fraction=0.2 holds out a fifth "
                "of the training images."
            )
        own_split = self.located is not None and not self.splits_itself
        if own_split and options.train_fraction not in (None, USUAL_FRACTION):
            raise DataError(
                f"dataset.train_fraction={options.train_fraction}: these images have their own split into training and "
                "test images. Set dataset.train_fraction=null; dataset.train_limit=N trains on N of them."
            )
        refuse_cache(options)

    def fingerprint(self) -> str:
        """Return the identity of the content, without decoding anything."""
        if self.located is not None:
            return self.located.fingerprint()
        if self.options.name == "digits":
            return digits.CONTENT
        return f"fake {self.options.fake_train} {self.options.fake_test} {self.options.fake_classes}"

    @property
    def num_classes(self) -> int:
        """Return the number of classes, without decoding anything."""
        if isinstance(self.located, cifar.Source):
            trees = self.located.trees
            return len(trees[0].class_names) if trees else {"cifar10": 10, "cifar100": 100}[self.options.name]
        if isinstance(self.located, folder.Source):
            tree = self.located.train or self.located.flat
            assert tree is not None
            return len(tree.class_names)
        return 10 if self.options.name == "digits" else self.options.fake_classes

    def overview(self, splits: Dataset) -> tuple[str, str]:
        """Return (the data set's name, a one-line overview)."""
        return f"{overview.name_of(self.options)}:", overview.overview(splits, self.options, self.splits_itself)

    @property
    def splits_itself(self) -> bool:
        """Return True if kdrun divides the images into training and test images, and not the data set."""
        flat = isinstance(self.located, folder.Source) and self.located.flat is not None
        return flat or self.options.name == "digits"

    @property
    def train_fraction(self) -> float:
        """Return the share of each class that trains, if kdrun divides the images."""
        return USUAL_FRACTION if self.options.train_fraction is None else self.options.train_fraction

    @property
    def trees(self) -> list[Tree]:
        """Return the class folders from which images are read; an empty list for arrays."""
        return list(self.located.trees or ()) if self.located is not None else []

    def load(self, cache: Path, track: Track = untracked, as_files: bool = False, fill_cache: bool = False) -> Dataset:
        """Load all splits. cache: folder for decoded images and downloads; as_files: return class folders as files,
        even if they would be decoded at once; fill_cache: fill what `dataset.cache` names, instead of only using what
        it has. Raises DataError."""
        options = self.options
        found = self._splits(cache, track, as_files)
        train = limited(found.train, options.train_limit, options.split_seed, found.class_names)
        test = limited(found.test, options.test_limit, options.split_seed, found.class_names)
        val = found.val
        if options.val_fraction and val is None:
            fraction = 1 - options.val_fraction
            kept, held = stratified_split(train.labels, fraction, options.split_seed, found.class_names)
            train, val = train.take(kept), train.take(held)
        if options.evaluate_on == "val":
            assert val is not None
            test, val = val, None
        found = replace(found, train=train, val=val, test=test)
        return self._resized(found, cache, track, fill_cache) if options.cache == "resized" and not as_files else found

    def _resized(self, splits: Dataset, cache: Path, track: Track, fill: bool) -> Dataset:
        """Return the splits with the cached pixels of their files."""
        from kdrun.data.keep_resized import kept

        def kept_of(part: AnySet | None) -> AnySet | None:
            tree = next((tree for tree in self.trees if isinstance(part, FileSet) and tree.root == part.root), None)
            if part is None or tree is None:
                return part
            return kept(part, tree.fingerprint(), self.options, cache, track, fill)

        parts = {name: kept_of(getattr(splits, name)) for name in ("train", "val", "test")}
        return replace(splits, **parts)  # type: ignore[arg-type]

    def _splits(self, cache: Path, track: Track, as_files: bool) -> Dataset:
        """Return the splits before anything is limited or held out."""
        options, size = self.options, self.options.image_size
        if isinstance(self.located, folder.Source):
            source, unreadable = self.located, []
            if options.on_error == "skip" and not as_files:
                source, unreadable = folder.readable_part(source, cache, track)
            train, val, test, names = folder.split(source, self.train_fraction, options.split_seed)
            return Dataset(train, test, val, names, size, source.notes, unreadable)
        if isinstance(self.located, cifar.Source):
            if as_files and self.located.trees:
                return cifar.as_files(self.located.trees, size)
            return cifar.load(self.located, size, options.on_error, cache, track)
        if options.name == "digits":
            every = digits.load(size, cache)
            first, rest = stratified_split(every.labels, self.train_fraction, options.split_seed)
            return Dataset(every.take(first), every.take(rest), None, digits.CLASS_NAMES, size)
        made = [
            fake.load(count, options.fake_classes, size, seed)
            for seed, count in ((1, options.fake_train), (2, options.fake_test))
        ]
        return Dataset(made[0], made[1], None, [f"class {label}" for label in range(options.fake_classes)], size)
