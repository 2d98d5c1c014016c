"""What a user can set, as plain typed dataclasses. Hydra composes them, `kdrun.config.schema.check` validates them, and
the modules that they configure take them as they are. No torch here: composing a configuration must stay quick.

A field without a default has its number in conf/. Metadata: low/high bound a number or a list's numbers, choices an
enumeration; `over` and `under` are exclusive bounds; path marks a file's or folder's name; pattern is a regular
expression, which `shows` says in words; help says what it means, for `kdrun explain KEY`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdrun.config.augment import Augment
from kdrun.config.setting import LARGEST_BATCH, LARGEST_RATE, LARGEST_SEED, LARGEST_SIDE, MOST_EPOCHS, setting

RESIZES = ("stretch", "fit", "crop")
LOGGERS = ("tensorboard", "wandb")  # beside metrics.csv
VECTORS = ("pdf", "svg")  # pictures beside PNG
LAUNCHERS = ("lanes", "slurm", "submitit_local")  # of -m and sweep=, beside Hydra's own


@dataclass
class DatasetOptions:
    """The images, and how they are split, normalised and augmented."""

    name: str = setting(
        choices=("digits", "cifar10", "cifar100", "imagenet", "folder", "fake"),
        help="which kind of data set; dataset=NAME chooses it with its defaults",
    )
    root: str | None = setting(
        None,
        path=True,
        help="folder that holds the images (kdrun data FOLDER looks at it); null: $KDRUN_DATA, else a download",
    )
    image_size: int = setting(low=8, high=LARGEST_SIDE, help="side in pixels to which images are brought")
    normalize: str = setting(
        "given",
        choices=("given", "measure"),
        help="given: by mean and std below; measure: by those of the training images",
    )
    mean: list[float] | None = setting(
        None, length=3, low=0, high=1, help="of red, green and blue in [0, 1], subtracted from each pixel"
    )
    std: list[float] | None = setting(
        None, length=3, over=0, high=1, help="of red, green and blue in [0, 1], by which each pixel is divided"
    )
    augment: Augment = field(default_factory=Augment, metadata={"help": "random changes of the training images"})
    resize: str = setting(
        "stretch",
        choices=RESIZES,
        help="of images in class folders: stretch to a square, fit the shorter side, or crop the inner 7/8 of that",
    )
    cache: str = setting(
        "none",
        choices=("none", "resized"),
        help="resized: decode and resize image files once, into output_root; not for augment.crop=resized",
    )
    train_fraction: float | None = setting(
        None, over=0, under=1, help="share of each class that trains, where the data set has no test images of its own"
    )
    val_fraction: float = setting(
        0.0, low=0, under=1, help="share of the training images held out to choose an epoch (top1_val_selected)"
    )
    split_seed: int = setting(0, low=0, high=LARGEST_SEED, help="which images these shares are")
    evaluate_on: str = setting(
        "test",
        choices=("test", "val"),
        help="val: the validation images stand in for the test images, which stay unseen while settings are chosen",
    )
    train_limit: int | None = setting(None, low=1, help="train on a stratified sample of about so many images")
    test_limit: int | None = setting(None, low=1, help="test on a stratified sample of about so many images")
    on_error: str = setting("stop", choices=("stop", "skip"), help="stop at a damaged image, or skip all of them")
    allow_missing_classes: bool = setting(False, help="let val/ and test/ lack classes of train/")
    workers: int | None = setting(None, low=0, high=256, help="processes that read image files; null: one per core")
    fake_train: int = setting(512, low=1, high=10_000_000, help="training images of dataset=fake")
    fake_test: int = setting(256, low=1, high=10_000_000, help="test images of dataset=fake")
    fake_classes: int = setting(10, low=2, high=100_000, help="classes of dataset=fake")


@dataclass
class OptimizerOptions:
    """A training recipe: optimizer, learning-rate schedule, length and batch size. Durations are in epochs."""

    name: str = setting(choices=("sgd", "adam", "adamw"), help="the optimizer")
    epochs: int = setting(
        low=0, high=MOST_EPOCHS, help="passes over the training images; the run's `epochs` follows it"
    )
    batch_size: int = setting(low=1, high=LARGEST_BATCH, help="images of a step; the run's `batch_size` follows it")
    lr: float = setting(over=0, high=LARGEST_RATE, help="the (highest) learning rate")
    momentum: float = setting(0.9, low=0, under=1, help="of sgd")
    nesterov: bool = setting(False, help="Nesterov's form of momentum, for sgd")
    betas: list[float] = setting(
        [0.9, 0.999], length=2, low=0, under=1, help="of adam and adamw: decay of the first and second moment"
    )
    eps: float = setting(1e-8, over=0, high=1, help="of adam and adamw: added to the denominator")
    weight_decay: float = setting(low=0, high=LARGEST_RATE, help="strength of weight decay")
    decay_norm_and_bias: bool = setting(
        True, help="whether it reaches batch norm and biases (the CIFAR benchmarks: yes; timm's recipes: no)"
    )
    schedule: str = setting(
        choices=("constant", "multistep", "step", "cosine", "one_cycle"), help="how the learning rate changes"
    )
    milestones: list[int] = setting(
        [], low=1, high=MOST_EPOCHS, help="epochs after which schedule=multistep multiplies the rate by gamma"
    )
    step_epochs: int = setting(10, low=1, high=MOST_EPOCHS, help="epochs between the drops of schedule=step")
    gamma: float = setting(0.1, over=0, high=1, help="factor of each drop of schedule=multistep and step")
    min_lr: float = setting(0.0, low=0, high=LARGEST_RATE, help="the rate at which schedule=cosine ends")
    peak_fraction: float = setting(
        0.3, over=0, under=1, help="share of the training after which schedule=one_cycle is at its highest rate"
    )
    warmup_epochs: float = setting(0.0, low=0, high=MOST_EPOCHS, help="epochs of a linear rise from warmup_lr to lr")
    warmup_lr: float = setting(0.0, low=0, high=LARGEST_RATE, help="the rate at which the warm-up begins")
    clip_norm: float | None = setting(None, over=0, high=1e9, help="largest norm of the gradient; null: not clipped")
    accumulate_steps: int = setting(1, low=1, high=LARGEST_BATCH, help="batches for each update of the weights")
    ema_decay: float | None = setting(
        None,
        over=0,
        under=1,
        help="evaluate and save an exponential moving average of the weights; null: the weights themselves",
    )


@dataclass
class ModelOptions:
    """A network."""

    name: str = setting(help="a zoo name (kdrun list students), timm:NAME, torchvision:NAME or package.module:callable")
    kwargs: dict[str, Any] = setting({}, help="arguments of its constructor beside num_classes")
    pretrained: str = setting(
        "false",
        path=True,
        help="false, true (timm's or torchvision's weights) or a file, whose classifier may have other classes",
    )
    checkpoint: str | None = setting(
        None, path=True, help="a file of weights of exactly this network, or the directory of a run"
    )
    checkpoint_weights: str = setting(
        "ema",
        choices=("raw", "ema"),
        help="which weights of a file that holds both: as trained, or their moving average",
    )
    checkpoint_ignore: list[str] = setting([], help="patterns of names that such a file may hold beyond the network's")
    preact_last_map: bool = setting(False, help="tap the last map before its activation, where RepDistiller does")
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
        None, length=3, low=-1000, high=1000, help="its own normalisation; null: the data set's"
    )
    std: list[float] | None = setting(
        None, length=3, over=0, high=1000, help="its own normalisation; null: the data set's"
    )


@dataclass
class TeacherOptions(ModelOptions):
    """The teacher, and the recipe by which it is trained where no checkpoint is given."""

    random: bool = setting(False, help="distil from the untrained network, as a control")
    seed: int = setting(
        0,
        low=0,
        high=LARGEST_SEED,
        help="of the teacher's training, whatever the run's seed, so that all seeds share one teacher",
    )
    precision: str = setting("auto", choices=("auto", "fp32", "tf32", "bf16"), help="in which it is trained")
    flip: float | None = setting(
        None, low=0, high=1, help="probability of a horizontal flip while it is trained; null: dataset.augment.flip"
    )
    recipe: OptimizerOptions = field(
        default_factory=OptimizerOptions, metadata={"help": "how it is trained where it has no checkpoint"}
    )


@dataclass
class PairOptions:
    """The pair that a publication names, so that another teacher or student under its name is noticed."""

    name: str = setting(help="the pair's name")
    teacher: str = setting(help="the teacher that it names")
    student: str = setting(help="the student that it names")


@dataclass
class RunConfig:
    """One run. conf/config.yaml says what each value means and holds its default."""

    teacher: TeacherOptions = setting(help="the network that teaches: teacher=NAME")
    student: ModelOptions = setting(help="the network that learns: student=NAME")
    method: Any = setting(help="how the student learns: method=NAME (kdrun list methods)")
    dataset: DatasetOptions = setting(help="the images: dataset=NAME (kdrun list datasets)")
    optimizer: OptimizerOptions = setting(help="the student's training recipe: optimizer=NAME (kdrun list optimizers)")
    benchmark: str | None = setting(
        None, help="a publication's protocol: data set, length, where features are tapped (kdrun list benchmarks)"
    )
    pair: PairOptions | None = setting(None, help="one of a benchmark's teacher-student pairs (kdrun list pairs)")
    experiment: str | None = setting(
        None, help="a named set of settings over all of the others (kdrun list experiments)"
    )
    seed: int = setting(
        low=0,
        high=LARGEST_SEED,
        help="of the student's initial weights, the order of the images and their augmentation",
    )
    epochs: int = setting(low=1, high=MOST_EPOCHS, help="passes over the training images")
    batch_size: int = setting(low=1, high=LARGEST_BATCH, help="images of a step")
    eval_batch_size: int | None = setting(
        low=1, high=LARGEST_BATCH, help="images of a batch in evaluation; null: what this hardware likes best"
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
        help="auto: bf16 where it trains faster here than fp32; tf32 is for GPUs",
    )
    compile: str = setting(
        choices=("auto", "true", "false"),
        help="whether networks are compiled; auto: where a timed probe of a long run says that it pays",
    )
    threads: int | None = setting(
        low=1, high=1024, help="CPU threads; null: the cores that are free when the run starts"
    )
    deterministic: bool = setting(help="on a GPU: bit-identical repeats, slower (a CPU always repeats exactly)")
    teacher_view: str = setting(
        choices=("same", "clean", "independent", "fixed"),
        help="which augmented view the teacher sees: the student's, none, one of its own, or one for the whole run",
    )
    output_root: str = setting(
        path=True, help="folder of everything that is written; default ./outputs, or $KDRUN_OUTPUTS"
    )
    save_every_minutes: float = setting(
        over=0, high=525_600, help="checkpoints within long epochs; the end of an epoch is saved anyway"
    )
    teacher_cache: bool = setting(
        True, help="compute the teacher's outputs once where it sees the same images in every epoch"
    )
    graphs: str = setting(
        "auto",
        choices=("auto", "true", "false"),
        help="on a GPU: record a training step of all lanes once, and play it; auto: not yet",
    )
    sync_bn: bool = setting(
        False, help="where several GPUs train one run: batch norm over the images of all, not of each by itself"
    )
    figures: list[str] = setting([], choices=VECTORS, help="formats in which pictures are written beside PNG")
    logger: list[str] = setting(
        [], choices=LOGGERS, help="beside metrics.csv, which is always written (pip install 'kdrun[tensorboard]')"
    )
