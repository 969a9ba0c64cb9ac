"""Tokens fed ahead of being asked for: nothing that a caller can see differs, except the time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device, Program
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.models.load import open_model
from nocopy.session import pace
from nocopy.session.engine import Engine
from nocopy.session.generate import generate
from nocopy.session.own import OwnSession
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401

PROMPT = [5, 9, 2, 7]


@pytest.fixture(params=["reference", "emulated GPU"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """One that shares the host's memory, and one that keeps the cache in memory of its own."""
    if request.param == "reference":
        opened: Device = open_device("reference")
    else:
        kernels: ctypes.CDLL = request.getfixturevalue("library")
        opened = emulated(EmulatedDriver(kernels, memory_bytes=1 << 27))
    yield opened
    opened.close()


@pytest.fixture
def engine(device: Device, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(pace, "PATIENCE", 1e6)
    with (
        closing(open_model(tiny_gguf)) as model,
        closing(Engine(model, device, chunk=16, ledger=Ledger())) as e,
    ):
        yield e


def opened(engine: Engine, context: int = 40, kv: DType = DType.F32) -> OwnSession:
    return OwnSession(engine, context=context, kv=kv)


def one_by_one(session: Session, count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(int(session.logits.argmax()))
        session.append(found[-1:])
    return found


def test_tokens_and_logits_are_those_of_one_at_a_time(engine: Engine) -> None:
    with (
        opened(engine) as one,
        opened(engine) as two,
    ):
        one.append(PROMPT)
        two.append(PROMPT)
        wanted = one_by_one(one, 14)
        found: list[int] = []
        for i in range(14):
            found.append(two.likeliest(13 - i))
            two.append(found[-1:])
        assert found == wanted == list(two.tokens[4:])
        assert np.array_equal(two.logits, one.logits)


def test_logits_in_the_middle_are_those_after_the_last_token(engine: Engine) -> None:
    with (
        opened(engine) as one,
        opened(engine) as two,
    ):
        for session in (one, two):
            session.append(PROMPT)
        for i in range(6):
            two.append([two.likeliest(20 - i)])
        one_by_one(one, 6)
        assert np.allclose(two.logits, one.logits, rtol=1e-5, atol=1e-5)
        assert two.likeliest() == int(one.logits.argmax())


def test_another_token_or_fewer_forget_what_was_fed_ahead(engine: Engine) -> None:
    with (
        opened(engine) as one,
        opened(engine) as two,
    ):
        for session in (one, two):
            session.append(PROMPT)
            if session is two:
                for i in range(3):
                    two.append([two.likeliest(9 - i)])
                two.truncate(len(PROMPT))
                two.append([two.likeliest(0)])
                two.truncate(len(PROMPT))
            session.append([11, 3])
        assert np.allclose(two.logits, one.logits, rtol=1e-5, atol=1e-5)
        assert one_by_one(two, 5) == one_by_one(one, 5)


def test_a_full_context_is_not_overrun(engine: Engine) -> None:
    with opened(engine, 9) as session:
        session.append(PROMPT)
        for _ in range(5):
            session.append([session.likeliest(100)])
        assert session.length == session.context
        session.likeliest(100)


def test_generating_greedily_gives_the_same_text_as_sampling_the_likeliest(engine: Engine) -> None:
    """A bias of nothing turns feeding ahead off."""
    found: list[list[int]] = []
    for sampling in (Sampling(temperature=0), Sampling(temperature=0, logit_bias={0: 0.0})):
        with opened(engine) as session:
            session.append(PROMPT)
            steps = generate(session, engine.model.tokenizer, Sampler(sampling))
            found.append([step.token for step in steps])
    assert found[0] == found[1]


def test_the_region_holds_the_cache_when_it_was_asked_to(engine: Engine) -> None:
    """And a session over the same bytes goes on from there."""
    ledger = engine.ledger
    assert ledger is not None
    with opened(engine, kv=DType.F16) as session:
        session.append(PROMPT)
        one_by_one(session, 3)
        used = session.length * session.region.cache.token_bytes
        view = session.memory.view(used, "u8", session.region.home).numpy()
        before = ledger.downloaded
        session.flush()
        assert view.any()
        near = session.region.near
        assert ledger.downloaded - before == (used if near else 0)
        kept = view.copy()
        wanted = one_by_one(session, 4)
        session.truncate(7)
        view[...] = 0
        session.append([1])  # where the region is the cache's only place, this sees a damaged one
        session.truncate(7)
        view[...] = kept
        session.reload()
        session.append([wanted[0]])
        assert one_by_one(session, 3) == wanted[1:]


def test_a_fork_continues_alike(engine: Engine) -> None:
    with (
        opened(engine, kv=DType.F16) as session,
        opened(engine, kv=DType.F16) as room,
    ):
        session.append(PROMPT)
        session.append([session.likeliest(8)])
        with closing(session.fork(room.memory, room.pages)) as other:
            assert one_by_one(other, 5) == one_by_one(session, 5)


def test_a_slow_compilation_does_not_end_feeding_ahead(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    compile_pass, play = engine.compile, engine.device.play

    def compiling(*given: Any) -> Program:
        nonlocal now
        now += 100
        return compile_pass(*given)

    def playing(program: Program, **given: Any) -> None:
        nonlocal now
        now += 1e-3
        play(program, **given)

    monkeypatch.setattr(pace, "PATIENCE", 0.02)
    monkeypatch.setattr(pace, "perf_counter", lambda: now)
    monkeypatch.setattr(engine, "compile", compiling)
    monkeypatch.setattr(engine.device, "play", playing)
    with opened(engine) as session:
        session.append(PROMPT)
        began = now
        for i in range(8):
            session.append([session.likeliest(20 - i)])
        behind = int(engine.device.info.follows)
        assert now - began == pytest.approx((2 + behind) * (100 + 1e-3))
