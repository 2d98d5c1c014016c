"""The measurements of evaluation, against independent implementations and by properties that must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from kdrun.errors import RunError
from kdrun.evaluation.calibration import CalibrationMeter
from kdrun.evaluation.cka import MINIBATCH, CKAMeter
from kdrun.evaluation.classification import ConfusionMeter
from kdrun.evaluation.examine import Subject, examine, throughput
from kdrun.evaluation.fidelity import FidelityMeter
from kdrun.models.features import Tap
from kdrun.training.meters import EvalMeter
from kdrun.training.method_trial import TinyCNN
from kdrun.training.network import Network
from kdrun.training.precision import Numerics

CPU = torch.device("cpu")
PLAIN = Numerics("cpu", "fp32", False, 1, False)


def predictions(seed: int = 0, count: int = 500, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, labels) of a predictor that is right more often than not, with one class that never occurs."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes - 1, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), label] += 2
    return logits, label


def in_batches(meter, *tensors: torch.Tensor, size: int = 64):
    for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        meter.update(*parts)
    return meter.result()


# calibration


def test_nll_is_log_loss():
    logits, label = predictions()
    found = in_batches(EvalMeter(CPU), logits, label)
    expected = log_loss(label.numpy(), softmax(logits.double().numpy(), axis=1), labels=range(7))
    assert found["nll"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bins", [15, 10])
def test_calibration_error_by_its_definition(bins):
    logits, label = predictions()
    found = in_batches(CalibrationMeter(CPU, bins), logits, label)
    probability = softmax(logits.double().numpy(), axis=1)
    confidence, right = probability.max(1), probability.argmax(1) == label.numpy()
    expected = 0.0
    for place in range(bins):
        inside = (confidence > place / bins) & (confidence <= (place + 1) / bins)
        assert found.count[place] == inside.sum()
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            assert found.accuracy[place] == pytest.approx(100 * right[inside].mean())
            assert found.confidence[place] == pytest.approx(100 * confidence[inside].mean())
    assert found.ece == pytest.approx(100 * expected, abs=1e-5)
    assert found.mean_accuracy == pytest.approx(100 * right.mean())
    assert found.mean_confidence == pytest.approx(100 * confidence.mean())


def test_calibration_error_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits, label = predictions(3)
    expected = classification.multiclass_calibration_error(logits.double(), label, num_classes=7, n_bins=15, norm="l1")
    assert in_batches(CalibrationMeter(CPU), logits, label).ece == pytest.approx(100 * expected.item(), abs=1e-5)


def test_perfect_calibration_and_its_opposites():
    """Three of four right at 75 % is calibrated; always right at 75 % is 25 points off; certain and wrong is 100."""
    logits = torch.tensor([[0.75, 0.25]]).log().repeat(8, 1)
    calibrated = torch.tensor([0, 0, 0, 1] * 2)
    assert in_batches(CalibrationMeter(CPU), logits, calibrated).ece == pytest.approx(0, abs=1e-5)
    assert in_batches(CalibrationMeter(CPU), logits, torch.zeros(8, dtype=torch.long)).ece == pytest.approx(
        25, abs=1e-5
    )
    wrong = in_batches(CalibrationMeter(CPU), torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
    assert wrong.ece == pytest.approx(100)
    assert wrong.count == [0] * 14 + [1]


def test_bins_are_closed_on_the_right():
    """A confidence of exactly a half belongs to the bin that ends there."""
    found = in_batches(CalibrationMeter(CPU, 10), torch.zeros(1, 2), torch.tensor([0]))
    assert found.count.index(1) == 4


# classes


def test_classification_by_scikit_learn():
    logits, label = predictions()
    found = in_batches(ConfusionMeter(7, CPU), logits, label)
    truth, predicted = label.numpy(), logits.argmax(1).numpy()
    assert found.confusion == confusion_matrix(truth, predicted, labels=range(7)).tolist()
    expected = precision_recall_fscore_support(truth, predicted, labels=range(7), zero_division=0)
    for values, column in zip((found.precision, found.recall, found.f1), expected, strict=False):
        assert values == pytest.approx(100 * column, abs=1e-5)
    assert found.support == expected[3].tolist()
    macro = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)[:3]
    assert list(found.macro.values()) == pytest.approx([100 * value for value in macro], abs=1e-5)


def test_classification_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits, label = predictions(5)
    found = in_batches(ConfusionMeter(7, CPU), logits, label)
    for name, function in (
        ("precision", classification.multiclass_precision),
        ("recall", classification.multiclass_recall),
        ("f1", classification.multiclass_f1_score),
    ):
        each = function(logits, label, num_classes=7, average="none")
        assert getattr(found, name) == pytest.approx((100 * each.double()).tolist(), abs=1e-4)  # it computes in float32
        mean = function(logits, label, num_classes=7, average="macro")
        assert found.macro[name] == pytest.approx(100 * mean.item(), abs=1e-4)


def test_classes_that_never_occur_do_not_weigh():
    logits = torch.tensor([[5.0, 0, 0, 0], [0, 5.0, 0, 0], [5.0, 0, 0, 0]])
    found = in_batches(ConfusionMeter(4, CPU), logits, torch.tensor([0, 1, 1]))
    assert found.recall == [100.0, 50.0, 0.0, 0.0]
    assert found.macro["recall"] == 75.0
    assert found.macro["precision"] == 75.0


# fidelity


def test_divergence_and_agreement_by_numpy():
    student, teacher = predictions(0)[0], predictions(1)[0]
    found = in_batches(FidelityMeter(CPU), student, teacher)
    log_q = log_softmax(student.double().numpy(), axis=1)
    log_p = log_softmax(teacher.double().numpy(), axis=1)
    assert found["kl_teacher"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(1).mean(), abs=1e-5)
    same = student.numpy().argmax(1) == teacher.numpy().argmax(1)
    assert found["agreement"] == pytest.approx(100 * same.mean())


def test_divergence_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional")
    student, teacher = predictions(0)[0].double(), predictions(1)[0].double()
    expected = functional.kl_divergence(teacher.softmax(1), student.softmax(1))
    assert in_batches(FidelityMeter(CPU), student, teacher)["kl_teacher"] == pytest.approx(expected.item(), abs=1e-5)


def test_divergence_has_a_direction_and_is_zero_for_the_teacher_itself():
    teacher, other = predictions(1)[0], predictions(2)[0]
    assert in_batches(FidelityMeter(CPU), teacher, teacher) == {"kl_teacher": 0.0, "agreement": 100.0}
    shifted = in_batches(FidelityMeter(CPU), teacher + 3, teacher)  # a softmax does not see a shift
    assert shifted["kl_teacher"] == pytest.approx(0, abs=1e-9)
    there = in_batches(FidelityMeter(CPU), other, teacher)["kl_teacher"]
    back = in_batches(FidelityMeter(CPU), teacher, 2 * other)["kl_teacher"]
    assert there > 0.1 and back > 0.1 and abs(there - back) > 0.01


# CKA


def hsic_by_its_definition(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC_1 of Song et al. 2012, equation 5, of linear kernels."""
    count = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(count)
    trace, sums = np.trace(k @ m), (one @ k @ one) * (one @ m @ one) / ((count - 1) * (count - 2))
    return (trace + sums - 2 / (count - 2) * (one @ k @ m @ one)) / (count * (count - 3))


