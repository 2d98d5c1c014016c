"""Measurements of why distillation does or does not help in one run: its teacher on training images, the gradients
of its loss terms, and what its temperature leaves. `kdrun.evaluation.findings` draws conclusions from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdrun.display import Track
from kdrun.evaluation.loading import check_split, load_network, numerics_for, open_data
from kdrun.evaluation.measure import shuffled
from kdrun.methods.base import Method
from kdrun.methods.factory import make_method
from kdrun.streams import Streams
from kdrun.structures import DataSpec, Progress
from kdrun.training.build import Data, data_spec, make_eval_loader, make_lane, make_loaders, make_network
from kdrun.training.checkpoint import load_state
from kdrun.training.cost import count_flops
from kdrun.training.teacher import Teacher

if TYPE_CHECKING:
    from kdrun.evaluation.targets import Target
    from kdrun.training.loop import EvalLoader, Lane, TrainLoader
    from kdrun.training.network import Network
    from kdrun.training.precision import Numerics

START, END = "at the start", "at the end"
IMAGES, BATCHES = 2000, 4  # training images on which the teacher is evaluated; batches for the gradients
SOFTENED = ("temperature", "temperature_start")  # settings that divide the teacher's logits
OF_FEATURES = ("crd", "crd_inbatch")  # methods whose temperature divides similarities of features


@dataclass(frozen=True)
class TeacherFacts:
    """Measurements of a teacher in percent, on unaugmented training images except `test`. softened: entropy of its
    probabilities at the method's temperature, relative to the uniform distribution; None if nothing is softened."""

    name: str
    params: int
    flops: int
    test: float
    train: float
    confidence: float
    images: int
    temperature: float | None
    softened: float | None
    random: bool = False  # untrained, as a control requested by the run
    epochs: int | None = None  # of its training by its recipe; None if it was loaded or is untrained


@dataclass(frozen=True)
class Gradients:
    """Gradients at one point of training: term -> norm of its gradient with respect to the student, pair -> their
    cosine."""

    when: str
    norms: dict[str, float]
    cosines: dict[str, float]


@dataclass
class Diagnosis:
    """All measurements of a run. losses: term -> its mean in the first and the last epoch."""

    run: str
    method: str
    classes: int
    student: str
    student_params: int
    student_flops: int
    test: float | None  # None for an unfinished run
    train: float | None
    epochs: int = 0
    teacher: TeacherFacts | None = None
    gradients: list[Gradients] = field(default_factory=list)
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)
    independent: dict[int, float] = field(default_factory=dict)  # seed -> top-1 of the student alone
    siblings: dict[int, float] = field(default_factory=dict)  # seed -> top-1 with this run's settings
    independent_train: float | None = None  # training accuracy of the independent student at its last epoch
    notes: list[str] = field(default_factory=list)

    @property
    def chance(self) -> float:
        return 100 / self.classes


def diagnose(target: Target, track: Track) -> Diagnosis:
    """Measure a finished run's teacher and gradients. Raises KdrunError if its networks cannot be loaded."""
    config, run = target.config, target.run
    assert run is not None
    numerics = numerics_for(config, "fp32")
    numerics.apply()
    plan, data = open_data(config, track, run)
    check_split(plan.source, run)
    streams = Streams("student", config.seed)
    student = make_network(config.student, data, streams, numerics, config.batch_size)
    params, flops = cost_of(student)
    test = None
    if target.weights is not None:
        test = accuracy(trained(target, data, numerics), make_eval_loader(data, data.splits.test, numerics)).top1
    found = Diagnosis(
        str(run), "", data.splits.num_classes, config.student.name, params, flops, test, None, config.epochs
    )
    if target.teacher is None:
        found.notes.append(f"teacher not measured: the run {target.missing}")
        return found
    network = target.teacher.network(data, numerics, config.batch_size)
    method = make_method(config.method)
    found.teacher = teacher_facts(target, network, method, data, numerics)
    loader = make_loaders(data, config.batch_size, streams, config.teacher_view, numerics, views=method.views).train
    states = [(START, None), *([(END, run)] if target.weights or (run / "last.pt").is_file() else [])]
    for when, folder in states:
        lane = lane_of(target, folder, network, data, data_spec(data, loader), numerics)
        found.gradients.append(gradients(lane, network, loader, config.epochs, when))
    return found


def cost_of(network: Network) -> tuple[int, int]:
    side = network.tap.input_size or network.tap.image_size
    return sum(parameter.numel() for parameter in network.tap.model.parameters()), count_flops(network.tap.model, side)


def trained(target: Target, data: Data, numerics: Numerics) -> Network:
    config = target.config
    streams = Streams("student", config.seed)
    weights = None if target.deploys else target.weights
    return load_network(target.options, weights, data, streams, numerics, config.batch_size)


