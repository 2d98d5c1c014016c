"""Steps that a CUDA graph can replay, and the message for a step that it cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdrun.config.compose import load
from kdrun.config.options import OptimizerOptions
from kdrun.draws import Draws, Numbers
from kdrun.errors import ConfigError
from kdrun.methods.kd import KD
from kdrun.runs.plan import make_plan
from kdrun.structures import Progress
from kdrun.training.average import Average
from kdrun.training.graphs import first_error, recorded
from kdrun.training.meters import TrainMeter
from kdrun.training.optimizer import load_optimizer, make_optimizer
from kdrun.training.precision import pinned, resolve
from tests.conftest import TINY
from tests.integration.test_runs import only_run
from tests.simulated_cuda import CUDA, Mixed, Placed, simulated_cuda

CPU = torch.device("cpu")


def at(epoch: int, step: int, numbers: Numbers | None = None) -> Progress:
    return Progress(epoch, 10, step, 5, Draws(3, epoch, step, numbers), numbers)


def ramp(progress: Progress) -> float:
    return progress.epoch / 7 + progress.step


def test_numbers_of_a_cpu_are_plain():
    numbers = Numbers(CPU)
    numbers.begin(at(3, 1, numbers))
    assert numbers.get(ramp) == 3 / 7 + 1
    assert at(3, 1).number(ramp) == 3 / 7 + 1


def test_numbers_of_a_gpu_stay_where_they_are():
    """Filled before the step that asks for them, and where their values are those of before not even that."""
    with simulated_cuda() as gpu:
        numbers = Numbers(CUDA)
        places = []
        for epoch in (2, 3):
            progress = at(epoch, 0, numbers)
            numbers.begin(progress)
            launches = gpu.launches
            values = [progress.number(ramp), progress.number(lambda at: at.epochs / 3, torch.float64)]
            key = progress.draws.key(1, each_step=False)
            assert gpu.launches == launches or epoch == 2
            places.append([x.data_ptr() for x in (*values, key)])
            assert values[0].item() == torch.tensor(epoch / 7).item()
            assert values[1].item() == 10 / 3
            index = torch.arange(4)
            drawn = progress.draws.uniform(1, index.to(CUDA), 3).cpu()
            assert torch.equal(drawn, Draws(3, epoch, 0).uniform(1, index, 3))
            order = progress.draws.order(2, 9, CUDA).cpu()
            assert torch.equal(order, Draws(3, epoch, 0).order(2, 9, CPU))
        assert places[0] == places[1]


def test_a_plain_number_is_refused_while_a_step_is_recorded():
    progress = recorded(at(3, 1))
    assert progress.epochs == 10 and not progress.first
    for read in (lambda: progress.epoch, lambda: progress.step, lambda: progress.draws.seed):
        with pytest.raises(RuntimeError, match=r"as a plain number; take it from progress\.number"):
            read()


def test_a_number_that_was_not_there_before_is_refused_while_a_step_is_recorded():
    with simulated_cuda():
        numbers = Numbers(CUDA)
        numbers.begin(at(0, 0, numbers))
        numbers.get(ramp)
        numbers.begin(at(1, 0, numbers))
        numbers.recorded = True
        assert numbers.get(ramp).item() == torch.tensor(1 / 7).item()
        with pytest.raises(RuntimeError, match="in a different order"):
            numbers.get(lambda progress: 5.0)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)


def test_an_average_is_pytorchs():
    """Of weights, statistics and counters; and goes on from PyTorch's own state."""
    network = Network()
    ours = Average(network, 0.75, CPU)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    for step in range(6):
        with torch.no_grad():
            for x in (*network.parameters(), network.norm.running_mean, network.norm.running_var):
                x.add_(torch.rand_like(x))
            network.norm.num_batches_tracked += 5
        ours.update(network)
        theirs.update_parameters(network)
        if step == 2:
            ours = Average(Network(), 0.75, CPU)
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    for name, value in other.items():
        assert torch.equal(mine[name], value) and mine[name].dtype == value.dtype, name


def recipe(name: str) -> OptimizerOptions:
    return OptimizerOptions(name=name, epochs=1, batch_size=4, lr=0.1, weight_decay=0.01, schedule="constant")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_moments_are_taken_over_and_settings_are_not(name):
    """A checkpoint of before, which knew of no capturable optimizer and held a plain rate."""
    network = nn.Linear(3, 2)
    before = make_optimizer(recipe(name), [network], CPU)
    network(torch.ones(4, 3)).sum().backward()
    before.step()
    state = copy.deepcopy(before.state_dict())
    for group in state["param_groups"]:
        group.pop("capturable", None)
    after = make_optimizer(recipe(name), [network], CPU)
    rate = torch.tensor(0.5)
    after.param_groups[0]["lr"] = rate
    load_optimizer(after, state)
    assert after.param_groups[0]["lr"] is rate
    assert after.param_groups[0].keys() == before.param_groups[0].keys()
    one, other = before.state_dict()["state"], after.state_dict()["state"]
    assert one and all(torch.equal(one[i][key], other[i][key]) for i in one for key in one[i])