def centred_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of Kornblith et al. 2019 from centred Gram matrices of all images at once."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def stages(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Three related representations of the same images: a map, a linear view of it with noise, a nonlinear one."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, 4, 3, 3, generator=generator) + 0.7
    linear = base.flatten(1) @ torch.randn(36, 10, generator=generator) + 2 * torch.randn(
        count, 10, generator=generator
    )
    return [base, linear, torch.relu(linear[:, :6])]


def cka(student: list[torch.Tensor], teacher: list[torch.Tensor], size: int = 10**6) -> np.ndarray:
    meter = CKAMeter(len(student), len(teacher), CPU)
    for start in range(0, len(student[0]), size):
        meter.update([x[start : start + size] for x in student], [x[start : start + size] for x in teacher])
    return np.array(meter.result(), dtype=float)


@pytest.mark.parametrize(("count", "size"), [(MINIBATCH, 10**6), (200, 64), (200, 200), (130, 128)])
def test_cka_by_the_definition_of_its_estimator(count, size):
    """Also where the loader's batches are larger than the estimator's, and where a rest is too small for it."""
    features = stages(count)
    found = cka(features, features, size)
    flat = [item.flatten(1).double().numpy() for item in features]
    bounds = [
        (start, min(start + MINIBATCH, first + size, count))
        for first in range(0, count, size)
        for start in range(first, min(first + size, count), MINIBATCH)
    ]
    bounds = [(a, b) for a, b in bounds if b - a >= 4]
    mean = np.array(
        [[sum((b - a) * hsic_by_its_definition(x[a:b], y[a:b]) for a, b in bounds) for y in flat] for x in flat]
    )
    expected = mean / np.sqrt(np.outer(np.diag(mean), np.diag(mean)))
    assert found == pytest.approx(expected, abs=1e-5)


def test_minibatches_estimate_the_whole_set():
    """Centred Gram matrices of 1,500 images at once against minibatches of 64."""
    features = stages(1500)
    flat = [item.flatten(1).double().numpy() for item in features]
    expected = np.array([[centred_cka(x, y) for y in flat] for x in flat])
    assert cka(features, features) == pytest.approx(expected, abs=0.02)


def test_cka_does_not_see_rotation_scale_and_shift():
    first, second, _ = stages(300)
    rotation, _ = torch.linalg.qr(torch.randn(36, 36, generator=torch.Generator().manual_seed(1)))
    moved = 30 * first.flatten(1) @ rotation + 5
    assert cka([moved], [first]) == pytest.approx(1, abs=1e-5)
    assert cka([moved], [second]) == pytest.approx(cka([first], [second]), abs=1e-5)
    assert pytest.approx(cka([first], [second])) == cka([second], [first]).T
    stretched = first.flatten(1) * torch.logspace(-1, 1, 36)  # invertible but not orthogonal: seen
    assert cka([stretched], [first]).item() < 0.9


