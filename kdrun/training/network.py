"""Networks as the engine calls them: under a run's numerics, compiled or not."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from kdrun.models.features import Tap
from kdrun.structures import Outputs
from kdrun.training.cpu_bf16 import choose_convolutions
from kdrun.training.precision import Numerics

# Networks share one code object, and each may have its own compiled version.
COMPILED_VERSIONS = 512

VECTOR_BITS = {"AVX2": 256, "AVX512": 512}


class Network:
    """Network under the run's numerics: image [N, 3, H, W] float32 -> Outputs in float32.

    Compiled only for the full batch size; a small last batch runs eagerly, to avoid a second compilation.
    """

    def __init__(self, tap: Tap, numerics: Numerics, batch_size: int):
        self.tap = tap.to(memory_format=torch.channels_last) if tap.traits.channels_last else tap
        self.batch_size = batch_size
        self.use(numerics)

    def use(self, numerics: Numerics) -> None:
        """Switch to other numerics, compiled or not. Compilation itself happens at the first full batch."""
        self.numerics = numerics
        self.compiled = None
        choose_attention(self.tap, numerics)
        choose_convolutions(self.tap, numerics)
        if numerics.compile:
            import torch._dynamo.config

            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime", on a CPU
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VERSIONS)
            name_vector_width()
            self.compiled = torch.compile(self.tap, dynamic=False)

    def __call__(self, image: Tensor) -> Outputs:
        if self.compiled is None or len(image) != self.batch_size or self.trains_alone(image):
            return self.eager(image).float()
        with self.numerics.autocast():
            return self.compiled(image).float()

    def eager(self, image: Tensor) -> Outputs:
        """Return the outputs uncompiled, each in the precision in which it was computed."""
        with self.numerics.autocast():
            return self.alone(image) if self.trains_alone(image) else self.tap(image)

    def trains_alone(self, image: Tensor) -> bool:
        return len(image) == 1 and self.tap.training

    def alone(self, image: Tensor) -> Outputs:
        """Return the outputs for a training batch of one. A map with only one position has no variance to normalise
        by, and PyTorch raises an error; batch norm then uses its running statistics."""
        try:
            return self.tap(image)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
        norms = [module for module in self.tap.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.eval()
        try:
            return self.tap(image)
        finally:
            for norm in norms:
                norm.train()


def name_vector_width() -> None:
    """Tell TorchInductor the width of the CPU's vectors, in bits, instead of leaving it to find out.

    Its cache identifies generated C++ by its settings and not by the CPU. Code for AVX2 that was found there and built
    for AVX512 (a cache shared between machines, or another ATEN_CPU_CAPABILITY) wrote beyond its buffers.
    """
    import torch._inductor.config

    width = VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    if width is not None:
        torch._inductor.config.cpp.simdlen = width


def choose_attention(model: nn.Module, numerics: Numerics) -> None:
    """Choose plain products and a softmax for timm's attention in bf16 on a CPU, the fused kernel everywhere else.

    PyTorch's fused attention for CPUs takes half of a small ViT's bf16 step, most of it backward: plain attention
    trained 1.3 (224 px) to 2.4 times (16 px) as many images per second, and fp32 the same number.
    """
    plain = numerics.precision == "bf16" and numerics.torch_device.type == "cpu"
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = not plain  # type: ignore[assignment]
