"""What a user can set, as plain typed dataclasses. Hydra composes them, `kdrun.config.schema.check` validates them, and
the modules that they configure take them as they are. No torch here: composing a configuration must stay quick.

A field without a default has its number in conf/. Metadata: low/high bound a number or a list's numbers, choices an
enumeration; `over` and `under` are exclusive bounds; path marks a file's or folder's name; pattern is a regular
expression, which `shows` says in words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

RESIZES = ("stretch", "fit", "crop")
LOGGERS = ("tensorboard", "wandb")  # beside metrics.csv

# Far above what anybody trains with: beyond these a number is a slip, which would cost hours or all memory.
LARGEST_SEED = 2**32 - 1  # what NumPy and others take, so that a seed means the same everywhere
LARGEST_SIDE, LARGEST_BATCH, MOST_EPOCHS, LARGEST_RATE = 8192, 2**20, 100_000, 100


def setting(default: Any = MISSING, **rules: Any) -> Any:
    """A dataclass field with validation rules; a list or dict default is copied."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=rules)
    return field(default=default, metadata=rules)


@dataclass
class Augment:
    """crop: none, padded (pad by crop_padding with zeros or reflection, then crop back) or resized (a random area of
    resized_scale times the image, aspect 3/4 to 4/3, resized back). flip: probability of a horizontal flip. rotation:
    largest angle in degrees. brightness, contrast, saturation: factors from [1 - x, 1 + x]; hue: shift by up to x
    turns."""

    crop: str = setting("padded", choices=("none", "padded", "resized"))
    crop_padding: int = setting(4, low=0, high=LARGEST_SIDE)
    crop_padding_mode: str = setting("zeros", choices=("zeros", "reflect"))
    resized_scale: list[float] = setting([0.08, 1.0], over=0, high=1, length=2)
    flip: float = setting(0.5, low=0, high=1)
    rotation: float = setting(0.0, low=0, high=180)
    brightness: float = setting(0.0, low=0, high=10)
    contrast: float = setting(0.0, low=0, high=10)
    saturation: float = setting(0.0, low=0, high=10)
    hue: float = setting(0.0, low=0, high=0.5)

    @property
    def padding(self) -> int:
        return self.crop_padding if self.crop == "padded" else 0

    @property
    def warps(self) -> bool:
        return self.crop == "resized" or self.rotation > 0

    @property
    def jitters(self) -> bool:
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def changes(self) -> bool:
        """Whether an image may look different from one epoch to the next."""
        return self.padding > 0 or self.flip > 0 or self.warps or self.jitters


@dataclass
class DatasetOptions:
    """Which images, how they are split, normalised and augmented.

    root: where the images are; null: $KDRUN_DATA, else a download where there is one. train_fraction: share of all
    images that trains, where the source has no test set of its own. val_fraction: share of the training images held
    out to select an epoch. train_limit, test_limit: stratified samples of about that size. normalize: given (mean,
    std below) or measure (once, from the training set). resize, of images in class folders: stretch both sides to a
    square; fit the shorter side and cut the longer one off around the centre; or crop, the inner 7/8 of that, as is
    usual for ImageNet. on_error: stop at a damaged image, or skip all of them. allow_missing_classes: val/ and test/
    may lack classes of train/. fake_*: the size of made-up data.
    """

    name: str = setting(choices=("digits", "cifar10", "cifar100", "imagenet", "folder", "fake"))
    root: str | None = setting(None, path=True)
    image_size: int = setting(low=8, high=LARGEST_SIDE)
    normalize: str = setting("given", choices=("given", "measure"))
    mean: list[float] | None = setting(None, length=3, low=0, high=1)
    std: list[float] | None = setting(None, length=3, over=0, high=1)
    augment: Augment = field(default_factory=Augment)
    resize: str = setting("stretch", choices=RESIZES)
    train_fraction: float | None = setting(None, over=0, under=1)
    val_fraction: float = setting(0.0, low=0, under=1)
    split_seed: int = setting(0, low=0, high=LARGEST_SEED)
    train_limit: int | None = setting(None, low=1)
    test_limit: int | None = setting(None, low=1)
    on_error: str = setting("stop", choices=("stop", "skip"))
    allow_missing_classes: bool = setting(False)
    workers: int | None = setting(None, low=0, high=256)
    fake_train: int = setting(512, low=1, high=10_000_000)
    fake_test: int = setting(256, low=1, high=10_000_000)
    fake_classes: int = setting(10, low=2, high=100_000)