def test_cka_of_unrelated_and_of_constant_features():
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(2000, 8, generator=generator) for _ in range(2)]
    assert abs(cka(noise[:1], noise[1:]).item()) < 0.02  # the biased estimator gives about 0.1 in minibatches
    assert np.isnan(cka([torch.full((50, 3), 0.1)], [noise[0][:50]])).all()
    assert np.isnan(cka([noise[0][:3]], [noise[0][:3]])).all()  # too few images


# one pass


class Loader:
    """Batches of noise that count how many were asked for."""

    def __init__(self, count: int = 150, size: int = 32):
        generator = torch.Generator().manual_seed(0)
        self.image, self.label = torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 5
        self.num_samples, self.batch_size = count, size

    def batches(self):
        yield from zip(self.image.split(self.batch_size), self.label.split(self.batch_size), strict=True)


def subject(seed: int, width: int = 1) -> Subject:
    torch.manual_seed(seed)
    return Subject(Network(Tap(TinyCNN(width=width), 16), PLAIN, 32))


def test_examination_finds_what_each_measure_finds_alone():
    student, teacher, loader = subject(0), subject(1, 2), Loader()
    found = examine(student, teacher, loader, 5, lambda steps: steps)
    with torch.no_grad():
        ours, theirs = student.network(loader.image), teacher.network(loader.image)
    expected = {
        **in_batches(EvalMeter(CPU), ours.logits, loader.label),
        "ece": in_batches(CalibrationMeter(CPU), ours.logits, loader.label).ece,
        **in_batches(FidelityMeter(CPU), ours.logits, theirs.logits),
        "teacher_top1": in_batches(EvalMeter(CPU), theirs.logits, loader.label)["top1"],
    }
    assert found.scores == pytest.approx(expected, abs=1e-5)
    assert found.classification.confusion == in_batches(ConfusionMeter(5, CPU), ours.logits, loader.label).confusion
    assert found.similarity.student == found.similarity.teacher == ["f1", "f2", "pooled"]  # the stem is left out
    assert found.similarity.values == pytest.approx(
        cka([*ours.maps[1:], ours.pooled], [*theirs.maps[1:], theirs.pooled], 32), abs=1e-5
    )
    assert [pair[:2] for pair in found.similarity.of_pairs()] == [("f1", "f1"), ("f2", "f2"), ("pooled", "pooled")]
    assert found.samples == 150
    assert found.cost["params"] == sum(parameter.numel() for parameter in student.tap.model.parameters())


def test_a_network_beside_itself():
    found = examine(subject(0), subject(0), Loader(), 5, lambda steps: steps)
    assert found.scores["kl_teacher"] == 0
    assert found.scores["agreement"] == 100
    assert np.diag(np.array(found.similarity.values)) == pytest.approx([1, 1, 1])


def test_examination_without_a_teacher_computes_no_stage():
    student = subject(0)
    found = examine(student, None, Loader(), 5, lambda steps: steps)
    assert student.tap.needs == frozenset()
    assert found.similarity is None
    assert set(found.scores) == {"top1", "top5", "nll", "ece"}


def test_out_of_memory_is_one_line():
    def full(image):
        raise torch.OutOfMemoryError("CUDA out of memory")

    student = subject(0)
    student.tap.model.forward = full
    with pytest.raises(RunError, match="set a smaller eval_batch_size"):
        examine(student, None, Loader(), 5, lambda steps: steps)


def test_throughput_counts_images(monkeypatch):
    """Passes of 10 ms over 20 images are 2,000 images/s, and a slow outlier does not count."""
    clock = iter([0.0, *(0.01 * step + (0.2 if step > 5 else 0.0) for step in range(1, 200))])
    monkeypatch.setattr("kdrun.evaluation.examine.moment", lambda device: next(clock))
    assert throughput(lambda image: image, torch.zeros(20, 3), CPU) == pytest.approx(2000)


def test_ties_are_broken_alike_by_every_measure():
    """bf16 logits are often equal: accuracy, calibration and the confusion matrix must mean the same prediction."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 3, (400, 10), generator=generator).float()
    label = torch.randint(0, 10, (400,), generator=generator)
    cpu = torch.device("cpu")
    meter, calibration, confusion = EvalMeter(cpu), CalibrationMeter(cpu), ConfusionMeter(10, cpu)
    for each in (meter, calibration, confusion):
        each.update(logits, label)
    counts = confusion.counts.reshape(10, 10)
    assert counts.diagonal().sum().item() / 4 == pytest.approx(meter.result()["top1"])
    assert calibration.result().mean_accuracy == pytest.approx(meter.result()["top1"])
