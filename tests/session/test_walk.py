"""Passes that a CUDA device plays in one kernel: sessions find in them what they find by launches."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nocopy.bench.llama import Mix, Shape, model_file
from nocopy.device import cuda_walk
from nocopy.device.cuda import CudaDevice
from nocopy.device.protocol import Device
from nocopy.memory.dtype import DType
from nocopy.models.ggml import GGMLType
from nocopy.models.load import open_model
from nocopy.session import pace
from nocopy.session.engine import Engine
from nocopy.session.own import OwnSession
from tests.device.conftest import open_or_skip
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401

SMALL = Shape("llama-small", 2, 256, 4, 2, 64, 512, 512, tied=True)
MIX = Mix("mixed", GGMLType.Q4_K, GGMLType.Q5_K)
KINDS = [*(GGMLType[name] for name in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K")), MIX]
"""Q6_K is not among them: its rows are of 2,048 elements or more."""
PROMPT = [5, 9, 2, 7, 300, 41]
COUNT = 12


@pytest.fixture(params=["emulated", "on_a_gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "emulated":
        kernels: ctypes.CDLL = request.getfixturevalue("library")
        driver = EmulatedDriver(kernels, memory_bytes=1 << 27)
        driver.walks = True
        opened: Device = emulated(driver)
    else:
        opened = open_or_skip("cuda")
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_one_kernel_finds_the_tokens_of_launches(
    device: Device, kind: GGMLType | Mix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(device, CudaDevice)
    path = model_file(kind, tmp_path, SMALL)
    walked = run(device, path)
    if not device.driver.walks:
        pytest.skip("chips before sm_90 play launches")
    assert any(kernel == "walk" for kernel, _ in device._functions)
    monkeypatch.setattr(cuda_walk, "FASTER", frozenset[DType]())
    launched = run(device, path)
    assert walked[0] == launched[0]
    assert np.abs(walked[1] - launched[1]).max() <= 2e-3 * np.abs(launched[1]).max()


def run(device: Device, path: Path) -> tuple[list[int], np.ndarray]:
    """Tokens after a prompt that is fed one by one, then fed ahead; and the logits after the last."""
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(open_model(path)) as model,
        closing(Engine(model, device)) as engine,
        OwnSession(engine, context=128, kv=DType.F16) as session,
    ):
        patch.setattr(pace, "PATIENCE", 1e6)
        for token in PROMPT:
            session.append([token])
        for i in range(COUNT):
            session.append([session.likeliest(COUNT - 1 - i)])
        return list(session.tokens), session.logits.copy()
