"""Resolution of RUN or FILE arguments to trained networks and their teachers, and loading of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from kdrun.config.arguments import read_value
from kdrun.config.method_schema import MethodSource
from kdrun.config.options import ModelOptions, RunConfig, TeacherOptions, setting
from kdrun.errors import CheckpointError, ConfigError, KdrunError, print_note, suggest
from kdrun.evaluation.loading import load_network
from kdrun.evaluation.trusted import changed_code, permit, refusal
from kdrun.files import read_json, sha256_of
from kdrun.methods.factory import make_method
from kdrun.runs.checkpoints import weights_file
from kdrun.runs.code_record import method_of_run
from kdrun.runs.directory import RunDirectory, outputs_folder, short_path
from kdrun.runs.identity import CONTROL, slug
from kdrun.runs.recorded import check_unchanged, read_run
from kdrun.runs.trust import signed_code
from kdrun.streams import VERSION as STREAMS
from kdrun.streams import Streams
from kdrun.training.build import Data, data_spec, make_lane, make_loaders, make_network

if TYPE_CHECKING:
    from torch import nn

    from kdrun.training.network import Network
    from kdrun.training.precision import Numerics

PASSED = (
    *("device", "precision", "eval_batch_size", "threads", "output_root"),
    *("dataset.root", "dataset.workers", "dataset.on_error"),
)


@dataclass
class TeacherSource:
    """Source of a run's teacher. weights: None for the untrained control; stored: its directory in the store of
    teachers, whose checksum is then checked; sha256: of a checkpoint, as recorded by the run."""

    options: TeacherOptions
    weights: Path | None
    stored: RunDirectory | None = None
    sha256: str | None = None

    @property
    def streams(self) -> Streams:
        return Streams("teacher", self.options.seed)

    def network(self, data: Data, numerics: Numerics, batch_size: int) -> Network:
        """Load the network on its device. Raises CheckpointError if the weights are not those of the run."""
        from kdrun.training.control import measure_norms
        from kdrun.training.teacher_store import load_stored

        if self.weights is None:
            network = make_network(self.options, data, self.streams, numerics, batch_size)
            if self.options.pretrained == "false":
                measure_norms(network, data, self.options.seed)
            return network
        if self.sha256 is not None and self.weights.is_file() and sha256_of(self.weights) != self.sha256:
            raise CheckpointError(f"teacher.checkpoint={self.weights} is not the file that the run was trained with.")
        network = load_network(self.options, self.weights, data, self.streams, numerics, batch_size)
        if self.stored is not None and self.weights == self.stored.weights_path:
            load_stored(self.stored, network.tap.model, self.options.name)
        return network


@dataclass
class Target:
    """Network to measure. weights: None if config.student has them itself; deploys: True if its method deploys more
    than the student, which is rebuilt from the run; teacher: None if there is none, in which case `missing` gives
    the reason if there should be one."""

    label: str
    config: RunConfig
    options: ModelOptions
    weights: Path | None
    folder: Path | None  # where the results go
    name: str  # stem of their files
    deploys: bool = False
    teacher: TeacherSource | None = None
    missing: str = ""
    own: TeacherSource | None = None  # if the network itself is a run's teacher
    run: Path | None = None  # the directory that records its training

    @property
    def parts(self) -> list[str]:
        """Return the parts of the configuration from which its networks are built; a loss builds nothing."""
        main = "teacher" if self.options is self.config.teacher else "student"
        kept = ["teacher", "method"] if self.deploys else []
        return list(dict.fromkeys([main, *kept, *(["teacher"] if self.teacher else [])]))


@dataclass
class Which:
    """Selection of a run's network."""

    model: str = setting("student", choices=("student", "teacher"), help="the network of the run")
    weights: str = setting(
        "last", choices=("last", "best"), help="of the last epoch, or of the best on the validation or test images"
    )
    trust: bool = setting(False, help="allow a run from elsewhere to execute the user code that it names")


@dataclass
class WhichSplit(Which):
    """Selection of a run's network, and of images."""

    split: str = setting("test", choices=("test", "val", "train", "all"), help="the split to take images from")


def target_of_file(path: str, config: RunConfig, which: Which, split: str = "test") -> Target:
    """Return the target for a weights file under the configuration of the command line; its teacher is
    teacher.checkpoint."""
    if which.model == "teacher" or which.weights == "best":
        raise ConfigError(f"{path} is a file: model=teacher and weights=best apply only to runs.")
    teacher = None
    if config.teacher.checkpoint is not None:
        teacher = TeacherSource(config.teacher, weights_file(config.teacher.checkpoint, "teacher.checkpoint"))
    return Target(path, config, config.student, None, None, split, teacher=teacher)


