"""The loop's parts: schedules against PyTorch's, accumulation, averaging, lanes, meters, numerics."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdrun.config.augment import Augment
from kdrun.config.options import OptimizerOptions
from kdrun.data.resident import ResidentEval, ResidentTrain
from kdrun.data.splits import ArraySet
from kdrun.errors import ConfigError, RunError
from kdrun.hardware import compiler_missing
from kdrun.methods.kd import KD
from kdrun.methods.none import Independent
from kdrun.models.features import Tap
from kdrun.models.zoo import create_model
from kdrun.streams import Streams
from kdrun.structures import Batch
from kdrun.training.loop import Lane, evaluate, train_epoch
from kdrun.training.meters import EvalMeter, TrainMeter
from kdrun.training.method_trial import TinyCNN
from kdrun.training.network import Network
from kdrun.training.optimizer import learning_rate, make_optimizer
from kdrun.training.precision import Numerics, pinned, resolve, resolve_precision
from kdrun.training.teacher import Teacher
from tests.conftest import TINY

CPU = torch.device("cpu")
PLAIN = Numerics("cpu", "fp32", False, torch.get_num_threads(), False)


def recipe(**changes) -> OptimizerOptions:
    settings = {"name": "sgd", "epochs": 10, "batch_size": 8, "lr": 0.1, "weight_decay": 5e-4, "schedule": "constant"}
    return OptimizerOptions(**{**settings, **changes})


def rates(options: OptimizerOptions, epochs: int, steps: int = 1) -> list[float]:
    return [learning_rate(options, epochs, epoch, step, steps) for epoch in range(epochs) for step in range(steps)]


def torch_rates(scheduler_of, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = scheduler_of(optimizer)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("options", "scheduler"),
    [
        (
            recipe(schedule="multistep", milestones=[3, 6, 7]),
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 6, 7]),
        ),
        (recipe(schedule="step", step_epochs=4, gamma=0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5)),
        (recipe(schedule="cosine", min_lr=0.01), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, 0.01)),
        (recipe(), lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedules_are_pytorchs(options, scheduler):
    assert rates(options, 10) == pytest.approx(torch_rates(scheduler, 10))


def test_one_cycle_rises_and_falls():
    found = rates(recipe(schedule="one_cycle", peak_fraction=0.3), 10, steps=10)
    assert found[0] == pytest.approx(0.1 / 25)
    assert max(found) == pytest.approx(0.1)
    assert found.index(max(found)) == 30
    assert found[-1] < 0.001
    assert all(a <= b for a, b in zip(found[:30], found[1:31], strict=True))
    assert all(a >= b for a, b in zip(found[30:], found[31:], strict=False))


def test_warm_up():
    found = rates(recipe(schedule="cosine", warmup_epochs=2, warmup_lr=0.01), 10, steps=4)
    assert found[0] == 0.01
    assert found[4] == pytest.approx(0.055)
    assert found[8] == pytest.approx(0.1)
    assert found[24] == pytest.approx(0.05)


def test_published_schedule():
    options = recipe(schedule="multistep", milestones=[150, 180, 210], lr=0.05)
    found = rates(options, 240)
    assert [found[i] for i in (0, 149, 150, 179, 180, 209, 210, 239)] == pytest.approx(
        [0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5]
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_reaches_what_the_recipe_says(name):
    model = TinyCNN()
    everything = make_optimizer(recipe(name=name), [model], CPU)
    assert [len(group["params"]) for group in everything.param_groups] == [11]
    timm_like = make_optimizer(recipe(name=name, decay_norm_and_bias=False), [model], CPU)
    assert [(len(g["params"]), g["weight_decay"]) for g in timm_like.param_groups] == [(4, 5e-4), (7, 0.0)]


def test_shared_parameters_enter_once():
    model = TinyCNN()
    optimizer = make_optimizer(recipe(), [model, model], CPU)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 11


def arrays(count: int = 40, side: int = 16) -> ArraySet:
    generator = np.random.default_rng(0)
    return ArraySet(generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8), np.arange(count) % 5)


def make_lane(
    seed: int = 0, options: OptimizerOptions | None = None, model: nn.Module | None = None, method=None
) -> Lane:
    torch.manual_seed(seed)
    network = Network(Tap(model or TinyCNN(), 16), PLAIN, 8)
    return Lane(network, method or Independent(), options or recipe(), 10, Streams("student", seed), CPU)


def loader(batch_size: int = 8) -> ResidentTrain:
    return ResidentTrain(
        arrays(),
        batch_size=batch_size,
        seed=0,
        stats=([0.5] * 3, [0.25] * 3),
        augment=Augment(),
        teacher_view="same",
        device=CPU,
    )


class NormFree(nn.Module):
    """A network without batch statistics, in which half batches differ from a whole one.

    Its activation is smooth: where a ReLU's input is zero but for rounding, the order of a sum
    decides whether a gradient flows, and CPUs add in different orders.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, image):
        return self.fc(torch.tanh(self.conv(image)).mean(dim=(2, 3)))