@dataclass
class OptimizerOptions:
    """A training recipe: optimizer, learning-rate schedule, length and batch size.

    Durations are in epochs. decay_norm_and_bias: whether weight decay reaches batch-norm and bias parameters (the
    CIFAR benchmarks: yes; timm's recipes: no). clip_norm: largest gradient norm. accumulate_steps: batches per update.
    ema_decay: evaluate and save an exponential moving average of the weights.
    """

    name: str = setting(choices=("sgd", "adam", "adamw"))
    epochs: int = setting(low=0, high=MOST_EPOCHS)
    batch_size: int = setting(low=1, high=LARGEST_BATCH)
    lr: float = setting(over=0, high=LARGEST_RATE)
    momentum: float = setting(0.9, low=0, under=1)
    nesterov: bool = setting(False)
    betas: list[float] = setting([0.9, 0.999], length=2, low=0, under=1)
    eps: float = setting(1e-8, over=0, high=1)
    weight_decay: float = setting(low=0, high=LARGEST_RATE)
    decay_norm_and_bias: bool = setting(True)
    schedule: str = setting(choices=("constant", "multistep", "step", "cosine", "one_cycle"))
    milestones: list[int] = setting([], low=1, high=MOST_EPOCHS)
    step_epochs: int = setting(10, low=1, high=MOST_EPOCHS)
    gamma: float = setting(0.1, over=0, high=1)
    min_lr: float = setting(0.0, low=0, high=LARGEST_RATE)
    peak_fraction: float = setting(0.3, over=0, under=1)
    warmup_epochs: float = setting(0.0, low=0, high=MOST_EPOCHS)
    warmup_lr: float = setting(0.0, low=0, high=LARGEST_RATE)
    clip_norm: float | None = setting(None, over=0, high=1e9)
    accumulate_steps: int = setting(1, low=1, high=LARGEST_BATCH)
    ema_decay: float | None = setting(None, over=0, under=1)


@dataclass
class ModelOptions:
    """A network. name: a zoo name, timm:NAME, torchvision:NAME or package.module:callable.

    kwargs: constructor arguments. pretrained: false, true (timm's or torchvision's weights) or a file, whose classifier
    may have other classes. checkpoint: a file of weights of exactly this network, or the directory of a run.
    checkpoint_weights: of either file, where it holds both: raw weights, or their average (ema). checkpoint_ignore:
    patterns of names in it that may be there beyond the network's. preact_last_map: tap the last map where RepDistiller
    does. head: linear, or dropout_linear with head_dropout. input_size: side to which this network's images are
    resized. mean, std: its own normalisation; null: the data set's.
    """

    name: str = setting()
    kwargs: dict[str, Any] = setting({})
    pretrained: str = setting("false", path=True)
    checkpoint: str | None = setting(None, path=True)
    checkpoint_weights: str = setting("ema", choices=("raw", "ema"))
    checkpoint_ignore: list[str] = setting([])
    preact_last_map: bool = setting(False)
    head: str = setting("linear", choices=("linear", "dropout_linear"))
    head_dropout: float = setting(0.5, low=0, under=1)
    input_size: int | None = setting(None, low=8, high=LARGEST_SIDE)
    mean: list[float] | None = setting(None, length=3, low=-1000, high=1000)
    std: list[float] | None = setting(None, length=3, over=0, high=1000)


