"""Conformance of whole tapes: order of records, spaces, programs, empty tensors."""

from __future__ import annotations

import numpy as np
import pytest

from nocopy.memory.dtype import DType
from nocopy.tape import Space, Tensor, reference, validate
from tests.device.arena import Arena, Batch
from tests.device.values import whole

F32, F16, BF16, I32, U8 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.U8


def exactly(arena: Arena, batch: Batch) -> None:
    """Play records that feed one another; their arithmetic is exact, so the bytes equal the reference's."""
    tape = validate(bytes(batch.tape), arena.sizes)
    before = arena.snapshot()
    oracle = {space: b.copy() for space, b in before.items()}
    oracle[Space.SCRATCH] = np.zeros(arena.sizes[Space.SCRATCH], np.uint8)
    reference.play(tape, oracle)
    arena.play(tape)
    arena.assert_untouched(tape, before)
    for space, b in arena.bytes.items():
        np.testing.assert_array_equal(b, oracle[space])


def test_each_record_sees_what_earlier_ones_wrote(arena: Arena):
    """Read after write, write after read and write after write, over tensors of many groups and of one."""
    for n in (1, 100, 70_000):
        batch = Batch(arena)
        a, b, c, d = (batch.put(whole(i, n, top=1)) for i in range(4))
        one = batch.put([2.0])
        for _ in range(20):
            batch.tape.binary("add", c, a, b)  # after the last round's reads of c
            batch.tape.copy(a, b)
            batch.tape.binary("mul", b, c, one)  # overwrites what the two before have read
            batch.tape.binary("min", b, b, d)
            batch.tape.reduce("max", Tensor(one.space, one.offset, (), F32), c)
            batch.tape.clamp(one, one, 1.0, 2.0)
        exactly(arena, batch)


def test_a_chain_through_different_ops(arena: Arena):
    batch = Batch(arena)
    x, w = batch.put(whole(1, 8, 16, top=2)), batch.put(whole(2, 16, 16, top=1), F16)
    h, y = batch.room((8, 16)), batch.room((8, 16))
    best, picked = batch.room((8,), I32), batch.room((8, 16))
    values, places = batch.room((8, 3)), batch.room((8, 3), I32)
    for _ in range(3):
        batch.tape.matmul(h, x, w)
        batch.tape.clamp(y, h, -4, 4)
        batch.tape.argmax(best, y)
        batch.tape.gather(picked, w, best)  # indices that the device wrote
        batch.tape.binary("sub", x, y, picked)
        batch.tape.topk(values, places, x)
        batch.tape.copy(Tensor(y.space, y.offset, (8, 3), F32, (16, 1)), places)
    exactly(arena, batch)


def test_scratch_and_every_other_space(arena: Arena):
    batch = Batch(arena)
    x = batch.put(whole(1, 40, 30), F16)
    w = batch.put(whole(2, 30, 20, top=2), BF16, space=Space.WEIGHTS)
    kv = batch.room((20, 40), F32, space=Space.KV)
    s = Tensor(Space.SCRATCH, 4096, (40, 30), F32)
    t = Tensor(Space.SCRATCH, 65536, (40, 20), F32, (25, 1))
    batch.tape.copy(s, x)
    batch.tape.unary("square", s, s)
    batch.tape.matmul(t, s, w)
    batch.tape.copy(kv, Tensor(t.space, t.offset, (20, 40), F32, (1, 25)))
    batch.tape.reduce("max", batch.room((20,)), kv)
    exactly(arena, batch)


def test_scratch_keeps_its_bytes_between_tapes(arena: Arena):
    s = Tensor(Space.SCRATCH, 0, (1000,), I32)
    first = Batch(arena)
    first.tape.copy(s, first.put(np.arange(1000) * 7, I32))
    arena.play(validate(bytes(first.tape), arena.sizes))
    second = Batch(arena)
    out = second.room((1000,), I32)
    second.tape.copy(out, s)
    arena.play(validate(bytes(second.tape), arena.sizes))
    np.testing.assert_array_equal(second.array(out), np.arange(1000) * 7)