def test_accumulated_halves_are_one_batch():
    whole = make_lane(model=NormFree())
    halves = make_lane(model=NormFree(), options=recipe(accumulate_steps=2))
    halves.model.load_state_dict(whole.model.state_dict())
    list(train_epoch([whole], None, loader(8), 0))
    list(train_epoch([halves], None, loader(4), 0))
    for a, b in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_moving_average_is_what_is_evaluated():
    lane = make_lane(options=recipe(ema_decay=0.5))
    seen = [copy.deepcopy(lane.model.state_dict())]
    for _ in train_epoch([lane], None, loader(), 0):
        seen.append(copy.deepcopy(lane.model.state_dict()))
    average = seen[1]["fc.weight"]  # the first update copies
    for state in seen[2:]:
        average = 0.5 * average + 0.5 * state["fc.weight"]
    assert torch.allclose(lane.evaluated.state_dict()["fc.weight"], average, atol=1e-6)
    assert not torch.allclose(lane.model.fc.weight, average)


def test_gradient_norm_is_clipped():
    lane = make_lane(options=recipe(clip_norm=1e-6, momentum=0.0, weight_decay=0.0))
    before = copy.deepcopy(lane.model.state_dict())
    list(train_epoch([lane], None, loader(), 0))
    moved = max((after - before[key]).abs().max().item() for key, after in lane.model.named_parameters())
    assert 0 < moved < 1e-6


def make_teacher() -> Teacher:
    torch.manual_seed(9)
    return Teacher(Network(Tap(TinyCNN(width=2), 16), PLAIN, 8))


def kd() -> KD:
    return KD(temperature=4.0, ce_weight=0.1, kd_weight=0.9)


def test_lanes_end_as_if_alone():
    """Two students on one teacher forward have the weights of two separate runs, bit for bit."""
    alone = []
    for method in (kd(), Independent()):
        lane = make_lane(method=method)
        for epoch in range(2):
            list(train_epoch([lane], make_teacher(), loader(), epoch))
        alone.append(lane.model.state_dict())
    lanes = [make_lane(method=kd()), make_lane(method=Independent())]
    teacher = make_teacher()
    for epoch in range(2):
        list(train_epoch(lanes, teacher, loader(), epoch))
    for lane, expected in zip(lanes, alone, strict=True):
        assert all(torch.equal(expected[key], value) for key, value in lane.model.state_dict().items())


def test_teacher_runs_once_per_batch():
    teacher = make_teacher()
    calls = []
    teacher.network.tap.register_forward_hook(lambda *arguments: calls.append(1))
    list(train_epoch([make_lane(method=kd()), make_lane(seed=1, method=kd())], teacher, loader(), 0))
    assert len(calls) == loader().steps_per_epoch


def test_a_failing_lane_leaves_the_others_alone():
    bad = make_lane(options=recipe(lr=1e30))
    good = make_lane()
    expected = make_lane()
    list(train_epoch([expected], None, loader(), 0))
    list(train_epoch([bad, good], None, loader(), 0))
    assert bad.failed is not None
    assert good.failed is None
    assert all(torch.equal(a, b) for a, b in zip(good.model.parameters(), expected.model.parameters(), strict=True))


def test_a_lane_out_of_memory_gives_its_memory_back():
    """Its error is kept, and with it the frames of the failed step, which held the activations."""
    held = []

    class Greedy(Independent):
        def losses(self, batch, student, teacher, progress):
            large = torch.zeros(1000)
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError(f"CUDA out of memory at {large.shape}")

    lane = make_lane(method=Greedy())
    list(train_epoch([lane, make_lane()], None, loader(), 0))
    assert lane.failed is not None and "out of memory at batch_size=8" in str(lane.failed)
    assert held[0]() is None


