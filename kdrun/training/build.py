"""Construction of a run's objects from its plan: loaders, networks, lanes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdrun.config.options import DatasetOptions, ModelOptions, OptimizerOptions, RunConfig, TeacherOptions
from kdrun.config.own_code import module_of
from kdrun.data.overview import unreadable_in_words
from kdrun.data.splits import AnySet, ArraySet, Dataset
from kdrun.display import Track, untracked
from kdrun.errors import CheckpointError, ConfigError, PairingError
from kdrun.runs.checkpoints import differences, other_classes, recorded_data, weights_file
from kdrun.runs.identity import digest_of, teachers_images
from kdrun.runs.plan import Plan
from kdrun.runs.recorded import check_unchanged
from kdrun.streams import Streams
from kdrun.training import ranks

if TYPE_CHECKING:
    from torch import nn

    from kdrun.methods.base import Method
    from kdrun.models.features import Tap
    from kdrun.models.weights import Wanted
    from kdrun.structures import DataSpec
    from kdrun.training.loop import EvalLoader, Lane, TrainLoader
    from kdrun.training.network import Network
    from kdrun.training.precision import Numerics
    from kdrun.training.training_run import Loaders

Stats = tuple[list[float], list[float]]


@dataclass
class Data:
    """Loaded splits and their normalisation."""

    splits: Dataset
    stats: Stats
    config: RunConfig
    overview: tuple[str, str] = ("", "")

    def for_teacher(self) -> Data:
        """Return the data on which the teacher is trained: the same images with its own flip probability."""
        config = replace(self.config, dataset=teachers_images(self.config.teacher, self.config.dataset))
        return replace(self, config=config)

    @property
    def notes(self) -> list[str]:
        """Return what a user should know about how the images were read."""
        left_out = [unreadable_in_words(self.splits.unreadable)] if self.splits.unreadable else []
        return [*self.splits.notes, *left_out]


def load_data(plan: Plan, track: Track = untracked, fill_cache: bool = False) -> Data:
    """Decode (or map) the images; measure mean and std for `dataset.normalize=measure`, once, into the cache.
    fill_cache: fill what `dataset.cache` names, instead of only using what it has."""
    splits = plan.source.load(plan.cache, track, fill_cache=fill_cache)
    options = plan.config.dataset
    if options.normalize == "given":
        assert options.mean is not None and options.std is not None
        stats = options.mean, options.std
    else:
        stats = _measured_stats(plan, splits)
    return Data(splits, stats, plan.config, plan.source.overview(splits))


def _measured_stats(plan: Plan, splits: Dataset) -> Stats:
    from kdrun.files import read_json, write_json

    options = plan.config.dataset
    key = digest_of(
        [
            plan.source.fingerprint(),
            options.image_size,
            options.train_fraction,
            options.val_fraction,
            options.split_seed,
            options.train_limit,
            options.resize,
        ]
    )
    place = plan.cache / f"stats-{key[:16]}.json"
    try:
        found = read_json(place)
        return [float(value) for value in found["mean"]], [float(value) for value in found["std"]]
    except (CheckpointError, KeyError, TypeError, ValueError):  # not measured yet, or damaged
        pass
    if isinstance(splits.train, ArraySet):
        from kdrun.data import resident

        mean, std = resident.measured_stats(np.asarray(splits.train.images))
    else:
        from kdrun.data import stream

        mean, std = stream.measured_stats(splits.train, options.image_size, options.resize, options.workers)
    write_json(place, {"mean": mean, "std": std})
    return mean, std


def make_loaders(
    data: Data, batch_size: int, streams: Streams, teacher_view: str, numerics: Numerics, views: tuple[str, ...] = ()
) -> Loaders:
    """Return loaders: resident tensors for arrays, streams for files. views: `Method.views` of the methods that
    train on them."""
    from kdrun.data.resident import ResidentTrain
    from kdrun.data.stream import StreamTrain
    from kdrun.training.training_run import Loaders

    splits, options = data.splits, data.config.dataset
    common: dict[str, Any] = {"stats": data.stats, "device": numerics.torch_device, "part": ranks.now.part}
    train: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": streams.data,
        "augment": options.augment,
        "teacher_view": teacher_view,
        "views": views,
    }
    measured = [make_eval_loader(data, held, numerics) for held in (splits.test, splits.val) if held is not None]
    if isinstance(splits.train, ArraySet):
        return Loaders(ResidentTrain(splits.train, **train, **common), *measured)
    return Loaders(StreamTrain(splits.train, **train, **common, **streamed(options)), *measured)


def make_eval_loader(data: Data, images: AnySet, numerics: Numerics, **own: Any) -> EvalLoader:
    """Return unaugmented batches of `images`, normalised as `data` is, in its order. own: another part, batch_size."""
    from kdrun.data.resident import ResidentEval
    from kdrun.data.stream import StreamEval
    from kdrun.training.loop import eval_batch_size

    common: dict[str, Any] = {
        "stats": data.stats,
        "device": numerics.torch_device,
        "part": ranks.now.part,
        "batch_size": eval_batch_size(data.config.eval_batch_size, numerics),
        **own,
    }
    if isinstance(images, ArraySet):
        return ResidentEval(images, **common)
    return StreamEval(images, **common, **streamed(data.config.dataset))


def streamed(options: DatasetOptions) -> dict[str, Any]:
    """Return how files are read during training and evaluation."""
    return {
        "image_size": options.image_size,
        "resize": options.resize,
        "workers": options.workers,
    }


def make_tap(options: ModelOptions, num_classes: int, image_size: int, stats: Stats | None) -> Tap:
    """Create a network behind the uniform interface, from torch's current random state, with the weights of its
    checkpoint if it has one. Raises ConfigError if it does not map images to logits of the classes."""
    from kdrun.models.features import Tap
    from kdrun.models.first_pass import Candidate, try_out
    from kdrun.models.zoo import create_model

    model = create_model(
        options.name,
        num_classes=num_classes,
        image_size=options.input_size or image_size,
        pretrained=pretrained_of(options),
        wanted=wanted_of(options),
        preact_last_map=options.preact_last_map,
        head=options.head,
        head_dropout=options.head_dropout,
        kwargs=options.kwargs,
    )
    side = options.input_size or image_size
    traits = try_out(
        Candidate(model, role_of(options), options.name, side, num_classes), own=module_of(options.name) is not None
    )
    if options.checkpoint is not None:
        load_checkpoint(options, model)
    return Tap(
        model,
        image_size,
        input_size=options.input_size,
        data_stats=stats,
        own_stats=own_stats(options, model),
        traits=traits,
    )


def role_of(options: ModelOptions) -> str:
    """Return the group whose settings `options` are."""
    return "teacher" if isinstance(options, TeacherOptions) else "student"


def wanted_of(options: ModelOptions) -> Wanted:
    """Return what to take from a weights file for this network."""
    from kdrun.models.weights import Wanted

    return Wanted(role_of(options), options.checkpoint_weights, tuple(options.checkpoint_ignore))


def pretrained_of(options: ModelOptions) -> str | None:
    """Return `pretrained` as `create_model` takes it: None, "true", or the file that it refers to."""
    if options.pretrained in ("true", "false"):
        return "true" if options.pretrained == "true" else None
    file = weights_file(options.pretrained, f"{role_of(options)}.pretrained")
    check_unchanged(file)
    return str(file)


def load_checkpoint(options: ModelOptions, model: nn.Module) -> None:
    """Load the weights of `options.checkpoint`, which names a file or a run. Raises CheckpointError (one line); if a
    run holds another network, it describes that one."""
    from kdrun.models.weights import load_weights, say_once

    assert options.checkpoint is not None
    role = role_of(options)
    file = weights_file(options.checkpoint, f"{role}.checkpoint")
    check_unchanged(file)
    other = differences(options, role, file)
    try:
        load_weights(model, file, options.name, wanted=wanted_of(options))
    except CheckpointError as error:
        raise CheckpointError(f"{str(error).rstrip('.')}{'; ' if other else ''}{other}.") from error
    if other:
        say_once(other)


def tell_other_classes(options: ModelOptions, here: list[str]) -> None:
    """Print a note if a run's file, taken as a checkpoint, was trained on other classes than those of the images."""
    from kdrun.models.weights import say_once

    if options.checkpoint is None:
        return
    role = role_of(options)
    file = weights_file(options.checkpoint, f"{role}.checkpoint")
    learned = recorded_data(file.parent)
    if learned is not None and learned[0] != here:
        say_once(f"{role}.checkpoint={file} was trained on other classes: {other_classes(learned[0], here)}")


