"""What every player must do, whatever it runs on. A new device is done when all `test_conformance*.py` pass.

Here: records of every op and layout, generated.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.errors import TapeError
from nocopy.memory.dtype import DType
from nocopy.tape import Space, validate
from tests.device.arena import Arena, records
from tests.device.values import SPECIAL
from tests.tape import generator
from tests.tape.choices import Choices, Drawn, Seeded

F32, F16, BF16, I32, U8 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.U8
SLICE = 16384
"""Bytes of the guest space that a generated record has to itself."""


def generated(choices: Choices, count: int) -> bytes:
    """Records that the validator accepts, each in a slice of the guest space of its own."""
    raw = b""
    for place in range(count):
        record = records(generator.record(choices, {Space.GUEST: SLICE}).tobytes())[0]
        try:
            validate(record.tobytes(), {Space.GUEST: SLICE})
        except TapeError:
            continue
        for slot in np.flatnonzero(record["operands"]["dtype"]):
            record["operands"][slot]["offset"] += place * SLICE
        raw += record.tobytes()
    return raw


@pytest.mark.parametrize("seed", range(8))
def test_records_of_every_op_and_layout(arena: Arena, seed):
    fill_with_numbers(arena, seed)
    arena.judge(generated(Seeded(seed), arena.sizes[Space.GUEST] // SLICE))


@given(st.data())
def test_any_record(arena: Arena, data):
    fill_with_numbers(arena, data.draw(st.integers(0, 99)))
    arena.judge(generated(Drawn(data.draw), 2))


def fill_with_numbers(arena: Arena, seed: int) -> None:
    """Ordinary and special values of all float dtypes, so that results mean something."""
    rng = np.random.default_rng(seed)
    for b in arena.bytes.values():
        values = rng.normal(0, 2, len(b) // 4).astype(np.float32)
        special = rng.random(len(values)) < 0.02
        values[special] = rng.choice(SPECIAL, special.sum())
        b[:] = values.view(np.uint8)
