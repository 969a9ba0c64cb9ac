"""How many tokens a pass takes: what the device takes best, within what every region has room for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocopy.device.protocol import DeviceInfo
from nocopy.device.reference import ReferenceDevice
from nocopy.memory.dtype import DType
from nocopy.models.load import open_model
from nocopy.models.model import Model
from nocopy.session.engine import ROOM, Engine
from nocopy.session.own import OwnSession

TOKENS = [5, 9, 2, 7, 1, 8, 3, 3, 6, 4, 11, 12, 10, 2, 5, 9, 1, 1, 8, 7]


class Counting(ReferenceDevice):
    """Takes `rows` in a pass best, and remembers the rows of each that it plays."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.played = rows, list[int]()

    @property
    def info(self) -> DeviceInfo:
        return replace(super().info, rows=self.rows)

    def play(self, program: Any, *, timeout: float | None = None) -> None:
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


def test_regions_have_the_same_room_on_every_device(model: Model) -> None:
    (few, logits), (many, others) = (fed(model, Counting(rows)) for rows in (8, 10**9))
    assert few.chunk == many.chunk == min(ROOM, model.config.context)
    assert np.allclose(logits, others, rtol=1e-4, atol=1e-5)