def make_network(options: ModelOptions, data: Data, streams: Streams, numerics: Numerics, batch_size: int) -> Network:
    """Create a freshly initialised (or loaded) network on the device. It is initialised on the CPU, so that the
    device does not change it, and only from `streams`, so that the method does not either."""
    from kdrun.draws import seed_all
    from kdrun.training.network import Network

    seed_all(streams.start)
    tap = make_tap(options, data.splits.num_classes, data.splits.image_size, data.stats)
    tell_other_classes(options, data.splits.class_names)
    own_batch_size = ranks.now.part.most(batch_size, data.config.dataset.augment.stays_together)
    return Network(tap.to(numerics.device), numerics, own_batch_size)


def own_stats(options: ModelOptions, model: nn.Module) -> Stats | None:
    """Return the network's own mean and std: as set, or those of its pretrained weights if timm knows them."""
    if options.mean is not None and options.std is not None:
        return options.mean, options.std
    known = getattr(model, "pretrained_cfg", None)
    if options.pretrained != "false" and isinstance(known, dict) and known.get("mean"):
        return list(known["mean"]), list(known["std"])
    if options.pretrained != "false" and options.name.startswith("torchvision:"):
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return None


def data_spec(data: Data, train: TrainLoader) -> DataSpec:
    """Return the properties of the training images that a method may use."""
    from kdrun.structures import DataSpec

    return DataSpec(train.num_samples, train.labels, data.splits.num_classes, data.splits.image_size)