def target_of_run(
    run: Path, which: Which, settings: dict[str, str], split: str = "test", finished: bool = True
) -> Target:
    """Return a run's student or teacher, or a stored teacher, under the run's own configuration.

    settings: override where it is measured, never what it is; finished: True if it must have its weights, which else
    may be None. Raises ConfigError for user code that is not trusted."""
    config, resolved = read_run(run)
    for name in ("evals", "exports"):
        if (run / name).is_symlink():
            raise ConfigError(f"{run / name} is a link, which kdrun will not write through: remove it.")
    method = method_of_run(run, config.method)
    teacher, missing = find_teacher(run, config, method)
    config.output_root = str(home_of(run) or outputs_folder(None))
    config.precision = str(resolved["precision"])
    for key, value in settings.items():
        set_value(config, key, value, [field.name for field in fields(which)])
    stored = (run / "teacher.safetensors").is_file()  # a directory of teachers/, which holds no other model
    best = "_best" if which.weights == "best" else ""
    name = f"{split}{best}"
    label = short_path(run)
    if which.model == "teacher" and not stored:
        none = missing or f"has no teacher (method={method.name})"
        return teacher_target(run, config, which, split, label, teacher, none)
    weights = run / f"{'teacher' if stored else 'student'}{best}.safetensors"
    if not weights.is_file() and finished:
        raise ConfigError(no_weights(run, weights.name))
    built = ["teacher"] if stored else ["student", "teacher", "method"] if method.deploys else ["student"]
    permit(run, config, [*built, *(["teacher"] if teacher and which.trust else [])], which.trust)
    if stored:
        return Target(label, config, config.teacher, weights, run / "evals", name, run=run)
    if teacher is not None and not which.trust and (line := refusal(run, config, ["teacher"])):
        teacher, missing = None, f"has a teacher that is only loaded with trust=true: {line}"
    deploys = method.deploys
    kept = weights if weights.is_file() else None
    return Target(label, config, config.student, kept, run / "evals", name, deploys, teacher, missing, run=run)


def no_weights(run: Path, name: str) -> str:
    """Return why a run cannot be measured."""
    if not (run / "result.json").is_file():
        return f"{run} has no {name} yet: it is not finished (kdrun list runs)."
    return f"{run} is finished but {name} is missing: repeat the command that trained it, to write it again."


def teacher_target(
    run: Path, config: RunConfig, which: Which, split: str, label: str, teacher: TeacherSource | None, missing: str
) -> Target:
    """Return the target for model=teacher of a run. Raises ConfigError if it has none."""
    if teacher is None:
        raise ConfigError(f"model=teacher: {label} {missing}.")
    permit(run, config, ["teacher"], which.trust)
    best = which.weights == "best"
    if best and teacher.stored is None:
        raise ConfigError(f"weights=best: the teacher of {label} is not a trained run; leave out weights=.")
    if best and teacher.stored is not None:
        teacher = replace(teacher, weights=teacher.stored.best_weights_path)
    name = f"{split}{'_best' if best else ''}_teacher"
    return Target(
        f"{label} teacher", config, teacher.options, teacher.weights, run / "evals", name, own=teacher, run=run
    )


def set_value(config: RunConfig, key: str, value: str, takes: Sequence[str]) -> None:
    """Apply an override setting, which may change where a run is evaluated (device, paths), never what it is. Raises
    ConfigError."""
    if key not in PASSED:
        raise ConfigError(f"{key}: for a finished run, set only {', '.join(PASSED)}.{suggest(key, [*takes, *PASSED])}")
    owner: Any = config.dataset if key.startswith("dataset.") else config
    name = key.rpartition(".")[2]
    rules = next(field.metadata for field in fields(owner) if field.name == name)
    setattr(owner, name, read_value(key, value, get_type_hints(type(owner))[name], rules))