def test_a_meter_begins_again_in_the_same_memory():
    terms, label = {"ce": torch.tensor(2.0)}, torch.zeros(3, dtype=torch.long)
    meter = TrainMeter(CPU, 2)
    meter.update(0, terms, torch.eye(3), label)
    places = meter.history.data_ptr(), meter.sums.data_ptr(), meter.correct.data_ptr()
    meter.restart()
    meter.update(0, terms, torch.eye(3), label)
    meter.update(1, terms, torch.eye(3), label)
    assert meter.result() == {"loss": 2.0, "loss/ce": 2.0, "top1": pytest.approx(100 / 3)}
    assert places == (meter.history.data_ptr(), meter.sums.data_ptr(), meter.correct.data_ptr())


def test_a_cpu_has_no_graphs(kdrun):
    code, _, err = kdrun("train", *TINY, "graphs=true", "device=cpu")
    assert (code, err) == (
        2,
        "error: graphs=true: CUDA graphs need a GPU, but this runs on cpu; choose graphs=auto or false.\n",
    )
    code, _, err = kdrun("train", *TINY, "graphs=maybe")
    assert code == 2 and err.startswith("error: graphs=maybe: choose auto or true or false")


def test_graphs_are_off_unless_asked_for():
    with simulated_cuda():
        found = {graphs: resolve("cuda", "fp32", "false", 1, False, graphs) for graphs in ("auto", "true", "false")}
    assert [found[graphs].numerics.graphs for graphs in found] == [False, True, False]
    old = found["auto"].numerics.as_dict()
    del old["graphs"]  # a run of before
    with simulated_cuda():
        assert pinned(old, "cuda") == found["auto"].numerics
        assert pinned(found["true"].numerics.as_dict(), "cuda").graphs
    with pytest.raises(ConfigError, match="CUDA graphs need a GPU"):
        resolve("cpu", "fp32", "false", 1, False, "true")


def test_only_graphs_that_were_asked_for_are_part_of_a_runs_identity():
    digests = [make_plan(load([*TINY, *words]), []).digest for words in ([], ["graphs=false"], ["graphs=true"])]
    assert digests[0] == digests[1] != digests[2]


USUAL = KD.losses


def of_plain_ramp(method, batch, student, teacher, progress):
    terms = USUAL(method, batch, student, teacher, progress)
    return {**terms, "kd": terms["kd"] * (1 + progress.epoch)}


def looking_at_its_loss(method, batch, student, teacher, progress):
    terms = USUAL(method, batch, student, teacher, progress)
    assert terms["kd"].item() >= 0
    return terms


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        (of_plain_ramp, "the method reads progress.epoch as a plain number; take it from progress.number"),
        (looking_at_its_loss, "operation not permitted when stream is capturing"),
    ],
)
def test_a_method_that_cannot_be_recorded_goes_on_without(kdrun, monkeypatch, tmp_path, losses, why):
    """Its numbers are those of a CPU."""
    monkeypatch.setattr(KD, "losses", losses)
    words = [*TINY, "dataset.fake_train=104", "epochs=2", "teacher.random=true"]
    with simulated_cuda() as gpu:
        code, out, err = kdrun("train", *words, "device=cuda", "graphs=true", f"output_root={tmp_path / 'gpu'}")
    assert (code, err, gpu.replays) == (0, "", 0)
    (line,) = [line for line in out.splitlines() if line.startswith("graphs=true: ")]
    assert why in line and line.endswith("the steps run kernel by kernel")
    assert kdrun("train", *words, "device=cpu", f"output_root={tmp_path / 'cpu'}")[0] == 0
    found = [load_file(only_run(tmp_path / place) / "student.safetensors") for place in ("gpu", "cpu")]
    assert all(torch.equal(found[0][name], weight) for name, weight in found[1].items())


def test_the_end_of_a_recording_does_not_hide_why_it_failed():
    """CUDA's end of a capture raises an error of its own after the method's."""
    ending, joining = (
        RuntimeError("CUDA error: operation failed due to a previous error during capture") for _ in "12"
    )
    ending.__context__ = joining
    joining.__context__ = RuntimeError("operation not permitted when stream is capturing")
    assert str(first_error(ending)).startswith("operation not permitted")
    plain = RuntimeError("the method reads progress.step as a plain number")
    plain.__context__ = KeyError("step")
    assert first_error(plain) is plain


def test_the_simulated_gpu_refuses_what_a_gpu_refuses():
    with simulated_cuda() as gpu:
        x = torch.ones(3, device="cuda")
        assert isinstance(x, Placed) and x.device == CUDA and x.is_cuda
        with pytest.raises(Mixed, match="on the same device"):
            x + torch.ones(3)
        assert isinstance(x + 1.0, Placed)
        before = gpu.syncs.total(), gpu.copies.total()
        assert float(x.sum()) == 3.0
        x[torch.tensor([0])]
        assert (gpu.syncs.total(), gpu.copies.total()) == (before[0] + 1, before[1] + 1)


def test_a_simulated_graph_freezes_numbers_and_addresses():
    """And runs nothing while it is recorded."""
    with simulated_cuda() as gpu:
        x, total = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
        factor, graph = 3.0, torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total += x * factor
            with pytest.raises(RuntimeError, match="when stream is capturing"):
                x.cpu()
        assert total.tolist() == [0, 0]
        factor = 5.0
        graph.replay()
        x.fill_(2)
        graph.replay()
        assert total.tolist() == [9, 9]
        x = torch.full((2,), 100.0, device="cuda")  # another place
        graph.replay()
        assert (total.tolist(), gpu.replays, factor) == ([15, 15], 3, 5.0)
