"""A process's environment in which cuda-bindings find the emulated driver instead of a GPU's."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from nocopy.device.cuda_compile import load_nvrtc
from nocopy.errors import DeviceUnavailableError
from tests.device.cuda_emulation import build

ROOT = Path(__file__).parents[2]


def kept_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory ($XDG_CACHE_HOME) of this run of the tests: a kernel is compiled once for a chip."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"


@pytest.fixture(scope="session")
def emulated_driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment; skips where there is no NVRTC, or a real driver."""
    try:
        load_nvrtc()
    except DeviceUnavailableError as e:
        pytest.skip(str(e))
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is a real driver: what this asks of an emulated one, other tests ask of that")
    driver, cublaslt = build("libcuda.cpp", "libcuda.so.1"), build("libcublaslt.cpp", "libcublasLt.so.13")
    own = {
        "LD_LIBRARY_PATH": f"{driver.parent}:{cublaslt.parent}",
        "XDG_CACHE_HOME": str(kept_kernels(tmp_path_factory)),
        "NOCOPY_REQUIRE_DEVICES": "cuda",
    }
    return {**os.environ, **own}