def make_lane(
    *,
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: OptimizerOptions,
    epochs: int,
    streams: Streams,
    spec: DataSpec,
    sync_norm: bool = False,
) -> Lane:
    """Measure shapes, let the method build its modules, and put everything that is trained into one lane. sync_norm: if
    several processes train it, batch norm uses the images of all. Raises ConfigError for a network that cannot be
    trained."""
    import torch

    from kdrun.draws import seed_all
    from kdrun.models.adapters import ProbeAdapter
    from kdrun.models.features import measure
    from kdrun.training.loop import Lane
    from kdrun.training.teacher import Peer

    for network in (student, teacher if method.trains_teacher else None):
        if network is not None and epochs and network.tap.traits.untrainable:
            raise ConfigError(network.tap.traits.untrainable)
    device = torch.device(student.numerics.device)
    taught = None if teacher is None else measure(teacher.tap, spec.num_classes)
    shapes = measure(student.tap, spec.num_classes)
    seed_all(streams.parts)
    method.build(shapes, taught, spec)
    method.to(device)
    student.tap.needs = method.student_needs
    if teacher is not None:
        teacher.tap.needs = teacher.tap.needs | method.teacher_needs
    peer = None
    if method.trains_teacher:
        assert teacher is not None
        method.peer, peer = teacher.tap, Peer(teacher)
    if sync_norm and ranks.now.size > 1:
        for trained in (student.tap, method):
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(trained)
    if method.deploys and optimizer.ema_decay is not None and isinstance(student.tap.adapter, ProbeAdapter):
        raise PairingError(
            f"optimizer.ema_decay={optimizer.ema_decay}: averaging what this method deploys needs a student from the "
            "zoo or timm; leave out ema_decay."
        )
    return Lane(student, method, optimizer, epochs, streams, device, peer=peer)