def find_teacher(run: Path, config: RunConfig, method: MethodSource) -> tuple[TeacherSource | None, str]:
    """Return (teacher, why it is missing). Neither if the method has none."""
    if not method.needs_teacher:
        return None, ""
    if method.trains_teacher:
        return None, f"trained its teacher together with the student ({method.name}) and keeps only the student"
    options, learned = config.teacher, read_provenance(run)
    told = learned.get("teacher")
    about: dict[str, Any] = told if isinstance(told, dict) else {}
    if options.checkpoint is not None:
        try:
            weights = weights_file(options.checkpoint, "teacher.checkpoint")
        except CheckpointError:
            return None, f"was trained with teacher.checkpoint={options.checkpoint}, which no longer exists"
        return TeacherSource(options, weights, sha256=str(about.get("sha256"))), ""
    if options.random:
        if learned.get("streams") != STREAMS:
            return (
                None,
                "learned from an untrained teacher of an older kdrun, which drew other weights for its seed",
            )
        if options.pretrained == "false" and about.get("kind") != CONTROL:
            return (
                None,
                "learned from an untrained teacher of an older kdrun, whose batch norm had its initial statistics",
            )
        if options.pretrained != "false" and signed_code(run) is None:
            return None, "was trained with pretrained weights, which are downloaded only for runs of this account"
        return TeacherSource(options, None), ""
    for root in (home_of(run), Path(os.path.expanduser(config.output_root))):
        if root is None:
            continue
        stored = stored_teacher(root, config.dataset.name, options.name, about.get("sha256"))
        if stored is not None:
            return TeacherSource(options, stored.weights_path, stored), ""
    return None, f"was trained with a {options.name} that is no longer in the store of teachers"


def stored_teacher(root: Path, dataset: str, name: str, sha256: str | None) -> RunDirectory | None:
    """Return the stored teacher below `root` whose weights had this checksum when they were trained, regardless of
    its directory's name."""
    for folder in sorted((root / "teachers" / slug(dataset) / slug(name)).glob("*/")):
        stored = RunDirectory(folder, role="teacher")
        if sha256 and stored.finished and stored.weights_path.is_file() and stored.recorded_sha256() == sha256:
            return stored
    return None


def home_of(run: Path) -> Path | None:
    """Return the output root that contains `run`, even if it was moved."""
    parents = run.absolute().parents
    return parents[4] if len(parents) > 4 and parents[3].name == "runs" else None


def read_provenance(run: Path) -> dict[str, Any]:
    """Read a run's provenance.json; empty if it is missing, or damaged (with a note)."""
    place = run / "provenance.json"
    try:
        return read_json(place)
    except CheckpointError as error:
        if place.is_file():
            print_note(f"{error} The run's teacher and code are therefore unknown.")
        return {}


def deployed_network(target: Target, data: Data, student: Network) -> nn.Module:
    """Return `student` with everything that its method deploys, rebuilt and loaded from the run's weights."""
    from kdrun.models.weights import load_weights

    config, weights = target.config, target.weights
    assert weights is not None
    shape = replace(config.teacher, checkpoint=None, pretrained="false")  # the file contains its part of the weights
    streams = Streams("student", config.seed)
    teacher = make_network(shape, data, streams, student.numerics, config.batch_size)
    loaders = make_loaders(data, config.batch_size, streams, "same", student.numerics)
    lane = make_lane(
        student=student,
        teacher=teacher,
        method=make_method(config.method),
        optimizer=config.optimizer,
        epochs=config.epochs,
        streams=streams,
        spec=data_spec(data, loaders.train),
    )
    check_unchanged(weights)
    load_weights(lane.deployed, weights, config.student.name)
    return lane.deployed


def open_networks(target: Target, data: Data, numerics: Numerics) -> tuple[Network, nn.Module | None, Network | None]:
    """Return (network, the deployed network if it differs, teacher). A teacher that cannot be loaded is recorded in
    `missing`."""
    config = target.config
    if target.run is not None and (line := changed_code(target.run, config, target.parts)):
        print_note(line)
    common: tuple[Any, ...] = (data, numerics, config.batch_size)
    streams = Streams("student", config.seed)
    if target.own is not None:
        return target.own.network(*common), None, None
    weights = target.weights
    if weights is None:
        network = make_network(target.options, data, streams, numerics, config.batch_size)
    else:
        network = load_network(
            target.options, None if target.deploys else weights, data, streams, numerics, config.batch_size
        )
    for line in network.tap.traits.notes if target.run is None else ():  # else already printed by its training
        print_note(line)
    deployed = deployed_network(target, data, network) if target.deploys else None
    teacher = None
    if target.teacher is not None:
        try:
            teacher = target.teacher.network(*common)
        except KdrunError as error:
            if target.weights is None:  # a file's teacher was given on this command line
                raise
            target.missing = f"has a teacher that cannot be loaded: {str(error).rstrip('.')}"
    return network, deployed, teacher
