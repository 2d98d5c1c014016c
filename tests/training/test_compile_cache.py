"""Compiled code that TorchInductor keeps on disk is used only on the kind of CPU that it was generated for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from kdrun.hardware import compiler_missing

STEP = """
import copy, torch
from kdrun.models.features import Tap
from kdrun.models.zoo import create_model
from kdrun.training.network import Network
from kdrun.training.precision import Numerics

torch.manual_seed(0)
tap = Tap(create_model("resnet8", num_classes=5), 16)
image = torch.randn(8, 3, 16, 16)
logits = []
for compile in (False, True):
    network = Network(copy.deepcopy(tap).eval(), Numerics("cpu", "fp32", compile, 1, False), 8)
    with torch.no_grad():
        logits.append(network(image).logits)
print(float((logits[0] - logits[1]).abs().max()))
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(compiler_missing("cpu")), reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs two widths of vectors")
def test_cached_code_of_another_vector_width_is_not_used(tmp_path):
    for capability in ("avx2", "avx512"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < 1e-4
