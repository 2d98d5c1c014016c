"""Networks that were trained: the one that a word on a command line means, loaded with its weights, and its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from kdrun.config.arguments import read_value
from kdrun.config.method_schema import method_of
from kdrun.config.options import ModelOptions, TeacherOptions, setting
from kdrun.config.own_code import changed, digests, module_of, own_code
from kdrun.config.schema import RunConfig, read_config
from kdrun.data.overview import unreadable_in_words
from kdrun.display import Track, untracked
from kdrun.errors import CheckpointError, ConfigError, KdrunError, print_note, suggest
from kdrun.files import read_json, sha256_of
from kdrun.methods.factory import make_method
from kdrun.runs.code_record import recorded
from kdrun.runs.directory import RunDirectory, short_path
from kdrun.runs.identity import code_modules
from kdrun.runs.plan import Plan, images_only, make_plan, slug
from kdrun.streams import VERSION as STREAMS
from kdrun.streams import Streams
from kdrun.training.build import Data, data_spec, load_data, make_lane, make_loaders, make_network, make_tap, own_stats

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
    """A run's teacher. weights: None for the untrained control; stored: where it is in the store of teachers, whose
    checksum is then checked; sha256: of a checkpoint, as the run recorded it."""

    options: TeacherOptions
    weights: Path | None
    stored: RunDirectory | None = None
    sha256: str | None = None

    @property
    def streams(self) -> Streams:
        return Streams("teacher", self.options.seed)

    def network(self, data: Data, numerics: Numerics, batch_size: int) -> Network:
        """On the device, with its weights. Raises CheckpointError where they are not those of the run."""
        from kdrun.training.teacher_store import load_stored

        if self.weights is None:
            return make_network(self.options, data, self.streams, numerics, batch_size)
        if self.sha256 is not None and self.weights.is_file() and sha256_of(self.weights) != self.sha256:
            raise CheckpointError(f"teacher.checkpoint={self.weights} is not the file that the run learned from.")
        network = load_network(self.options, self.weights, data, self.streams, numerics, batch_size)
        if self.stored is not None and self.weights == self.stored.weights_path:
            load_stored(self.stored, network.tap.model, self.options.name)
        return network


@dataclass
class Target:
    """One network to measure. weights: None where config.student has them itself; deploys: its method keeps more than
    the student, rebuilt from the run; teacher: None where there is none, `missing` says why where there should be."""

    label: str
    config: RunConfig
    options: ModelOptions
    weights: Path | None
    folder: Path | None  # where the findings go
    name: str  # of their files
    deploys: bool = False
    teacher: TeacherSource | None = None
    missing: str = ""
    own: TeacherSource | None = None  # the network is a run's teacher itself
    run: Path | None = None  # the directory that says what it was trained with


@dataclass
class Which:
    """Which network of a run."""

    model: str = setting("student", choices=("student", "teacher"), help="which network of a run")
    weights: str = setting("last", choices=("last", "best"), help="of the last epoch, or of the best on the test set")


@dataclass
class WhichSplit(Which):
    """Which network of a run, and the images for it."""

    split: str = setting("test", choices=("test", "val", "train"), help="the images of which split")


def target_of_file(path: str, config: RunConfig, which: Which, split: str = "test") -> Target:
    """A file of weights under the configuration of the command line; its teacher is teacher.checkpoint."""
    if which.model == "teacher" or which.weights == "best":
        raise ConfigError(f"{path} is a file: model=teacher and weights=best are for runs.")
    teacher = None
    if config.teacher.checkpoint is not None:
        teacher = TeacherSource(config.teacher, Path(config.teacher.checkpoint).expanduser())
    return Target(path, config, config.student, None, None, split, teacher=teacher)


def target_of_run(run: Path, which: Which, settings: dict[str, str], split: str = "test") -> Target:
    """Return a run's student or teacher, or a stored teacher, under the run's own configuration. settings: where it is
    measured, not what."""
    config, resolved = read_config(run)
    config.precision = str(resolved["precision"])
    for key, value in settings.items():
        set_value(config, key, value, [field.name for field in fields(which)])
    stored = (run / "teacher.safetensors").is_file()  # a directory of teachers/: there is no other model in it
    best = "_best" if which.weights == "best" else ""
    name = f"{split}{best}"
    label = short_path(run)
    if which.model == "teacher" and not stored:
        return teacher_target(run, config, which, split, label)
    weights = run / f"{'teacher' if stored else 'student'}{best}.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{run} has no {weights.name} yet: it is not finished (kdrun list runs).")
    if stored:
        return Target(label, config, config.teacher, weights, run / "evals", name, run=run)
    teacher, missing = find_teacher(run, config)
    deploys = method_of(config.method).deploys
    return Target(label, config, config.student, weights, run / "evals", name, deploys, teacher, missing, run=run)


def teacher_target(run: Path, config: RunConfig, which: Which, split: str, label: str) -> Target:
    """model=teacher of a run. Raises ConfigError where it has none."""
    teacher, missing = find_teacher(run, config)
    if teacher is None:
        method = method_of(config.method).name
        raise ConfigError(f"model=teacher: {label} {missing or f'has no teacher (method={method})'}.")
    best = which.weights == "best"
    if best and teacher.stored is None:
        raise ConfigError(f"weights=best: the teacher of {label} is no trained run; leave weights= out.")
    if best and teacher.stored is not None:
        teacher = replace(teacher, weights=teacher.stored.best_weights_path)
    name = f"{split}{'_best' if best else ''}_teacher"
    return Target(
        f"{label} teacher", config, teacher.options, teacher.weights, run / "evals", name, own=teacher, run=run
    )


def code_now(target: Target) -> dict[str, str]:
    """name -> SHA-256 of the files of the user's own from which its networks are built now; a loss builds nothing."""
    config = target.config
    models = [target.options.name, *([config.teacher.name] if target.teacher or target.deploys else [])]
    modules = [found for model in models if (found := module_of(model))]
    return digests(own_code(modules + (code_modules(config)["method"] if target.deploys else [])))


