"""The validator against a model that enumerates every element."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from nocopy.errors import TapeError
from nocopy.tape import RECORD, Space, Tape, validate
from nocopy.tape.ops import BY_CODE
from tests.tape import generator, model
from tests.tape.choices import Drawn, Seeded

SIZES = {Space.GUEST: 2048, Space.KV: 640}
"""Small, so that generated operands often reach the end of a space."""


@st.composite
def right_records(draw):
    return generator.record(Drawn(draw), SIZES)


@st.composite
def spoiled_records(draw):
    raw = bytearray(generator.record(Drawn(draw), SIZES).tobytes())
    generator.mutate(Drawn(draw), raw)
    return np.frombuffer(bytes(raw), RECORD)[0]


def verdict(record) -> Tape | TapeError:
    try:
        return validate(record.tobytes(), SIZES)
    except TapeError as refusal:
        return refusal


def judge(record) -> bool:
    """True if the record is accepted; fails if that disagrees with the model."""
    wrong = model.faults(record, SIZES)
    tape = verdict(record)
    if isinstance(tape, TapeError):
        assert tape.record == 0
        assert wrong or model.conservative(record), f"refused without a fault: {tape}"
        return False
    assert not wrong, f"accepted in spite of {wrong}"
    assert not model.conservative(record)
    op = tape.ops()[0]
    present = [slot for slot in range(len(op.operands)) if int(record["operands"][slot]["dtype"])]
    for slot, extent in zip(present, tape.extents[0], strict=True):
        byte_set = model.touched(record, slot)
        limit = SIZES[extent.space]
        assert extent.written == op.operands[slot].out
        assert all(0 <= byte < limit for byte in byte_set)
        if byte_set:
            assert (extent.start, extent.stop) == (min(byte_set), max(byte_set) + 1)
            assert tape.sizes[extent.space] >= extent.stop
    outputs = [slot for slot in present if op.operands[slot].out]
    assert tape.work >= max(len(model.starts(record, slot)) for slot in outputs)
    return True


@given(right_records())
def test_generated_records_are_judged_as_by_enumeration(record):
    judge(record)


@given(spoiled_records())
def test_spoiled_records_are_judged_as_by_enumeration(record):
    assume(model.enumerable(record))
    judge(record)


def test_a_thousand_seeded_records_of_every_op_are_judged_as_by_enumeration():
    """Seeds instead of hypothesis: many more records a second, the same ones each time."""
    verdicts = Counter[tuple[int, bool]]()
    for seed in range(1500):
        choices = Seeded(seed)
        record = generator.record(choices, SIZES)
        if seed % 3 == 0:
            raw = bytearray(record.tobytes())
            generator.mutate(choices, raw)
            record = np.frombuffer(bytes(raw), RECORD)[0]
        if model.enumerable(record):
            verdicts[int(record["opcode"]), judge(record)] += 1
    accepted = {code for code, ok in verdicts if ok}
    refused = {code for code, ok in verdicts if not ok}
    assert accepted == set(BY_CODE), "some op was never accepted"
    assert refused >= set(BY_CODE), "some op was never refused"