@dataclass
class TeacherOptions(ModelOptions):
    """The teacher, and the recipe by which it is trained where no checkpoint is given.

    random: distil from the untrained network (a control). seed: of its training, whatever the run's seed, so that
    paired seeds share one teacher. precision: in which it is trained. flip: probability of a horizontal flip while it
    is trained; null: dataset.augment.flip.
    """

    random: bool = setting(False)
    seed: int = setting(0, low=0, high=LARGEST_SEED)
    precision: str = setting("auto", choices=("auto", "fp32", "tf32", "bf16"))
    flip: float | None = setting(None, low=0, high=1)
    recipe: OptimizerOptions = field(default_factory=OptimizerOptions)


@dataclass
class PairOptions:
    """The pair that a publication names, so that another teacher or student under its name is noticed."""

    name: str = setting()
    teacher: str = setting()
    student: str = setting()


@dataclass
class RunConfig:
    """One run. conf/config.yaml says what each value means and holds its default."""

    teacher: TeacherOptions = MISSING
    student: ModelOptions = MISSING
    method: Any = MISSING
    dataset: DatasetOptions = MISSING
    optimizer: OptimizerOptions = MISSING
    benchmark: str | None = None
    pair: PairOptions | None = None
    experiment: str | None = None
    seed: int = setting(low=0, high=LARGEST_SEED)
    epochs: int = setting(low=1, high=MOST_EPOCHS)
    batch_size: int = setting(low=1, high=LARGEST_BATCH)
    eval_batch_size: int | None = setting(low=1, high=LARGEST_BATCH)
    eval_every: int = setting(low=1, high=MOST_EPOCHS)
    device: str = setting(pattern=r"auto|cpu|cuda(:\d{1,3})?", shows="auto, cpu, cuda or cuda:N")
    precision: str = setting(choices=("auto", "fp32", "tf32", "bf16"))
    compile: str = setting(choices=("auto", "true", "false"))
    threads: int | None = setting(low=1, high=1024)
    deterministic: bool = setting()
    teacher_view: str = setting(choices=("same", "clean", "independent"))
    output_root: str = setting(path=True)
    save_every_minutes: float = setting(over=0, high=525_600)
    teacher_cache: bool = setting(True)
    graphs: str = setting("auto", choices=("auto", "true", "false"))
    logger: list[str] = setting([], choices=LOGGERS)


# Bounds of hyperparameters by name or ending: names are the field's terms, so they mean the same in every method.
METHOD_RULES: dict[str, dict[str, Any]] = {
    "temperature": {"over": 0, "high": 10_000},
    "_temperature": {"over": 0, "high": 10_000},
    "smoothing": {"low": 0, "under": 1},
    "_epochs": {"low": 0, "high": MOST_EPOCHS},
    "_weight": {"low": 0, "high": 1e6},
    "_lr": {"over": 0, "high": LARGEST_RATE},
    "_decay": {"low": 0, "high": LARGEST_RATE},
    "momentum": {"low": 0, "under": 1},
    "_momentum": {"low": 0, "under": 1},
    "bottleneck": {"low": 1, "high": 1024},
}
# Of kdrun's methods alone: names that mean something else elsewhere.
OUR_METHOD_RULES: dict[str, dict[str, Any]] = {
    "temperature_start": {"over": 0, "high": 10_000},
    "temperature_range": {"low": 0, "high": 10_000},
    "alpha": {"low": 0, "high": 1},
    "dropout": {"low": 0, "under": 1},
    "replaced": {"low": 0, "high": 1},
    "transformed": {"low": 0, "high": 1},
    "_dropped": {"low": 0, "under": 1},
    "eps": {"low": 0, "high": 100},
    "gamma": {"low": 0, "high": 100},
    "initial_variance": {"over": 0, "high": 1e6},
    "embedding": {"low": 1, "high": 65_536},
    "negatives": {"low": 1, "high": 2**24},
    "words": {"low": 1, "high": 65_536},
}


def method_rules(name: str, ours: bool) -> dict[str, Any]:
    """Return the rules of a method's hyperparameter. ours: it is one of kdrun's methods."""
    rules = {**METHOD_RULES, **(OUR_METHOD_RULES if ours else {})}
    return next((rule for end, rule in rules.items() if name == end or (end[0] == "_" and name.endswith(end))), {})