def changed_code(target: Target) -> str:
    """A line that names those of them that have changed since its run; an empty string where none has."""
    if target.run is None or (before := recorded(target.run).files) is None:
        return ""
    now, run = code_now(target), short_path(target.run)
    names = changed(now, {name: before[name] for name in now if name in before})
    line = f"{', '.join(names)} changed since {run} was trained; its weights meet the code of now, not {run}/code."
    return line if names else ""


def set_value(config: RunConfig, key: str, value: str, takes: Sequence[str]) -> None:
    """Settings that may differ from the run's: where it is measured, not what."""
    if key not in PASSED:
        raise ConfigError(f"{key}: a finished run takes {', '.join(PASSED)}.{suggest(key, [*takes, *PASSED])}")
    owner: Any = config.dataset if key.startswith("dataset.") else config
    name = key.rpartition(".")[2]
    rules = next(field.metadata for field in fields(owner) if field.name == name)
    setattr(owner, name, read_value(key, value, get_type_hints(type(owner))[name], rules))


def find_teacher(run: Path, config: RunConfig) -> tuple[TeacherSource | None, str]:
    """(teacher, why it is missing). Neither where the method has none."""
    method = method_of(config.method)
    if not method.needs_teacher:
        return None, ""
    if method.trains_teacher:
        return None, f"trained its teacher along with the student ({method.name}) and keeps only the student"
    options, learned = config.teacher, read_provenance(run)
    about = learned.get("teacher") or {}
    if options.checkpoint is not None:
        weights = Path(options.checkpoint).expanduser()
        if not weights.is_file():
            return None, f"learned from teacher.checkpoint={weights}, which is not there any more"
        return TeacherSource(options, weights, sha256=about.get("sha256")), ""
    if options.random:
        if learned.get("streams") != STREAMS:
            return None, "learned from an untrained teacher of an older kdrun, which drew other weights for its seed"
        return TeacherSource(options, None), ""
    for root in (home_of(run), Path(config.output_root).expanduser()):
        if root is None:
            continue
        stored = stored_teacher(root, config.dataset.name, options.name, about.get("sha256"))
        if stored is not None:
            return TeacherSource(options, stored.weights_path, stored), ""
    return None, f"learned from a {options.name} that is not in the store of teachers any more"


