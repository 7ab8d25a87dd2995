"""The Triton kernel's arithmetic, in Triton's interpreter: a GPU is not needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

PROGRAM = """
import torch
import torch.nn.functional as F
from harness.losses.fused import sigmoid_strip

for rows, columns in ((3, 5), (67, 129)):  # under a block, and over two blocks with a rest
    cosines = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for scale, bias in ((1.0, 0.0), (10.0, -10.0), (100.0, -30.0)):
        z = cosines.double() * scale + bias
        weights, sums = sigmoid_strip(cosines, torch.tensor(scale), torch.tensor(bias), torch.float32)
        torch.testing.assert_close(weights.double(), z.sigmoid(), rtol=2e-5, atol=1e-12)
        expected = torch.stack([F.softplus(z, threshold=500).sum(), z.sigmoid().sum()])
        torch.testing.assert_close(sums, expected, rtol=2e-6, atol=1e-12)
"""


def test_the_kernel_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
