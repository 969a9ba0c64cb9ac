"""The calls that the CUDA device makes of the driver, without a GPU: emulated_cuda/libcuda.cpp answers, and
libcublaslt.cpp those of cuBLASLt.

cuda-bindings, NVRTC and the ctypes calls are the real ones, in a process of their own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.device.emulated_process import ROOT, emulated_driver  # noqa: F401


@pytest.mark.parametrize(
    ("kernels", "tests"),
    [
        ("run", ["test_cuda_gpu.py"]),
        ("run", ["test_protocol.py", "-k", "[cuda and not deadline"]),
        ("run", ["test_conformance_products.py", "-k", "[cuda"]),
        ("run", ["test_conformance_language.py", "-k", "[cuda"]),
        ("run", ["../interfaces/test_cuda_views.py"]),
        ("dry", ["../session/test_cuda_loss.py"]),
        ("run", ["test_cuda_prefill.py", "-k", "library and (error_bound or layers or sum or nobody)"]),
        ("run", ["test_cuda_prefill.py", "-k", "library and heads_between"]),
    ],
    ids=lambda each: each if isinstance(each, str) else each[0],
)
def test_the_emulated_driver_passes_the_same_tests_as_a_gpu(
    emulated_driver: dict[str, str],  # noqa: F811 (a fixture)
    kernels: str,
    tests: list[str],
) -> None:
    file, *choice = tests
    command = [sys.executable, "-m", "pytest", f"tests/device/{file}", *choice, "-q"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {**emulated_driver, "NOCOPY_EMULATION": kernels}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
