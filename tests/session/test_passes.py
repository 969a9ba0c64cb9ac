"""How many tokens a pass takes: what the device takes best, within what every region has room for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocopy.device.protocol import DeviceInfo
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.models.load import open_model
from nocopy.models.model import Model
from nocopy.session import session as sessions
from nocopy.session.engine import ROOM, Engine
from nocopy.session.own import OwnSession

TOKENS = [5, 9, 2, 7, 1, 8, 3, 3, 6, 4, 11, 12, 10, 2, 5, 9, 1, 1, 8, 7]


class Counting(ReferenceDevice):
    """Takes `rows` in a pass best, and remembers the rows of each that it plays."""

    def __init__(self, rows: int, *, few_shapes: bool = False) -> None:
        super().__init__()
        self.rows, self.few_shapes, self.played = rows, few_shapes, list[int]()

    @property
    def info(self) -> DeviceInfo:
        return replace(super().info, rows=self.rows, few_shapes=self.few_shapes)

    def play(self, program: Any, *, timeout: float | None = None, then: object = None) -> None:
        self.played.append(int(program.tape.records[0]["dims"][0]))  # the lookup of the embeddings
        super().play(program, timeout=timeout)


@pytest.fixture
def model(tiny_gguf: Path) -> Iterator[Model]:
    with closing(open_model(tiny_gguf)) as model:
        yield model


def fed(model: Model, device: Counting, **given: Any) -> tuple[Engine, Any]:
    with (
        closing(device),
        closing(Engine(model, device, **given)) as engine,
        OwnSession(engine, context=40, kv=DType.F32) as session,
    ):
        session.append(TOKENS)
        return engine, session.logits.copy()


@pytest.mark.parametrize(
    ("rows", "given", "passes"),
    [(8, {}, [8, 8, 4]), (64, {}, [20]), (8, {"chunk": 16}, [16, 4]), (64, {"chunk": 16}, [16, 4])],
)
def test_a_prompt_is_read_in_passes_of_what_the_device_takes_best(
    model: Model, rows: int, given: Any, passes: list[int]
) -> None:
    device = Counting(rows)
    fed(model, device, **given)
    assert device.played == passes


@pytest.mark.parametrize("many", [0, 500])
@pytest.mark.parametrize("kind", [list, lambda tokens: array("q", tokens)], ids=["list", "array"])
@pytest.mark.parametrize("wrong", [-1, 2**31 - 1, 2**31, 2**40, -(2**40)])
def test_what_is_no_token_is_refused_by_name(
    model: Model, monkeypatch: pytest.MonkeyPatch, many: int, kind: Any, wrong: int
) -> None:
    monkeypatch.setattr(sessions, "MANY", many)  # from so many on they are looked through at once
    with (
        closing(Counting(8)) as device,
        closing(Engine(model, device)) as engine,
        OwnSession(engine, context=40, kv=DType.F32) as session,
    ):
        session.append(kind(TOKENS))
        with pytest.raises(UsageError, match=f"token {wrong} was fed; tokens are 0 to"):
            session.append(kind([3, wrong, 4]))
        assert list(session.tokens) == TOKENS


def test_regions_have_the_same_room_on_every_device(model: Model) -> None:
    (few, logits), (many, others) = (fed(model, Counting(rows)) for rows in (8, 10**9))
    assert few.chunk == many.chunk == min(ROOM, model.config.context)
    assert np.allclose(logits, others, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [
        (1, 1),
        (8, 8),
        (9, 16),
        (16, 16),
        (17, 32),
        (100, 112),
        (256, 256),
        (257, 288),
        (1025, 1152),
        (2048, 2048),
    ],
)
def test_a_device_that_wants_few_shapes_gets_them(model: Model, tokens: int, rows: int) -> None:
    with closing(Counting(2048, few_shapes=True)) as device, closing(Engine(model, device)) as engine:
        assert engine.width(tokens, 2048) == rows
        assert engine.width(tokens, tokens) == tokens
    with closing(Counting(2048)) as device, closing(Engine(model, device)) as engine:
        assert engine.width(tokens, 2048) == tokens


def test_rows_that_are_nowhere_change_nothing(model: Model) -> None:
    """Neither logits nor what the cache holds, of this prompt or what was there before."""
    found: list[list[Any]] = []
    for few_shapes in (False, True):
        with (
            closing(Counting(64, few_shapes=few_shapes)) as device,
            closing(Engine(model, device)) as engine,
            OwnSession(engine, context=40, kv=DType.F32) as session,
        ):
            seen: list[Any] = []
            for count in (11, 9, 20):
                session.append((TOKENS * 2)[:count])
                seen.append(session.logits.copy())
            assert session.length == session.context
            session.flush()
            floats = session.region.cache.nbytes // 4
            seen.append(session.memory.view(floats, "f32", session.region.home).numpy().copy())
            found.append(seen)
            assert device.played == ([16, 16, 32] if few_shapes else [11, 9, 20])
    for one, two in zip(*found, strict=True):
        assert np.allclose(one, two, rtol=1e-5, atol=1e-5)