def test_a_batch_is_gone_after_its_step():
    """Without Python's cycle collector, which may leave dozens of them for later."""
    teacher, image = make_teacher(), torch.zeros(2, 3, 16, 16)
    gone = weakref.ref(image)
    gc.disable()
    try:
        teacher(image)
        del image
        assert gone() is None
    finally:
        gc.enable()


def test_out_of_memory_beside_a_step_is_one_line(kdrun, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr("kdrun.training.trainer.evaluate", full)
    code, _, err = kdrun("train", *TINY, "method=none")
    assert (code, err.count("\n")) == (1, 1)
    assert "out of memory" in err and "eval_batch_size" in err


def test_determinism_ends_with_its_run():
    try:
        Numerics("cuda:0", "fp32", False, 1, True).apply()
        assert torch.are_deterministic_algorithms_enabled()
        Numerics("cuda:0", "fp32", False, 1, False).apply()
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_teacher_stays_in_eval_mode():
    teacher = make_teacher()
    teacher.network.tap.train()
    with pytest.raises(AssertionError, match="training mode"):
        teacher(torch.zeros(2, 3, 16, 16))


def test_dropout_repeats():
    """Dropout draws from a generator that is keyed by the step, not from where the last epoch left it."""

    def weights(disturbance: int) -> torch.Tensor:
        torch.manual_seed(0)
        lane = make_lane(model=create_model("lightnn", num_classes=5, image_size=16))
        torch.rand(disturbance)
        list(train_epoch([lane], None, loader(), 0))
        return lane.model.classifier[3].weight.detach()

    assert torch.equal(weights(0), weights(7))


def test_evaluation_counts():
    model = TinyCNN().eval()
    held = ResidentEval(arrays(), batch_size=16, stats=([0.5] * 3, [0.25] * 3), device=CPU)
    found = evaluate(model, lambda image: image, held, PLAIN)
    with torch.no_grad():
        logits = torch.cat([model(image) for image, _ in held.batches()])
    label = torch.from_numpy(arrays().labels)
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == label).double().mean().item())
    assert found["top5"] == pytest.approx(100.0)  # five classes
    assert found["nll"] == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-5)


def test_top5():
    meter = EvalMeter(CPU)
    logits = torch.arange(20.0).repeat(4, 1)
    meter.update(logits, torch.tensor([19, 15, 14, 0]))
    assert meter.result()["top1"] == 25
    assert meter.result()["top5"] == 50


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_meter_names_term_and_step(value):
    meter = TrainMeter(CPU, 10)
    fine = {"ce": torch.tensor(1.0), "kd": torch.tensor(2.0)}
    meter.update(0, fine, torch.zeros(3, 4), torch.tensor([0, 1, 2]))
    with pytest.raises(RunError, match=rf"loss/kd is {value} at step 1"):
        meter.update(1, {**fine, "kd": torch.tensor(value)}, None, torch.tensor([0, 1, 2]))


def test_meter_averages_over_samples():
    meter = TrainMeter(CPU, 10)
    meter.update(0, {"ce": torch.tensor(1.0)}, torch.eye(4)[:3], torch.tensor([0, 1, 0]))
    meter.update(1, {"ce": torch.tensor(4.0)}, torch.eye(4)[:1], torch.tensor([0]))
    assert meter.result() == {"loss": 1.75, "loss/ce": 1.75, "top1": 75.0}
    state = meter.state()
    again = TrainMeter(CPU, 10)
    again.load(state)
    assert again.result() == meter.result()


def test_tf32_needs_a_gpu():
    with pytest.raises(ConfigError, match="precision=tf32 needs a GPU"):
        resolve_precision("tf32", "cpu")


def test_missing_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device=cuda:1: PyTorch sees no GPU here"):
        resolve("cuda:1", "auto", "auto", None, False)


def test_without_a_compiler_auto_stays_eager_and_says_so(monkeypatch):
    monkeypatch.setattr("kdrun.hardware.shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert compiler_missing("cpu")
    found = resolve("cpu", "fp32", "auto", None, False)
    assert not found.numerics.compile
    assert not found.undecided
    assert any("no C++ compiler" in note for note in found.notes)
    with pytest.raises(ConfigError, match="compile=true: no C"):
        resolve("cpu", "fp32", "true", None, False)
    with pytest.raises(ConfigError, match="was started compiled"):
        pinned({**PLAIN.as_dict(), "compile": True}, "cpu")


def test_bf16_network_returns_float32():
    network = Network(Tap(TinyCNN(), 16), Numerics("cpu", "bf16", False, 1, False), 8)
    out = network(torch.randn(4, 3, 16, 16))
    assert out.logits.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.tap.parameters())


