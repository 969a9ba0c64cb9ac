"""Logits agree with transformers in f32: prefill, 32 decode steps, every chunk boundary.

And devices agree with each other: the same tokens, greedily.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.load import open_model
from nocopy.session.engine import Engine
from nocopy.session.session import Session
from tests.device.conftest import open_or_skip
from tests.models import random_models

PROMPT, STEPS, CHUNK = 41, 32, 16
GPUS = ("vulkan", "cuda")
ON_GPUS = ("llama-3", "qwen3", "gemma2")
"""Grouped queries and a tied head; normalised queries and keys; caps, windows and more norms."""


@pytest.fixture(scope="module")
def devices() -> Iterator[dict[str, Device]]:
    """Devices by name, once they are open: a GPU's kernels are compiled once."""
    opened: dict[str, Device] = {}
    yield opened
    for device in opened.values():
        device.close()


def opened_device(devices: dict[str, Device], name: str) -> Device:
    if name not in devices:
        devices[name] = open_or_skip(name) if name in GPUS else open_device(name)
    return devices[name]


@pytest.fixture(params=["reference", "cpu", *GPUS])
def device(request, devices):
    return opened_device(devices, request.param)


@pytest.fixture(params=["reference", "cpu"])
def host_device(request, devices):
    return opened_device(devices, request.param)


@pytest.mark.parametrize("name", [n for n in random_models.DECODERS if n not in ON_GPUS])
def test_logits_agree_with_transformers_on_the_host(name, host_device, tmp_path):
    compare_logits(name, host_device, tmp_path)


@pytest.mark.parametrize("name", ON_GPUS)
def test_logits_agree_with_transformers(name, device, tmp_path):
    compare_logits(name, device, tmp_path)


def compare_logits(name, device, tmp_path):
    oracle = random_models.make_decoder(name)
    random_models.save(oracle, tmp_path)
    tokens = np.random.default_rng(1).integers(0, random_models.VOCABULARY, PROMPT + STEPS).tolist()
    wanted = random_models.logits(oracle, tokens)
    with opened_session(tmp_path, device) as session:
        session.append(tokens[:PROMPT])
        assert relative_error(session.logits, wanted[PROMPT - 1]) <= 1e-4
        for at in range(PROMPT, PROMPT + STEPS):
            session.append([tokens[at]])
            assert relative_error(session.logits, wanted[at]) <= 1e-4


@pytest.mark.parametrize("first", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, PROMPT])
def test_chunks_do_not_show(first, device, tmp_path):
    oracle = random_models.make_decoder("llama-3")
    random_models.save(oracle, tmp_path)
    tokens = np.random.default_rng(2).integers(0, random_models.VOCABULARY, PROMPT + 1).tolist()
    wanted = random_models.logits(oracle, tokens)[-1]
    with opened_session(tmp_path, device) as session:
        session.append(tokens[:first], logits=False)
        session.append(tokens[first:])
        assert relative_error(session.logits, wanted) <= 1e-4


@cache
def greedy_on_the_reference(folder, kv):
    device = open_device("reference")
    tokens = greedy(folder, device, kv)
    device.close()
    return tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same small model with weights in f32 and in bf16."""
    made = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model = random_models.make_decoder("llama-3", num_hidden_layers=2)
        made[name] = random_models.save(model.to(dtype), tmp_path_factory.mktemp(name))
    return made


@pytest.mark.parametrize("name", ["cpu", *GPUS])
@pytest.mark.parametrize(("weights", "kv"), [("f32", DType.F32), ("bf16", DType.F32), ("bf16", DType.F16)])
def test_every_device_continues_with_the_same_64_tokens(name, weights, kv, devices, folders):
    found = greedy(folders[weights], opened_device(devices, name), kv)
    assert found == greedy_on_the_reference(folders[weights], kv)
    assert len(set(found)) > 8, "a model that repeats itself shows nothing"


def greedy(folder, device, kv):
    """64 tokens after a prompt of two chunks, the likeliest each time."""
    tokens = np.random.default_rng(3).integers(0, random_models.VOCABULARY, 2 * CHUNK - 3).tolist()
    with opened_session(folder, device, kv) as session:
        session.append(tokens)
        found = [int(session.logits.argmax())]
        while len(found) < 64:
            session.append(found[-1:])
            found.append(int(session.logits.argmax()))
    return found


def relative_error(got, wanted):
    return np.abs(got - wanted).max() / np.abs(wanted).max()


class opened_session:
    """A session with an f32 cache in a memory of its own, and all that it needs, closed in order."""

    def __init__(self, folder, device, kv=DType.F32, context=100):
        self.model = open_model(folder)
        self.engine = Engine(self.model, device, chunk=CHUNK)
        self.memory = LinearMemory(1 << 24)
        self.pages = device.share(self.memory.address, self.memory.size)
        self.session = Session(self.engine, self.memory, self.pages, context=context, kv=kv)

    def __enter__(self):
        return self.session

    def __exit__(self, *_):
        self.session.close()
        self.engine.close()
        self.pages.close()
        self.memory.close()
        self.model.close()
