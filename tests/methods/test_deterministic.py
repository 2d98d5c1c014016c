"""`deterministic=true` on CUDA without a GPU: no method asks for a gradient that PyTorch refuses there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdrun.config.groups import choices
from kdrun.errors import PairingError
from kdrun.methods import cosine, cskd, features, kd
from kdrun.training.method_trial import PAIRS, Subject
from tests.conftest import TINY
from tests.methods.cases import settings

# What torch.use_deterministic_algorithms lists as an error on CUDA, by the name of the operation; bilinear and linear
# interpolation are not in here, for torch.nn.functional.interpolate takes another way there.
REFUSED = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_bicubic2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "_ctc_loss_backward",
    "put",
    "put_",
    "histc",
    "kthvalue",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
}


class Refusing(TorchDispatchMode):
    """Raises for what CUDA refuses where determinism is asked for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, overload = function.overloadpacket.__name__, function._overloadname
        if (
            name in REFUSED
            or (name in ("median", "nanmedian") and overload.startswith("dim"))
            or (name == "bincount" and len(args) > 1 and args[1] is not None)
        ):
            raise AssertionError(f"{name} does not repeat on CUDA")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def repeating(monkeypatch):
    """Gradients as on CUDA with deterministic=true."""
    for module in (features, cosine, cskd):
        monkeypatch.setattr(module, "must_repeat", lambda x: True)


SAMPLE = {"reviewkd", "cskd", "vlfkd", "simkd", "capd", "at"}  # the ones that resize


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in choices("method")]
)
def test_no_gradient_of_a_method_is_refused(name, repeating):
    tried = 0
    for pair in PAIRS:
        try:
            with Refusing():
                Subject(settings(name)).trial(pair).steps(1)
        except PairingError:
            continue
        tried += 1
    assert tried


def test_what_is_refused_is_noticed():
    """So that the test above can fail: without another way two methods ask for what raises on CUDA."""
    found = []
    for name in ("reviewkd", "cskd"):
        with Refusing(), pytest.raises(AssertionError, match="does not repeat") as caught:
            Subject(settings(name)).trial("CNN to CNN" if name == "reviewkd" else "CNN to ViT").steps(1)
        found.append(str(caught.value).split()[0])
    assert found == ["_adaptive_avg_pool2d_backward", "nll_loss2d_forward"]


@pytest.mark.parametrize(("grid", "size"), [((8, 8), (4, 2)), ((7, 7), (4, 4)), ((14, 5), (3, 5)), ((9, 4), (7, 3))])
def test_averages_that_repeat_are_pytorchs(grid, size, repeating):
    x = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    found, expected = features.average_pool(x, size), F.adaptive_avg_pool2d(x, size)
    assert torch.allclose(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    assert torch.allclose(*gradients)


@pytest.mark.parametrize(("width", "to"), [(12, 6), (12, 5), (100, 64)])
def test_vectors_too(width, to, repeating):
    x = torch.randn(4, width, dtype=torch.float64)
    assert torch.allclose(cosine.narrow(x, to), F.adaptive_avg_pool1d(x[:, None], to)[:, 0])


@pytest.mark.parametrize("local", [1.0, 0.3])
def test_patches_too(local, monkeypatch):
    student, teacher = torch.randn(3, 16, 5), torch.randn(3, 5, 4, 4)
    found = []
    for forced in (True, False):
        monkeypatch.setattr(cskd, "must_repeat", lambda x, forced=forced: forced)
        found.append(cskd.cskd_loss(student, teacher, local=local, variant="hard", temperature=1.0))
    assert torch.allclose(*found)


def test_a_refusal_is_one_line_before_a_teacher_is_trained(kdrun, outputs, monkeypatch):
    refusal = "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set …"

    def refused(gradient):
        raise RuntimeError(refusal)

    def loss(student, *_):
        student.register_hook(refused)
        return student.sum()

    monkeypatch.setattr(kd, "kl_divergence", loss)
    code, _, err = kdrun("train", *TINY, "epochs=1", "deterministic=true")
    assert code == 2
    assert "needs adaptive_avg_pool2d_backward_cuda, which PyTorch cannot repeat" in err
    assert not list(outputs.glob("teachers/*/*/*/metrics.csv"))
    code, _, err = kdrun("train", *TINY, "epochs=1", "deterministic=true", "teacher.random=true")
    assert code == 1
    assert "needs adaptive_avg_pool2d_backward_cuda" in err
    assert "Traceback" not in err