def test_network_is_channels_last():
    network = Network(Tap(TinyCNN(), 16), PLAIN, 8)
    assert network.tap.model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_random_numbers_of_a_step_are_those_of_a_resume():
    drawn = []

    class Drawing(Independent):
        def losses(self, batch: Batch, student, teacher, progress):
            drawn.append((progress.draws.order(0, 9, CPU)[0], torch.rand(1)))
            return super().losses(batch, student, teacher, progress)

    for start in (0, 2):
        lane = make_lane(method=Drawing())
        lane.meter = TrainMeter(CPU, 5)
        list(train_epoch([lane], None, loader(), 0, [start]))
    assert drawn[2:5] == drawn[5:8]
    assert len(set(drawn[:5])) == 5


@pytest.mark.skipif(bool(compiler_missing("cpu")), reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled_steps_are_close_to_eager():
    losses = {}
    for compile in (False, True):
        numerics = Numerics("cpu", "fp32", compile, torch.get_num_threads(), False)
        torch.manual_seed(0)
        lane = Lane(
            Network(Tap(create_model("resnet8", num_classes=5), 16), numerics, 8),
            kd(),
            recipe(),
            10,
            Streams("student", 0),
            CPU,
        )
        torch.manual_seed(9)
        teacher = Teacher(Network(Tap(create_model("resnet14", num_classes=5), 16), numerics, 8))
        list(train_epoch([lane], teacher, loader(), 0))
        losses[compile] = lane.meter.result()["loss"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)


def test_batch_of_one_on_maps_of_one_position():
    """timm's resnet18 has 1x1 maps at 32 pixels; a last batch of one must not end the run."""
    torch.manual_seed(0)
    tap = Tap(create_model("timm:resnet18", num_classes=4, image_size=32), 32)
    network = Network(tap.train(), PLAIN, 8)
    before = copy.deepcopy(tap.model.layer4[1].bn2.running_mean)
    out = network(torch.randn(1, 3, 32, 32))
    out.logits.sum().backward()
    assert torch.isfinite(tap.model.conv1.weight.grad).all()
    assert torch.equal(tap.model.layer4[1].bn2.running_mean, before)
    assert all(module.training for module in tap.modules())


def test_attention_is_plain_where_the_fused_kernel_is_slow():
    """PyTorch's fused attention loses to plain products in bf16 on a CPU; both compute the same."""
    from kdrun.models.zoo import create_model

    numerics = Numerics("cpu", "bf16", False, 1, False)
    torch.manual_seed(0)
    network = Network(Tap(create_model("vit_cifar_tiny", num_classes=5, image_size=16), 16), numerics, 4)
    blocks = [module for module in network.tap.modules() if hasattr(module, "fused_attn")]
    assert len(blocks) == 6
    assert not any(block.fused_attn for block in blocks)
    image = torch.randn(4, 3, 16, 16)
    network.tap.eval()
    plain = network.tap(image).logits
    network.use(replace(numerics, precision="fp32"))
    assert all(block.fused_attn for block in blocks)
    assert torch.allclose(network.tap(image).logits, plain, atol=1e-5)


@pytest.mark.parametrize(("images", "batch_size"), [(72, 32), (64, 32), (5, 10**12)])
def test_throughput_counts_images_not_batches(images, batch_size):
    """A batch that is larger than what is left of the set trains on no more images than there are."""
    from types import SimpleNamespace

    from kdrun.training.trainer import Clock

    clock = Clock(SimpleNamespace(batch_size=batch_size, num_samples=images))  # type: ignore[arg-type]
    for step in range(-(-images // batch_size)):
        clock.tick(step)
    assert clock.images == images


def test_the_learning_rate_is_among_the_metrics_of_every_epoch(kdrun, outputs):
    """As of the last update of each epoch, for metrics.csv and for every logger, which gets the same."""
    words = ["optimizer.lr=0.1", "optimizer.schedule=multistep", "optimizer.milestones=[2]", "optimizer.gamma=0.1"]
    assert kdrun("train", *TINY, "epochs=3", "method=none", *words)[0] == 0
    (run,) = (outputs / "runs").glob("*/*/*/*")
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    assert [(row[0], float(row[3])) for row in rows if row[1:3] == ["train", "lr"]] == [
        ("1", 0.1),
        ("2", 0.1),
        ("3", pytest.approx(0.01)),
    ]