@dataclass(frozen=True)
class Answers:
    """Accuracy in percent, mean of the largest probability, and the logits [N, K]."""

    top1: float
    confidence: float
    logits: Tensor


def accuracy(network: Network, loader: EvalLoader) -> Answers:
    """Evaluate a network on a loader's images."""
    network.tap.eval()
    rows, right, count = [], 0, 0
    with torch.inference_mode():
        for image, label in loader.batches():
            logits = network.tap.model(network.tap.prepare(image)).float()
            rows.append(logits.cpu())
            right += int((logits.argmax(dim=1) == label).sum())
            count += len(label)
    logits = torch.cat(rows)
    confidence = 100 * float(logits.softmax(dim=1).amax(dim=1).mean())
    return Answers(100 * right / max(count, 1), confidence, logits)


def teacher_facts(target: Target, network: Network, method: Method, data: Data, numerics: Numerics) -> TeacherFacts:
    """Evaluate the teacher on the test images and on unaugmented training images."""
    params, flops = cost_of(network)
    train = shuffled(data.splits.train)
    if len(train) > IMAGES:
        train = train.take(torch.arange(IMAGES).numpy())
    seen = accuracy(network, make_eval_loader(data, train, numerics))
    test = accuracy(network, make_eval_loader(data, data.splits.test, numerics)).top1
    temperature = temperature_of(target.config.method, method)
    softened = None if temperature is None else entropy_share(seen.logits, temperature)
    teacher, measured = target.config.teacher, (test, seen.top1, seen.confidence, len(train))
    epochs = None if teacher.random or teacher.checkpoint else teacher.recipe.epochs
    return TeacherFacts(teacher.name, params, flops, *measured, temperature, softened, teacher.random, epochs)


def temperature_of(node: dict[str, Any], method: Method) -> float | None:
    """Return the temperature by which the method divides the teacher's logits; for a sum of methods the highest."""
    parts = [part for part in node.get("parts", []) if isinstance(part, dict)]
    if parts:
        found = [one for part in parts if (one := temperature_of(part, method)) is not None]
        return max(found, default=None)
    if node["_target_"].rpartition(".")[0].rpartition(".")[2] in OF_FEATURES:
        return None
    return next((float(node[key]) for key in SOFTENED if isinstance(node.get(key), int | float)), None)


def entropy_share(logits: Tensor, temperature: float) -> float:
    """Return the mean entropy of the softened probabilities relative to the uniform distribution: 1 if no ranking is
    left."""
    log_p = (logits / temperature).log_softmax(dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean()) / math.log(logits.shape[1])


def lane_of(
    target: Target, folder: Path | None, teacher: Network, data: Data, spec: DataSpec, numerics: Numerics
) -> Lane:
    """Return the run's lane in its initial state, or with the last saved student of `folder` and, if last.pt exists,
    the method's modules."""
    config, streams = target.config, Streams("student", target.config.seed)
    lane = make_lane(
        student=make_network(config.student, data, streams, numerics, config.batch_size),
        teacher=teacher,
        method=make_method(config.method),
        optimizer=replace(config.optimizer, ema_decay=None),
        epochs=config.epochs,
        streams=streams,
        spec=spec,
    )
    if folder is None:
        return lane
    state = folder / "last.pt"
    if state.is_file():
        known = load_state(state)
        lane.model.load_state_dict(known["model"])
        lane.method.load_state_dict(known["method"])
    elif not target.deploys:
        lane.model.load_state_dict(trained(target, data, numerics).tap.model.state_dict())
    return lane


def gradients(lane: Lane, network: Network, loader: TrainLoader, epochs: int, when: str) -> Gradients:
    """Return the norms and cosines of the terms' gradients, averaged over a few batches."""
    teacher, steps = Teacher(network), loader.steps_per_epoch
    parameters = [parameter for parameter in lane.model.parameters() if parameter.requires_grad]
    lane.student.tap.train()
    lane.method.train()
    epoch = 0 if when == START else epochs - 1
    sums: dict[str, Tensor] = {}
    for step, batch in enumerate(islice(loader.epoch(0), BATCHES)):
        terms = lane.method(batch, lane.forward, teacher.for_batch(batch), Progress(epoch, epochs, step, steps))
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + gradient_of(term, parameters)  # type: ignore[operator]
    norms = {name: float(vector.norm()) for name, vector in sums.items()}
    cosines = {
        f"{one}, {other}": float(torch.cosine_similarity(sums[one], sums[other], dim=0))
        for one, other in combinations(sums, 2)
        if norms[one] and norms[other]
    }
    return Gradients(when, norms, cosines)


def gradient_of(term: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Return a term's gradient as one vector, with zeros for parameters that it does not reach."""
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if part is None else part).flatten().double()
            for parameter, part in zip(parameters, found, strict=True)
        ]
    )
