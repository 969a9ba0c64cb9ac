"""Tokens drawn on the device, ahead of being asked for, are those that the host draws, by the same count."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nocopy.device.discovery import open_device
from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.models.load import open_model
from nocopy.session import pace
from nocopy.session.engine import Engine
from nocopy.session.own import OwnSession
from nocopy.session.pace import Make
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session, at_once
from tests.device.cuda_emulation import EmulatedDriver, emulated, library  # noqa: F401
from tests.session.test_ahead import PROMPT, one_by_one, opened


@pytest.fixture
def engine(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(pace, "PATIENCE", 1e6)
    with (
        closing(open_model(tiny_gguf)) as model,
        closing(open_device("cpu")) as device,
        closing(Engine(model, device, chunk=16)) as engine,
    ):
        yield engine


DRAWN = [
    Sampling(seed=3),
    Sampling(seed=2**63 + 5, temperature=1.3, top_k=0, top_p=1, min_p=0),
    Sampling(seed=4, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1, repeat_last_n=7),
    Sampling(seed=5, repeat_penalty=1.1, repeat_last_n=0),
    Sampling(temperature=0, presence_penalty=0.8, repeat_last_n=5),
]
HOST = [
    Sampling(seed=6, repeat_penalty=1.2, repeat_last_n=16),  # more recent tokens than a pass has room for
    Sampling(seed=7, frequency_penalty=0.5, repeat_last_n=-1),
    Sampling(seed=8, typical_p=0.6),
    Sampling(seed=9, logit_bias={3: 2.0}),
]


def drawn_by_host(session: Session, sampler: Sampler, count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(sampler.sample(session.logits))
        sampler.accept(found[-1:])
        session.append(found[-1:])
    return found


def drawn_ahead(session: Session, sampler: Sampler, count: int) -> list[int]:
    found: list[int] = []
    for i in range(count):
        found.append(session.draw(sampler, count - 1 - i))
        sampler.accept(found[-1:])
        session.append(found[-1:])
    return found


def begun(session: Session, sampling: Sampling) -> Sampler:
    """A sampler of a session that has read the prompt."""
    session.append(PROMPT)
    sampler = Sampler(sampling)
    sampler.accept(PROMPT)
    return sampler


@pytest.mark.parametrize("sampling", DRAWN + HOST)
def test_device_and_host_draw_the_same(engine: Engine, sampling: Sampling) -> None:
    """And the sampler counts the same draws, and the logits are those after the last token."""
    with opened(engine) as one, opened(engine) as two:
        first, second = begun(one, sampling), begun(two, sampling)
        wanted = drawn_by_host(one, first, 13)
        assert drawn_ahead(two, second, 13) == wanted == two.tokens[4:].tolist()
        assert (first.draws, first.recent) == (second.draws, second.recent)
        assert np.allclose(two.logits, one.logits, rtol=1e-5, atol=1e-5)
        assert (len(set(wanted)) > 3) == (sampling.temperature > 0 or sampling.presence_penalty > 0)


def test_tokens_drawn_ahead_are_played_in_one_go(engine: Engine) -> None:
    plays: list[int] = []
    at_once_there = at_once(engine.device)

    def play(make: Make, then: Make | None) -> None:
        at_once_there(make, then)
        plays.append(1)

    with OwnSession(engine, context=40, kv=DType.F32, play=play) as s:
        sampler = begun(s, DRAWN[0])
        drawn_ahead(s, sampler, 20)
        assert len(plays) <= 7  # the prompt, then 1, 8, 8, 2, 1


def test_another_sampler_or_token_forgets_what_was_drawn_ahead(engine: Engine) -> None:
    with opened(engine) as one, opened(engine) as two:
        for session, draw in ((one, drawn_by_host), (two, drawn_ahead)):
            sampler = begun(session, DRAWN[0])
            draw(session, sampler, 3)
            if session is two:
                session.draw(sampler, 9)  # drawn, and not appended
                sampler.draws -= 1
            other = Sampler(DRAWN[1])
            draw(session, other, 2)
            other.seed += 1
            draw(session, other, 2)
            sampler.draws += 5
            draw(session, sampler, 2)
            session.append([1])
            draw(session, sampler, 2)
            session.append([int(session.logits.argmax())])
            draw(session, sampler, 3)
        assert one.tokens == two.tokens
        assert two.likeliest(3) == int(one.logits.argmax())


def test_drawing_twice_from_the_same_logits_draws_two_numbers(engine: Engine) -> None:
    with opened(engine) as one, opened(engine) as two:
        first, second = begun(one, DRAWN[1]), begun(two, DRAWN[1])
        wanted = [first.sample(one.logits) for _ in range(6)]
        assert [two.draw(second, 5) for _ in range(6)] == wanted
        assert len(set(wanted)) > 1


def test_greedy_and_drawn_tokens_take_turns(engine: Engine) -> None:
    with opened(engine) as one, opened(engine) as two:
        first, second = begun(one, DRAWN[0]), begun(two, DRAWN[0])
        for _ in range(3):
            wanted = drawn_by_host(one, first, 2) + one_by_one(one, 2)
            found = [two.draw(second, 7)]
            two.append(found)
            found.append(two.draw(second, 7))
            two.append(found[-1:])
            for _ in range(2):
                found.append(two.likeliest(5))
                two.append(found[-1:])
            assert found == wanted


def test_logits_that_are_no_numbers_draw_nothing(engine: Engine) -> None:
    with opened(engine) as session:
        sampler = begun(session, DRAWN[0])
        session.logits[...] = np.nan
        for draw in (lambda: session.draw(sampler, 5), lambda: session.likeliest(5)):
            with pytest.raises(UsageError, match="not numbers"):
                draw()
        assert sampler.draws == 0


def test_a_device_with_memory_of_its_own_draws_the_same(
    tiny_gguf: Path, engine: Engine, request: pytest.FixtureRequest
) -> None:
    kernels: ctypes.CDLL = request.getfixturevalue("library")
    with (
        closing(emulated(EmulatedDriver(kernels, memory_bytes=1 << 27))) as gpu,
        closing(open_model(tiny_gguf)) as model,
        closing(Engine(model, gpu, chunk=16)) as other,
        opened(engine) as one,
        opened(other) as two,
    ):
        wanted = drawn_ahead(one, begun(one, DRAWN[2]), 6)
        assert drawn_ahead(two, begun(two, DRAWN[2]), 6) == wanted
