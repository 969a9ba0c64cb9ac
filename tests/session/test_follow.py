"""Plays of tokens ahead that follow each other without the host: nobody can tell, but by the time."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocopy.device.discovery import open_device
from nocopy.errors import DeviceLostError, UsageError
from nocopy.memory.dtype import DType
from nocopy.models.load import open_model
from nocopy.session import pace
from nocopy.session.engine import Ahead, Engine
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401
from tests.interfaces.model_guest import ModelGuest
from tests.session.test_ahead import PROMPT, one_by_one, opened

DRAWN = Sampling(temperature=0.8, top_k=40, seed=7)
HALF = pace.AHEAD // 2


@pytest.fixture(scope="module")
def engines(tiny_gguf: Path, library: ctypes.CDLL) -> Iterator[tuple[Engine, Engine]]:
    """One whose plays follow each other, and one that knows no such thing."""
    with pytest.MonkeyPatch.context() as patch, closing(open_model(tiny_gguf)) as model:
        patch.setattr(pace, "PATIENCE", 1e6)
        follows, plain = emulated(EmulatedDriver(library, memory_bytes=1 << 27)), open_device("reference")
        with closing(Engine(model, follows, chunk=32)) as one, closing(Engine(model, plain, chunk=32)) as two:
            yield one, two
        follows.close()
        plain.close()


@pytest.fixture
def engine(engines: tuple[Engine, Engine]) -> Engine:
    return engines[0]


def driver_of(engine: Engine) -> EmulatedDriver:
    device: Any = engine.device
    driver = device.driver
    assert isinstance(driver, EmulatedDriver)
    return driver


def feed(session: Session, count: int) -> None:
    """Append so many of the likeliest tokens, of which more are wanted."""
    for i in range(count):
        session.append([session.likeliest(40 - i)])


def test_two_halves_of_the_tokens_take_turns() -> None:
    one = Ahead(4, None, 4)
    two = one.follower(4)
    assert two is not None
    assert (one.first, one.last) == (0, 4)
    assert (two.first, two.last) == (4, 0)
    assert two.follower(4) == one
    assert Ahead(4, 0, 4).follower(2) == Ahead(2, 0, 4, half=1)
    assert one.follower(0) is None


def test_recent_tokens_are_brought_by_the_host_so_nothing_follows() -> None:
    assert Ahead(4, 16, 4).follower(4) is None


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), DRAWN], ids=["likeliest", "drawn"])
def test_tokens_are_those_of_one_at_a_time(engine: Engine, sampling: Sampling) -> None:
    count = 1 + 6 * HALF + 3
    with opened(engine, 60) as one, opened(engine, 60) as two:
        one.append(PROMPT)
        two.append(PROMPT)
        wanted = Sampler(sampling)
        for _ in range(count):
            one.append([wanted.sample(one.logits)])
        started = driver_of(engine).behind
        sampler = Sampler(sampling)
        for i in range(count):
            two.append([two.draw(sampler, count - i)])
        assert driver_of(engine).behind - started == 7  # behind the first of 4, 4, 4, 4, 4, 4, 2, 1
        assert not two.plays_on
        assert two.tokens == one.tokens
        assert np.allclose(two.logits, one.logits, rtol=1e-5, atol=1e-5)


def test_what_was_looked_at_in_the_middle_is_right(engine: Engine) -> None:
    with opened(engine, 60) as one, opened(engine, 60) as two:
        one.append(PROMPT)
        two.append(PROMPT)
        one_by_one(one, HALF + 1)
        feed(two, HALF + 1)
        assert two.plays_on
        assert np.allclose(two.logits, one.logits, rtol=1e-5, atol=1e-5)
        assert not two.plays_on


def test_a_fork_and_what_goes_on_are_alike(engine: Engine) -> None:
    with opened(engine, 60) as session, opened(engine, 60) as room:
        session.append(PROMPT)
        feed(session, HALF + 1)
        with closing(session.fork(room.memory, room.pages)) as other:
            assert other.tokens == session.tokens
            assert one_by_one(other, 5) == one_by_one(session, 5)


def test_a_session_becomes_another_while_it_plays_on(engine: Engine) -> None:
    with opened(engine, 60) as one, opened(engine, 60) as two:
        one.append(PROMPT)
        two.append(PROMPT[:2])
        feed(two, HALF + 1)
        two.become(one)
        assert not two.plays_on
        assert one_by_one(two, 5) == one_by_one(one, 5)


def test_two_sessions_take_turns_while_each_plays_on(engine: Engine) -> None:
    count = 3 * HALF
    with opened(engine, 60) as one, opened(engine, 60) as two, opened(engine, 60) as three:
        for session, prompt in ((one, PROMPT), (two, PROMPT[:2]), (three, PROMPT)):
            session.append(prompt)
        wanted = one_by_one(three, count)
        found: list[int] = []
        for i in range(count):
            found.append(one.likeliest(40 - i))
            one.append(found[-1:])
            two.append([two.likeliest(40 - i)])
        assert found == wanted


def test_closing_waits_for_what_plays_on(engine: Engine) -> None:
    session = opened(engine, 60)
    session.append(PROMPT)
    feed(session, HALF + 1)
    assert session.plays_on
    session.close()
    assert not driver_of(engine).running


def test_logits_that_are_no_numbers_are_noticed(engine: Engine) -> None:
    """Though those behind them have taken their place."""
    with opened(engine, 60, DType.F32) as session:
        session.append(PROMPT)
        session.append([session.likeliest(40)])
        assert session.near is not None
        nothing = np.full(session.region.cache.token_bytes // 4, np.nan, np.float32)
        session.memory.view(nothing.size, "f32", session.region.home).numpy()[:] = nothing
        session.near.reload(0, nothing.nbytes)
        with pytest.raises(UsageError, match="not numbers"):
            feed(session, 2 * HALF)


def test_a_guest_that_goes_on_has_its_bytes_to_itself(engine: Engine) -> None:
    """A text that ends leaves nothing playing in the guest's memory."""
    with ModelGuest(engine.device, engine.model) as g, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "PATIENCE", 1e6)
        session = g.session(g.open())
        g.append(session, PROMPT)
        with opened(engine, 60) as other:
            other.append(PROMPT)
            wanted = one_by_one(other, 2 * HALF)
        end = wanted[HALF + 1]
        patch.setattr(engine.model.tokenizer, "end_ids", {end})
        started = driver_of(engine).behind
        assert g.generate(session, 40, temperature=0) == wanted[: wanted.index(end)]
        assert driver_of(engine).behind > started
        assert not driver_of(engine).running


