"""Convolutions in bf16 on a CPU have the values and gradients of PyTorch's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from kdrun.training import cpu_bf16
from kdrun.training.cpu_bf16 import Depthwise, Product, choose_convolutions
from kdrun.training.precision import Numerics

BF16 = Numerics("cpu", "bf16", False, 1, False)

DENSE = {
    "1×1": (lambda: nn.Conv2d(6, 10, 1), (3, 6, 2, 2)),
    "1×1 on a single position": (lambda: nn.Conv2d(6, 10, 1), (3, 6, 1, 1)),
    "3×3": (lambda: nn.Conv2d(16, 8, 3, padding=1), (3, 16, 4, 4)),
    "3×3 on a narrow map": (lambda: nn.Conv2d(16, 8, 3, padding=1, bias=False), (2, 16, 5, 1)),
}
DEPTHWISE = {
    "with a stride": (lambda: nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (3, 8, 9, 8)),
    "5×5": (lambda: nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), (3, 8, 6, 6)),
    "two kernels for each channel": (lambda: nn.Conv2d(8, 16, 7, padding=3, groups=8), (2, 8, 7, 7)),
    "not square": (lambda: nn.Conv2d(4, 4, (1, 5), stride=(1, 2), padding=(0, 2), groups=4), (2, 4, 3, 8)),
    "tiny": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8), (3, 8, 2, 2)),
}
OWN = {
    "a large map": (lambda: nn.Conv2d(4, 4, 3, padding=1), (2, 4, 6, 6)),
    "a stride": (lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1), (2, 4, 4, 4)),
    "no padding": (lambda: nn.Conv2d(4, 4, 3), (2, 4, 4, 4)),
    "padding by reflection": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (2, 4, 4, 4)),
    "padding=same": (lambda: nn.Conv2d(4, 4, 3, padding="same"), (2, 4, 4, 4)),
    "a dilation": (lambda: nn.Conv2d(4, 4, 3, padding=1, dilation=2), (2, 4, 4, 4)),
    "two groups": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), (2, 4, 4, 4)),
    "depthwise 3×3": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 4, 4)),
}


@pytest.fixture(autouse=True)
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as on a CPU with AMX; the results are the same on any."""
    monkeypatch.setattr(cpu_bf16, "cpu_kind", lambda: "AMX")


def trained(module: nn.Module, image: Tensor, bf16: bool) -> list[Tensor]:
    """Return the output, and the gradients of the image and of the parameters."""
    image = image.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = module(image)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *(t.grad for t in (image, *module.parameters()) if t.grad is not None)]


def layers(made: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return the layer as PyTorch computes it, the same with faster convolutions, and images for it."""
    own = nn.Sequential(made).to(memory_format=torch.channels_last)
    ours = copy.deepcopy(own)
    choose_convolutions(ours, BF16)
    return own, ours, torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", [*DENSE, *DEPTHWISE])
def test_values_and_gradients_are_as_near_to_float32_as_pytorchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = (DENSE | DEPTHWISE)[case]
    own, ours, image = layers(make(), shape)
    function = Product if case in DENSE else Depthwise
    used: list[str] = []
    apply = function.apply
    monkeypatch.setattr(function, "apply", lambda *inputs: used.append(case) or apply(*inputs))
    exact = trained(copy.deepcopy(own), image, False)
    for true, theirs, found in zip(exact, trained(own, image, True), trained(ours, image, True), strict=True):
        assert (found.dtype, found.stride()) == (theirs.dtype, theirs.stride())
        assert (found - true).norm() <= 1.5 * (theirs - true).norm() + 1e-6 * true.norm()
    assert used == [case]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(image), own(image), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("case", OWN)
def test_other_convolutions_are_pytorchs_own(case: str) -> None:
    make, shape = OWN[case]
    own, ours, image = layers(make(), shape)
    for theirs, found in zip(trained(own, image, True), trained(ours, image, True), strict=True):
        assert torch.equal(found, theirs)


def test_an_activation_may_change_the_output_in_place() -> None:
    own, ours, image = layers(nn.Sequential(nn.Conv2d(6, 10, 1), nn.ReLU(inplace=True)), (3, 6, 1, 1))
    for theirs, found in zip(trained(own, image, True), trained(ours, image, True), strict=True):
        torch.testing.assert_close(found, theirs, rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, on its first jvp
@pytest.mark.parametrize("case", [*DENSE, *DEPTHWISE])
def test_torch_func_differentiates_and_maps_them(case: str) -> None:
    make, shape = (DENSE | DEPTHWISE)[case]
    _, ours, image = layers(make(), shape)

    def loss(one: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ours(one[None]).float().square().sum()

    each = torch.func.vmap(torch.func.grad(loss))(image)
    assert torch.isfinite(torch.func.jvp(loss, (image[0],), (each[0],))[1])
    torch.testing.assert_close(each[1], torch.func.grad(loss)(image[1]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "numerics", [Numerics("cpu", "fp32", False, 1, False), Numerics("cpu", "bf16", True, 1, False)]
)
def test_float32_and_compiled_networks_have_pytorchs_own(numerics: Numerics) -> None:
    network = nn.Sequential(nn.Conv2d(6, 10, 1), nn.Conv2d(10, 10, 3, stride=2, groups=10))
    choose_convolutions(network, BF16)
    assert all("_conv_forward" in module.__dict__ for module in network)
    choose_convolutions(network, numerics)
    assert not any("_conv_forward" in module.__dict__ for module in network)


def test_without_amx_only_depthwise_convolutions_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bf16, "cpu_kind", lambda: "AVX512_BF16")
    network = nn.Sequential(nn.Conv2d(6, 10, 1), nn.Conv2d(10, 10, 3, stride=2, groups=10))
    choose_convolutions(network, BF16)
    assert ["_conv_forward" in module.__dict__ for module in network] == [False, True]


def test_networks_can_be_copied_and_pickled() -> None:
    _, ours, image = layers(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), (3, 8, 9, 8))
    expected = trained(ours, image, True)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        other.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(trained(other, image, True), expected, strict=True))