def stored_teacher(root: Path, dataset: str, name: str, sha256: str | None) -> RunDirectory | None:
    """The stored teacher below `root` whose weights had this checksum when they were trained, whatever its directory is
    called."""
    for folder in sorted((root / "teachers" / slug(dataset) / slug(name)).glob("*/")):
        stored = RunDirectory(folder, role="teacher")
        if sha256 and stored.finished and stored.weights_path.is_file() and stored.recorded_sha256() == sha256:
            return stored
    return None


def home_of(run: Path) -> Path | None:
    """The output root that holds `run`, wherever it was moved to."""
    parents = run.absolute().parents
    return parents[4] if len(parents) > 4 and parents[3].name == "runs" else None


def read_provenance(run: Path) -> dict[str, Any]:
    """A run's provenance.json; empty where it is missing or damaged."""
    try:
        return read_json(run / "provenance.json")
    except CheckpointError:
        return {}


def load_network(
    options: ModelOptions, weights: Path | None, data: Data, streams: Streams, numerics: Numerics, batch_size: int
) -> Network:
    """`options` with trained `weights`, which take the place of pretrained ones; their mean and std stay."""
    bare = replace(options, pretrained="false", checkpoint=None if weights is None else str(weights))
    if options.pretrained != "false" and options.mean is None:
        untrained = make_tap(replace(bare, checkpoint=None), data.splits.num_classes, data.splits.image_size, None)
        stats = own_stats(options, untrained.model)
        if stats is not None:
            bare = replace(bare, mean=stats[0], std=stats[1])
    return make_network(bare, data, streams, numerics, batch_size)


def deployed_network(target: Target, data: Data, student: Network) -> nn.Module:
    """`student` with what its method keeps at inference, rebuilt and loaded from the run's weights."""
    from kdrun.models.weights import load_weights

    config, weights = target.config, target.weights
    assert weights is not None
    shape = replace(config.teacher, checkpoint=None, pretrained="false")  # its part of the weights is in the file
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
    load_weights(lane.deployed, weights, config.student.name)
    return lane.deployed


def open_data(config: RunConfig, track: Track = untracked) -> tuple[Plan, Data]:
    """Return the plan and the images of a run's data set; no teacher or file of weights is looked for."""
    plan = make_plan(images_only(config), [])
    return plan, load_data(plan, track)


def tell_unreadable(data: Data) -> None:
    """Say on stderr which images the figures leave out."""
    if data.splits.unreadable:
        print_note(unreadable_in_words(data.splits.unreadable))


def open_networks(target: Target, data: Data, numerics: Numerics) -> tuple[Network, nn.Module | None, Network | None]:
    """Return (network, what is deployed where that is more, teacher). A teacher that does not load becomes
    `missing`."""
    config = target.config
    if line := changed_code(target):
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
    deployed = deployed_network(target, data, network) if target.deploys else None
    teacher = None
    if target.teacher is not None:
        try:
            teacher = target.teacher.network(*common)
        except KdrunError as error:
            if target.weights is None:  # a file's teacher was named on this very command line
                raise
            target.missing = f"has a teacher that does not load: {str(error).rstrip('.')}"
    return network, deployed, teacher


def numerics_for(config: RunConfig, precision: str | None = None) -> Numerics:
    """Resolve the numerics for measuring a trained network: as configured, or in `precision`; never compiled."""
    from kdrun.training.precision import resolve

    asked = precision or config.precision
    return resolve(config.device, asked, "false", config.threads, config.deterministic).numerics