@pytest.mark.parametrize("lost", [False, True], ids=["moved", "lost"])
def test_a_session_that_plays_on_goes_on_elsewhere(tiny_gguf: Path, library: ctypes.CDLL, lost: bool) -> None:
    """After a loss with what it had read, and what was fed ahead forgotten."""
    driver = EmulatedDriver(library, memory_bytes=1 << 27)
    with (
        closing(emulated(driver)) as gpu,
        LanguageModel(tiny_gguf, device=gpu, context=64, kv="f32") as model,
        LanguageModel(tiny_gguf, device="reference", context=64, kv="f32") as other,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(pace, "PATIENCE", 1e6)
        session, undisturbed = model.session(), other.session()
        session.append(PROMPT)
        feed(session, HALF + 2)
        assert session.plays_on
        if lost:
            driver.failing = True
            with pytest.raises(DeviceLostError):
                one_by_one(session, 1)
        tokens = session.tokens.tolist()
        if lost:
            model.move("reference")
        else:
            assert model.move("reference") == 0
        assert not session.plays_on
        undisturbed.append(tokens)
        assert session.tokens.tolist() == tokens
        assert np.allclose(session.logits, undisturbed.logits, atol=1e-4)
        assert one_by_one(session, 5) == one_by_one(undisturbed, 5)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("likeliest"), st.integers(1, 12), st.integers(0, 20)),
        st.tuples(st.just("draw"), st.integers(1, 12), st.integers(0, 20)),
        st.tuples(st.just("append"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("truncate"), st.integers(1, 40), st.just(0)),
        st.tuples(st.sampled_from(("logits", "flush", "move")), st.just(0), st.just(0)),
    ),
    max_size=10,
)


@settings(max_examples=25, deadline=None)
@given(actions)
def test_nobody_can_tell(engines: tuple[Engine, Engine], found: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "PATIENCE", 1e6)
        results = [played(engine, found) for engine in engines]
    assert results[0][0] == results[1][0]
    for one, two in zip(results[0][1], results[1][1], strict=True):
        assert np.allclose(one, two, rtol=1e-4, atol=1e-4)


def played(engine: Engine, found: list[tuple[str, int, int]]) -> tuple[list[int], list[np.ndarray]]:
    """The tokens that a session has after some actions, and the logits that were seen between them."""
    logits: list[np.ndarray] = []
    with OwnSession(engine, context=48, kv=DType.F32) as session:
        session.append(PROMPT)
        sampler = Sampler(DRAWN)
        for action, number, more in found:
            if action in ("likeliest", "draw"):
                for i in range(min(number, session.context - session.length)):
                    wanted = max(number - i, more)
                    token = (
                        session.likeliest(wanted) if action == "likeliest" else session.draw(sampler, wanted)
                    )
                    session.append([token])
            elif action == "append" and session.length < session.context:
                session.append([number])
            elif action == "truncate" and number < session.length:
                session.truncate(number)
                session.append([number])
            elif action == "logits":
                logits.append(session.logits.copy())
            elif action == "flush":
                session.flush()
            elif action == "move":
                session.move(session.pages)
        logits.append(session.logits.copy())
        return session.tokens.tolist(), logits