def test_a_program_plays_again_on_new_data(arena: Arena):
    batch = Batch(arena)
    x, y = batch.put(whole(0, 500)), batch.room((500,))
    batch.tape.unary("square", y, x)
    program = arena.device.compile(validate(bytes(batch.tape), arena.sizes), arena.pages)
    for seed in range(5):
        batch.array(x)[:] = whole(seed, 500)
        arena.device.play(program)
        np.testing.assert_array_equal(batch.array(y), whole(seed, 500) ** 2)
    program.close()


def test_programs_do_not_disturb_one_another(arena: Arena):
    batches = [Batch(arena) for _ in range(3)]
    x, y = batches[0].put(whole(0, 64)), batches[0].room((64,))
    programs = []
    for value, batch in enumerate(batches):
        batch.tape.fill(y, value)
        batch.tape.binary("add", y, y, x)
        programs.append(arena.device.compile(validate(bytes(batch.tape), arena.sizes), arena.pages))
    batches[0].array(x)[:] = whole(0, 64)
    for value in (2, 0, 1, 2):
        arena.device.play(programs[value])
        np.testing.assert_array_equal(batches[0].array(y), whole(0, 64) + value)
    programs[1].close()
    arena.device.play(programs[0])
    np.testing.assert_array_equal(batches[0].array(y), whole(0, 64))
    for program in programs:
        program.close()


MANY_ROWS_OF_NOTHING = Tensor(Space.GUEST, 64, (2**31 - 1, 2**16, 1, 0), F32)
EMPTY = {
    "copy": lambda b: b.tape.copy(b.room((3, 0, 4)), b.room((3, 0, 4))),
    "fill": lambda b: b.tape.fill(b.room((0,)), 1.0),
    "unary": lambda b: b.tape.unary("exp", b.room((0, 9)), b.room((0, 9))),
    "clamp": lambda b: b.tape.clamp(b.room((0,)), b.room((0,)), 0, 1),
    "binary": lambda b: b.tape.binary("add", b.room((5, 0)), b.room((5, 1)), b.room((0,))),
    "matmul": lambda b: b.tape.matmul(b.room((0, 4)), b.room((0, 5)), b.room((5, 4))),
    "matmul n": lambda b: b.tape.matmul(b.room((2, 4, 0)), b.room((4, 5)), b.room((5, 0))),
    "reduce": lambda b: b.tape.reduce("max", b.room((0,)), b.room((0, 5))),
    "softmax": lambda b: b.tape.softmax(b.room((5, 0)), b.room((5, 0))),
    "rmsnorm": lambda b: b.tape.rmsnorm(b.room((0, 5)), b.room((0, 5)), b.room((5,))),
    "layernorm": lambda b: b.tape.layernorm(MANY_ROWS_OF_NOTHING, MANY_ROWS_OF_NOTHING),
    "gather": lambda b: b.tape.gather(b.room((0, 4)), b.room((2, 4)), b.room((0,), I32)),
    "gather w": lambda b: b.tape.gather(b.room((3, 0)), b.room((2, 0)), b.room((3,), I32)),
    "argmax": lambda b: b.tape.argmax(b.room((2, 0), I32), b.room((2, 0, 4))),
    "topk": lambda b: b.tape.topk(b.room((2, 0)), b.room((2, 0), I32), b.room((2, 4))),
    "conv2d": lambda b: b.tape.conv2d(b.room((1, 2, 0, 3)), b.room((1, 1, 4, 4)), b.room((2, 1, 2, 2))),
    "resize": lambda b: b.tape.resize(b.room((1, 1, 0, 4)), b.room((1, 1, 4, 4))),
}  # fmt: skip


@pytest.mark.parametrize("case", EMPTY)
def test_empty_outputs_write_nothing(arena: Arena, case):
    batch = Batch(arena)
    EMPTY[case](batch)
    arena.play(validate(b"", arena.sizes))  # a tape of no records
    batch.judge()
