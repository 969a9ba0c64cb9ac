"""Logits agree with transformers in f32: prefill, 32 decode steps, every chunk boundary."""

from __future__ import annotations

import numpy as np
import pytest

from nocopy.device.discovery import open_device
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.load import open_model
from nocopy.session.engine import Engine
from nocopy.session.session import Session
from tests.models import random_models

PROMPT, STEPS, CHUNK = 41, 32, 16


@pytest.fixture(params=["reference", "cpu"])
def device(request):
    opened = open_device(request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", random_models.DECODERS)
def test_logits_agree_with_transformers(name, device, tmp_path):
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
