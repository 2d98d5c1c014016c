"""What a user can set, as plain typed dataclasses. Hydra composes them, `kdrun.config.schema.check` validates them, and
the modules that they configure take them as they are. No torch here: composing a configuration must stay quick.

A field without a default has its number in conf/. Metadata: low/high bound a number or a list's numbers, choices an
enumeration; `over` and `under` are exclusive bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

RESIZES = ("stretch", "fit", "crop")
LOGGERS = ("tensorboard", "wandb")  # beside metrics.csv


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
    crop_padding: int = setting(4, low=0)
    crop_padding_mode: str = setting("zeros", choices=("zeros", "reflect"))
    resized_scale: list[float] = setting([0.08, 1.0], over=0, high=1, length=2)
    flip: float = setting(0.5, low=0, high=1)
    rotation: float = setting(0.0, low=0, high=180)
    brightness: float = setting(0.0, low=0)
    contrast: float = setting(0.0, low=0)
    saturation: float = setting(0.0, low=0)
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
    root: str | None = setting(None)
    image_size: int = setting(low=8)
    normalize: str = setting("given", choices=("given", "measure"))
    mean: list[float] | None = setting(None, length=3, low=0, high=1)
    std: list[float] | None = setting(None, length=3, over=0, high=1)
    augment: Augment = field(default_factory=Augment)
    resize: str = setting("stretch", choices=RESIZES)
    train_fraction: float | None = setting(None, over=0, under=1)
    val_fraction: float = setting(0.0, low=0, under=1)
    split_seed: int = setting(0, low=0)
    train_limit: int | None = setting(None, low=1)
    test_limit: int | None = setting(None, low=1)
    on_error: str = setting("stop", choices=("stop", "skip"))
    allow_missing_classes: bool = setting(False)
    workers: int | None = setting(None, low=0)
    fake_train: int = setting(512, low=1)
    fake_test: int = setting(256, low=1)
    fake_classes: int = setting(10, low=2)


@dataclass
class OptimizerOptions:
    """A training recipe: optimizer, learning-rate schedule, length and batch size.

    Durations are in epochs. decay_norm_and_bias: whether weight decay reaches batch-norm and bias parameters (the
    CIFAR benchmarks: yes; timm's recipes: no). clip_norm: largest gradient norm. accumulate_steps: batches per update.
    ema_decay: evaluate and save an exponential moving average of the weights.
    """

    name: str = setting(choices=("sgd", "adam", "adamw"))
    epochs: int = setting(low=0)
    batch_size: int = setting(low=1)
    lr: float = setting(over=0)
    momentum: float = setting(0.9, low=0, under=1)
    nesterov: bool = setting(False)
    betas: list[float] = setting([0.9, 0.999], length=2, low=0, under=1)
    eps: float = setting(1e-8, over=0)
    weight_decay: float = setting(low=0)
    decay_norm_and_bias: bool = setting(True)
    schedule: str = setting(choices=("constant", "multistep", "step", "cosine", "one_cycle"))
    milestones: list[int] = setting([], low=1)
    step_epochs: int = setting(10, low=1)
    gamma: float = setting(0.1, over=0, high=1)
    min_lr: float = setting(0.0, low=0)
    peak_fraction: float = setting(0.3, over=0, under=1)
    warmup_epochs: float = setting(0.0, low=0)
    warmup_lr: float = setting(0.0, low=0)
    clip_norm: float | None = setting(None, over=0)
    accumulate_steps: int = setting(1, low=1)
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
    pretrained: str = setting("false")
    checkpoint: str | None = setting(None)
    checkpoint_weights: str = setting("ema", choices=("raw", "ema"))
    checkpoint_ignore: list[str] = setting([])
    preact_last_map: bool = setting(False)
    head: str = setting("linear", choices=("linear", "dropout_linear"))
    head_dropout: float = setting(0.5, low=0, under=1)
    input_size: int | None = setting(None, low=8)
    mean: list[float] | None = setting(None, length=3)
    std: list[float] | None = setting(None, length=3, over=0)


@dataclass
class TeacherOptions(ModelOptions):
    """The teacher, and the recipe by which it is trained where no checkpoint is given.

    random: distil from the untrained network (a control). seed: of its training, whatever the run's seed, so that
    paired seeds share one teacher. precision: in which it is trained.
    """

    random: bool = setting(False)
    seed: int = setting(0, low=0)
    precision: str = setting("auto", choices=("auto", "fp32", "tf32", "bf16"))
    recipe: OptimizerOptions = field(default_factory=OptimizerOptions)
