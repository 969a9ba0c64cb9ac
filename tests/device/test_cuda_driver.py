"""The calls that the CUDA device makes of the driver, without a GPU: emulated_cuda/libcuda.cpp answers, and
libcublaslt.cpp those of cuBLASLt.

cuda-bindings, NVRTC and the ctypes calls are the real ones, in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nocopy.device.cuda_compile import load_nvrtc
from nocopy.errors import DeviceUnavailableError
from tests.device.cuda_emulation import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A process's environment in which the emulated driver is found."""
    try:
        load_nvrtc()
    except DeviceUnavailableError as e:
        pytest.skip(str(e))
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is a real driver: test_cuda_gpu.py and the conformance suite use it")
    directory = tmp_path_factory.mktemp("libcuda")
    build(directory, "libcuda.cpp", "libcuda.so.1")
    build(directory, "libcublaslt.cpp", "libcublasLt.so.13")
    own = {
        "LD_LIBRARY_PATH": str(directory),
        "XDG_CACHE_HOME": str(directory / "cache"),
        "NOCOPY_REQUIRE_DEVICES": "cuda",
    }
    return {**os.environ, **own}


@pytest.mark.parametrize(
    "tests",
    [
        ["test_cuda_gpu.py"],
        ["test_protocol.py", "-k", "[cuda and not deadline"],
        ["test_conformance_products.py", "-k", "[cuda"],
        ["test_conformance_language.py", "-k", "[cuda"],
        ["test_cuda_prefill.py", "-k", "library and (error_bound or layers or sum)"],
    ],
    ids=lambda tests: tests[0],
)
def test_the_emulated_driver_passes_the_same_tests_as_a_gpu(
    environment: dict[str, str], tests: list[str]
) -> None:
    file, *choice = tests
    command = [
        sys.executable,
        "-m",
        "pytest",
        f"tests/device/{file}",
        *choice,
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-p", "no:xdist"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
