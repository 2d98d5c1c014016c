"""Settings as plain typed dataclasses. Hydra composes them, `kdrun.config.schema.check` validates them, and the modules
that they configure take them unchanged. No torch here: composing a configuration must stay quick.

A field without a default has its default in conf/. Metadata: low and high are inclusive bounds of a number or of a
list's numbers, `over` and `under` exclusive ones; choices is an enumeration; path marks the name of a file or folder;
pattern is a regular expression, described to the user by `shows`; help is the meaning, for `kdrun explain KEY`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdrun.config.augment import Augment
from kdrun.config.setting import LARGEST_BATCH, LARGEST_RATE, LARGEST_SEED, LARGEST_SIDE, MOST_EPOCHS, setting

RESIZES = ("stretch", "fit", "crop")
LOGGERS = ("tensorboard", "wandb")  # in addition to metrics.csv
VECTORS = ("pdf", "svg")  # picture formats in addition to PNG
LAUNCHERS = ("lanes", "slurm", "submitit_local")  # of -m and sweep=, in addition to Hydra's own


@dataclass
class DatasetOptions:
    """The images, and how they are split, normalised and augmented."""

    name: str = setting(
        choices=("digits", "cifar10", "cifar100", "imagenet", "folder", "fake"),
        help="kind of data set; dataset=NAME chooses it with its defaults",
    )
    root: str | None = setting(
        None,
        path=True,
        help="folder of the images (kdrun data FOLDER inspects it); null: $KDRUN_DATA, else a download, for CIFAR only",
    )
    image_size: int = setting(low=8, high=LARGEST_SIDE, help="side in pixels to which images are resized")
    normalize: str = setting(
        "given",
        choices=("given", "measure"),
        help="given: by the mean and std below; measure: by the mean and std of the training images",
    )
    mean: list[float] | None = setting(
        None, length=3, low=0, high=1, help="mean of red, green and blue in [0, 1], subtracted from each pixel"
    )
    std: list[float] | None = setting(
        None, length=3, over=0, high=1, help="std of red, green and blue in [0, 1], by which each pixel is divided"
    )
    augment: Augment = field(default_factory=Augment, metadata={"help": "random augmentation of the training images"})
    resize: str = setting(
        "stretch",
        choices=RESIZES,
        help="for images in class folders: stretch to a square, fit the shorter side, or crop the inner 7/8 of that",
    )
    cache: str = setting(
        "none",
        choices=("none", "resized"),
        help="resized: decode and resize image files once, into output_root; not for augment.crop=resized",
    )
    train_fraction: float | None = setting(
        None, over=0, under=1, help="share of each class for training, if the data set has no test images of its own"
    )
    val_fraction: float = setting(
        0.0, low=0, under=1, help="share of the training images held out to choose an epoch (top1_val_selected)"
    )
    split_seed: int = setting(0, low=0, high=LARGEST_SEED, help="seed of these random splits")
    evaluate_on: str = setting(
        "test",
        choices=("test", "val"),
        help="val: test on the validation images, so that the test images stay unseen while settings are chosen",
    )
    train_limit: int | None = setting(None, low=1, help="train on a stratified sample of about this many images")
    test_limit: int | None = setting(None, low=1, help="test on a stratified sample of about this many images")
    on_error: str = setting("stop", choices=("stop", "skip"), help="stop at a damaged image, or skip damaged images")
    allow_missing_classes: bool = setting(False, help="allow val/ and test/ to lack classes of train/")
    workers: int | None = setting(
        None,
        low=0,
        high=256,
        help="processes that read image files; null: one per core, or none for fewer than 2,000 images on a CPU",
    )
    fake_train: int = setting(512, low=1, high=10_000_000, help="training images of dataset=fake")
    fake_test: int = setting(256, low=1, high=10_000_000, help="test images of dataset=fake")
    fake_classes: int = setting(10, low=2, high=100_000, help="classes of dataset=fake")


@dataclass
class OptimizerOptions:
    """Training recipe: optimizer, learning-rate schedule, length and batch size. Durations are in epochs."""

    name: str = setting(choices=("sgd", "adam", "adamw"), help="the optimizer")
    epochs: int = setting(
        low=0, high=MOST_EPOCHS, help="passes over the training images; default of the run's `epochs`"
    )
    batch_size: int = setting(low=1, high=LARGEST_BATCH, help="images per step; default of the run's `batch_size`")
    lr: float = setting(over=0, high=LARGEST_RATE, help="(highest) learning rate")
    momentum: float = setting(0.9, low=0, under=1, help="momentum of sgd")
    nesterov: bool = setting(False, help="Nesterov's form of momentum, for sgd")
    betas: list[float] = setting(
        [0.9, 0.999], length=2, low=0, under=1, help="for adam and adamw: decay rates of the first and second moment"
    )
    eps: float = setting(1e-8, over=0, high=1, help="for adam and adamw: added to the denominator")
    weight_decay: float = setting(low=0, high=LARGEST_RATE, help="strength of weight decay")
    decay_norm_and_bias: bool = setting(
        True, help="apply weight decay to batch norm and biases too (the CIFAR benchmarks do, timm's recipes do not)"
    )
    schedule: str = setting(
        choices=("constant", "multistep", "step", "cosine", "one_cycle"), help="learning-rate schedule"
    )
    milestones: list[int] = setting(
        [], low=1, high=MOST_EPOCHS, help="epochs after which schedule=multistep multiplies the rate by gamma"
    )
    step_epochs: int = setting(10, low=1, high=MOST_EPOCHS, help="epochs between the drops of schedule=step")
    gamma: float = setting(0.1, over=0, high=1, help="factor of each drop of schedule=multistep or step")
    min_lr: float = setting(0.0, low=0, high=LARGEST_RATE, help="final learning rate of schedule=cosine")
    peak_fraction: float = setting(
        0.3, over=0, under=1, help="share of training after which schedule=one_cycle reaches its highest rate"
    )
    warmup_epochs: float = setting(0.0, low=0, high=MOST_EPOCHS, help="epochs of linear warm-up from warmup_lr to lr")
    warmup_lr: float = setting(0.0, low=0, high=LARGEST_RATE, help="learning rate at the start of warm-up")
    clip_norm: float | None = setting(None, over=0, high=1e9, help="largest gradient norm; null: no clipping")
    accumulate_steps: int = setting(1, low=1, high=LARGEST_BATCH, help="batches per update of the weights")
    ema_decay: float | None = setting(
        None,
        over=0,
        under=1,
        help="evaluate and save an exponential moving average of the weights; null: the weights themselves",
    )


@dataclass
class ModelOptions:
    """Settings of a network."""

    name: str = setting(help="a zoo name (kdrun list students), timm:NAME, torchvision:NAME or package.module:callable")
    kwargs: dict[str, Any] = setting({}, help="arguments of its constructor, in addition to num_classes")
    pretrained: str = setting(
        "false",
        path=True,
        help="false, true (timm's or torchvision's weights) or a file; its classifier may have other classes",
    )
    checkpoint: str | None = setting(None, path=True, help="weights file of exactly this network, or a run directory")
    checkpoint_weights: str = setting(
        "ema",
        choices=("raw", "ema"),
        help="which weights to take from a file that holds both: as trained, or their moving average",
    )
    checkpoint_ignore: list[str] = setting([], help="patterns of extra names to ignore in such a file")
    preact_last_map: bool = setting(False, help="tap the last feature map before its activation, as RepDistiller does")
    head: str = setting(
        "linear", choices=("linear", "dropout_linear"), help="the classifier: one layer, or dropout before it"
    )
    head_dropout: float = setting(0.5, low=0, under=1, help="probability of head=dropout_linear")
    input_size: int | None = setting(
        None,
        low=8,
        high=LARGEST_SIDE,
        help="side to which images are resized for this network; null: dataset.image_size",
    )
    mean: list[float] | None = setting(
        None, length=3, low=-1000, high=1000, help="normalisation of this network; null: the data set's"
    )
    std: list[float] | None = setting(
        None, length=3, over=0, high=1000, help="normalisation of this network; null: the data set's"
    )


@dataclass
class TeacherOptions(ModelOptions):
    """Settings of the teacher, and the recipe for training it if no checkpoint is given."""

    random: bool = setting(False, help="use an untrained teacher, with batch norm measured on images, as a control")
    seed: int = setting(
        0,
        low=0,
        high=LARGEST_SEED,
        help="seed of the teacher's training, independent of the run's seed, so that all seeds share one teacher",
    )
    precision: str = setting("auto", choices=("auto", "fp32", "tf32", "bf16"), help="precision of its training")
    flip: float | None = setting(
        None, low=0, high=1, help="flip probability while it is trained; null: dataset.augment.flip"
    )
    recipe: OptimizerOptions = field(
        default_factory=OptimizerOptions, metadata={"help": "training recipe, used if it has no checkpoint"}
    )


@dataclass
class PairOptions:
    """Teacher-student pair of a publication, so that a different teacher or student under its name is noticed."""

    name: str = setting(help="the pair's name")
    teacher: str = setting(help="the pair's teacher")
    student: str = setting(help="the pair's student")


@dataclass
class RunConfig:
    """Configuration of one run. conf/config.yaml holds the defaults and explains each value."""

    teacher: TeacherOptions = setting(help="the network that teaches: teacher=NAME")
    student: ModelOptions = setting(help="the network that learns: student=NAME")
    method: Any = setting(help="how the student learns: method=NAME (kdrun list methods)")
    dataset: DatasetOptions = setting(help="the images: dataset=NAME (kdrun list datasets)")
    optimizer: OptimizerOptions = setting(help="the student's training recipe: optimizer=NAME (kdrun list optimizers)")
    benchmark: str | None = setting(
        None, help="a publication's protocol: data set, length, tapped features (kdrun list benchmarks)"
    )
    pair: PairOptions | None = setting(None, help="one of a benchmark's teacher-student pairs (kdrun list pairs)")
    experiment: str | None = setting(
        None, help="a named set of settings that overrides the others (kdrun list experiments)"
    )
    seed: int = setting(
        low=0,
        high=LARGEST_SEED,
        help="seed of the student's initial weights, the order of the images and their augmentation",
    )
    epochs: int = setting(low=1, high=MOST_EPOCHS, help="passes over the training images")
    batch_size: int = setting(low=1, high=LARGEST_BATCH, help="images per step")
    eval_batch_size: int | None = setting(
        low=1, high=LARGEST_BATCH, help="images per batch in evaluation; null: chosen for the hardware"
    )
    eval_every: int = setting(
        low=1, high=MOST_EPOCHS, help="epochs between evaluations; the last epoch is always evaluated"
    )
    device: str = setting(
        pattern=r"auto|cpu|cuda(:\d{1,3})?",
        shows="auto, cpu, cuda or cuda:N",
        help="where to train; auto: the first GPU, or the CPU",
    )
    precision: str = setting(
        choices=("auto", "fp32", "tf32", "bf16"),
        help="auto: bf16 if it trains faster than fp32 on this machine; tf32 is for GPUs",
    )
    compile: str = setting(
        choices=("auto", "true", "false"),
        help="compile the networks; auto: on long runs, if a timed probe shows that it pays",
    )
    threads: int | None = setting(
        low=1, high=1024, help="CPU threads; null: the cores that are free when the run starts"
    )
    deterministic: bool = setting(help="bit-identical repeats on a GPU, slower (a CPU always repeats exactly)")
    teacher_view: str = setting(
        choices=("same", "clean", "independent", "fixed"),
        help="the teacher's view: the student's, without augmentation, its own, or one fixed per image",
    )
    output_root: str = setting(path=True, help="folder of all output; default ./outputs, or $KDRUN_OUTPUTS")
    save_every_minutes: float = setting(
        over=0, high=525_600, help="between checkpoints within long epochs; the end of each epoch is always saved"
    )
    teacher_cache: bool = setting(
        True, help="compute the teacher's outputs only once if it sees the same images in every epoch"
    )
    graphs: str = setting(
        "auto",
        choices=("auto", "true", "false"),
        help="on a GPU: record a training step of all lanes as one CUDA graph and replay it; auto: off for now",
    )
    sync_bn: bool = setting(
        False, help="if several GPUs train one run: batch norm over all images, instead of each GPU's own"
    )
    figures: list[str] = setting([], choices=VECTORS, help="formats in which pictures are written in addition to PNG")
    logger: list[str] = setting(
        [], choices=LOGGERS, help="in addition to metrics.csv (pip install 'kdrun[tensorboard]')"
    )
