"""Examination of a network, and its comparison with its teacher, in one pass over a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdrun.errors import RunError
from kdrun.evaluation.calibration import Calibration, CalibrationMeter
from kdrun.evaluation.cka import CKAMeter
from kdrun.evaluation.classification import Classification, ConfusionMeter
from kdrun.evaluation.fidelity import FidelityMeter
from kdrun.models.features import measure, pair_maps
from kdrun.structures import Outputs, filled
from kdrun.training.cost import count_flops
from kdrun.training.loop import EvalLoader
from kdrun.training.meters import EvalMeter
from kdrun.training.network import Network

TIMED_SECONDS = 0.5  # minimum time of forward passes, after an uncounted warm-up
STAGES = frozenset({"maps", "pooled"})


@dataclass(frozen=True)
class Similarity:
    """CKA values by (student stage, teacher stage), with stages named as in `kdrun taps`. pairs: (student stage,
    teacher stage) that feature methods match, and the pooled vectors."""

    student: list[str]
    teacher: list[str]
    values: list[list[float | None]]
    pairs: list[tuple[str, str]]

    def of_pairs(self) -> list[tuple[str, str, float | None]]:
        """Return the pairs with their values, shallow to deep."""
        return [(a, b, self.values[self.student.index(a)][self.teacher.index(b)]) for a, b in self.pairs]


@dataclass(frozen=True)
class Findings:
    """Results of an examination. scores: top1, top5, agreement, teacher_top1 (percent), nll and kl_teacher (nats),
    ece (percentage points), those on the teacher only if there is one; cost: params, flops per image,
    images_per_second of inference."""

    samples: int
    scores: dict[str, float]
    cost: dict[str, float]
    calibration: Calibration
    classification: Classification
    similarity: Similarity | None


class Subject:
    """Network as deployed: logits of `model` if its method deploys more than the student, and the student's stages."""

    def __init__(self, network: Network, model: nn.Module | None = None):
        self.network, self.tap = network, network.tap
        self.model = model
        network.tap.eval()
        if model is not None:
            model.eval()

    @property
    def deployed(self) -> nn.Module:
        return self.tap.model if self.model is None else self.model

    def logits(self, image: Tensor) -> Tensor:
        """Return logits [N, K] in float32."""
        with self.network.numerics.autocast():
            return self.deployed(self.tap.prepare(image)).float()

    def outputs(self, image: Tensor) -> Outputs:
        """Return logits together with the stages."""
        out = self.network(image)
        return out if self.model is None else out._replace(logits=self.logits(image))

    def stages(self, out: Outputs) -> dict[str, Tensor]:
        """Return name -> features [N, ...]: the stage maps without the stem, and the pooled vector."""
        maps = {f"f{place}": item for place, item in enumerate(out.maps or ()) if place >= self.tap.adapter.stems}
        return maps | ({} if out.pooled is None else {"pooled": out.pooled})


class Meters:
    """Running sums of one pass."""

    def __init__(self, num_classes: int, device: torch.device):
        self.device = device
        self.accuracy, self.calibration = EvalMeter(device), CalibrationMeter(device)
        self.confusion, self.fidelity = ConfusionMeter(num_classes, device), FidelityMeter(device)
        self.teacher = EvalMeter(device)
        self.stages: tuple[list[str], list[str]] = ([], [])
        self.cka: CKAMeter | None = None

    def update(self, logits: Tensor, label: Tensor) -> None:
        for meter in (self.accuracy, self.calibration, self.confusion):
            meter.update(logits, label)

    def compare(self, student: Outputs, teacher: Outputs, label: Tensor) -> None:
        self.teacher.update(teacher.logits, label)
        self.fidelity.update(student.logits, teacher.logits)

    def relate(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
        if not student or not teacher:  # a network without stages
            return
        if self.cka is None:
            self.stages = (list(student), list(teacher))
            self.cka = CKAMeter(len(student), len(teacher), self.device)
        self.cka.update(list(student.values()), list(teacher.values()))

    def scores(self) -> dict[str, float]:
        found = {**self.accuracy.result(), "ece": self.calibration.result().ece}
        if self.teacher.count:
            found |= {**self.fidelity.result(), "teacher_top1": self.teacher.result()["top1"]}
        return found


def examine(
    subject: Subject,
    teacher: Subject | None,
    loader: EvalLoader,
    num_classes: int,
    track: Callable[[Iterator[int]], Iterator[int]],
) -> Findings:
    """Measure `subject`, and compare it with `teacher` if there is one. Memory does not grow with the number of images.

    loader: must yield images in random order, as `CKAMeter` requires. track: wraps the steps for a progress bar.

    Raises RunError if a batch does not fit into memory.
    """
    device = subject.network.numerics.torch_device
    meters = Meters(num_classes, device)
    first: list[Tensor] = []

    def steps() -> Iterator[int]:
        for step, (image, label) in enumerate(loader.batches()):
            first.extend([] if first else [image])
            whole = filled(image, loader.batch_size)
            if teacher is None:
                meters.update(subject.logits(whole)[: len(label)], label)
            else:
                ours, theirs = (
                    one.outputs(whole).apply(lambda rows: rows[: len(label)])  # noqa: B023 (called at once)
                    for one in (subject, teacher)
                )
                meters.update(ours.logits, label)
                meters.compare(ours, theirs, label)
                meters.relate(subject.stages(ours), teacher.stages(theirs))
            yield step

    if teacher is not None:
        subject.tap.needs = teacher.tap.needs = STAGES
    try:
        with torch.inference_mode():
            for _ in track(steps()):
                pass
            speed = throughput(subject.logits, first[0], device) if first else 0.0
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunError("out of memory while evaluating: set a smaller eval_batch_size (kdrun eval --help).") from error
    similarity = None if teacher is None else similarity_of(meters, subject, teacher, num_classes)
    return Findings(
        meters.accuracy.count,
        meters.scores(),
        cost_of(subject, speed),
        meters.calibration.result(),
        meters.confusion.result(),
        similarity,
    )


def cost_of(subject: Subject, images_per_second: float) -> dict[str, float]:
    """Return parameters, FLOPs per image, and the measured speed."""
    params = sum(parameter.numel() for parameter in subject.deployed.parameters())
    flops = count_flops(subject.deployed, subject.tap.input_size or subject.tap.image_size)
    return {"params": params, "flops": flops, "images_per_second": images_per_second}


def similarity_of(meters: Meters, subject: Subject, teacher: Subject, num_classes: int) -> Similarity | None:
    if meters.cka is None:
        return None
    ours, theirs = meters.stages
    matched = pair_maps(measure(subject.tap, num_classes), measure(teacher.tap, num_classes))
    pairs = [(f"f{a}", f"f{b}") for a, b in matched]
    pairs += [("pooled", "pooled")] if "pooled" in ours and "pooled" in theirs else []
    return Similarity(ours, theirs, meters.cka.result(), pairs)


def throughput(forward: Callable[[Tensor], Tensor], image: Tensor, device: torch.device) -> float:
    """Return images per second of forward passes over `image`, a batch already on the device, from the median pass."""
    forward(image)
    marks = [moment(device)]
    while len(marks) < 4 or marks[-1] - marks[0] < TIMED_SECONDS:
        forward(image)
        marks.append(moment(device))
    seconds = sorted(after - before for before, after in pairwise(marks))[(len(marks) - 1) // 2]
    return len(image) / seconds


def moment(device: torch.device) -> float:
    """Return the time after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
