"""Conformance of what language models need: block types, rope, scatter, attention, glu."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nocopy.memory.dtype import QUANTISED, DType
from nocopy.tape import Space, TapeBuilder, Tensor, validate
from nocopy.tape.ops import CACHE, GLU
from tests.device.arena import Arena, Batch
from tests.device.values import REAL, SPECIAL, normal, whole

F32, F16, BF16, I32, Q8_0 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.Q8_0
BLOCKS = sorted(QUANTISED)
KV = sorted(CACHE)


def cached(batch: Batch, seed: int, shape: tuple[int, ...], dtype: DType, **layout) -> Tensor:
    """Values or blocks of values of ordinary size."""
    if dtype.block > 1:
        return batch.put_blocks(shape, dtype, seed, **layout)
    return batch.put(normal(seed, *shape), dtype, **layout)


# -- matmul and gather of blocks ------------------------------------------------------------------------

SIZES = [
    (1, 1, 5),
    (1, 3, 33),
    (3, 1, 7),
    (4, 2, 64),
    (5, 1, 6),
    (17, 1, 18),
    (33, 2, 65),
    (70, 1, 3),
    (2, 1, 0),
]
"""m, k in blocks, n"""


@pytest.mark.parametrize("dtype", BLOCKS, ids=lambda d: d.name)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_matmul_of_blocks(arena: Arena, dtype, size):
    (m, blocks, n), batch = size, Batch(arena)
    k = blocks * dtype.block
    for out, a, order in zip(REAL, (F32, BF16, F16), ((0, 1), (1, 0), (0, 1)), strict=True):
        weight = batch.put_blocks((k, n), dtype, 1, order=(1, 0))
        batch.tape.matmul(batch.room((m, n), out, order=order), batch.put(normal(2, m, k), a), weight, 0.5)
    batch.judge()


@pytest.mark.parametrize("dtype", BLOCKS, ids=lambda d: d.name)
def test_matmul_of_batches_of_blocks(arena: Arena, dtype):
    batch, k = Batch(arena), dtype.block
    for m in (1, 6):
        a = batch.put(normal(1, 2, 3, m, k))
        each = batch.put_blocks((2, 3, k, 5), dtype, 2, order=(1, 0, 3, 2))
        one = batch.put_blocks((k, 5), dtype, 3, order=(1, 0))
        some = batch.put_blocks((2, 1, k, 5), dtype, 4, order=(0, 1, 3, 2))
        for weight in (each, one, some):
            batch.tape.matmul(batch.room((2, 3, m, 5)), a, weight)
    batch.judge()


@pytest.mark.parametrize("dtype", BLOCKS, ids=lambda d: d.name)
def test_matmul_of_some_columns_of_blocks(arena: Arena, dtype):
    """Every other row of a weight, and its first block only: strides beyond the run of blocks."""
    batch, k = Batch(arena), dtype.block
    whole_weight = batch.put_blocks((3 * k, 12), dtype, 1, order=(1, 0))
    part = Tensor(whole_weight.space, whole_weight.offset + dtype.itemsize, (k, 6), dtype, (1, 6 * k))
    for m in (1, 9):
        batch.tape.matmul(batch.room((m, 6)), batch.put(normal(2, m, k)), part)
    batch.judge()


@pytest.mark.parametrize("dtype", BLOCKS, ids=lambda d: d.name)
def test_gather_from_blocks(arena: Arena, dtype):
    batch = Batch(arena)
    indices = batch.put([0, -1, 4, 6, 7, 2**31 - 1, -(2**31), 3], I32, gap=3)
    for blocks, out, order in product((1, 3), REAL, ((0, 1), (1, 0))):
        table = batch.put_blocks((7, blocks * dtype.block), dtype, 5)
        batch.tape.gather(batch.room((8, blocks * dtype.block), out, order=order), table, indices)
    batch.judge()


# -- rope -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 2, 1), (3, 4, 64, 32), (5, 2, 33, 8), (2, 3, 7, 3), (1, 9, 80, 0)])
def test_rope(arena: Arena, size, interleaved):
    batch, (r, h, n, f) = Batch(arena), size
    frequencies = batch.put(10000.0 ** (-np.arange(f) / max(1, f)))
    for (out, x), order in product(product(REAL, REAL), ((0, 1, 2), (1, 0, 2), (2, 1, 0))):
        positions = batch.put(np.arange(r) * 37 + 3, I32, gap=2)
        source = batch.put(normal(1, r, h, n), x, order=order)
        turned = batch.room((r, h, n), out, order=order, gap=2)
        batch.tape.rope(turned, source, frequencies, positions, interleaved=interleaved)
    batch.judge()


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_in_place_of_any_position(arena: Arena, interleaved):
    batch = Batch(arena)
    places = [0, -1, 1, 4095, 131071, -(2**31), 2**31 - 1, 2**24 + 1]
    frequencies = batch.put([1.0, 0.25, 1e-4, -0.5, 0.0])
    for dtype in REAL:
        x = batch.put(normal(1, len(places), 3, 13), dtype)
        positions = batch.put(places, I32)
        batch.tape.rope(x, x, frequencies, positions, interleaved=interleaved, scale=1.25)
    batch.judge()


def test_rope_of_a_part_of_a_row(arena: Arena):
    """Queries and keys as they lie in one row of a fused projection."""
    batch = Batch(arena)
    row = batch.put(normal(1, 5, 96))
    positions, frequencies = batch.put(np.arange(5) + 9, I32), batch.put(normal(2, 8))
    for start, heads in ((0, 4), (64, 2)):
        part = Tensor(row.space, row.offset + 4 * start, (5, heads, 16), F32, (96, 16, 1))
        batch.tape.rope(batch.room((5, heads, 16), BF16), part, frequencies, positions)
    batch.judge()


# -- scatter --------------------------------------------------------------------------------------------

INDICES = [3, 0, -1, 8, 7, 2**31 - 1, -(2**31), 5, 1]
"""Some rows of eight, and some that are none of them."""


@pytest.mark.parametrize("out", KV, ids=lambda d: d.name)
def test_scatter_writes_the_rows_that_exist(arena: Arena, out):
    batch = Batch(arena)
    widths = (32, 64, 96, 160) if out.block > 1 else (1, 2, 7, 32, 33, 96)
    for x, width, order in product(REAL, widths, ((0, 1), (1, 0))):
        target = batch.room((8, width), out, order=order if out.block == 1 else (0, 1))
        batch.tape.scatter(
            target, batch.put(normal(1, 9, width), x, order=order), batch.put(INDICES, I32, gap=2)
        )
    batch.judge()


@pytest.mark.parametrize("out", KV, ids=lambda d: d.name)
def test_scatter_between_rows_that_stay(arena: Arena, out):
    """Token-major: the row of a layer lies between those of other layers."""
    batch = Batch(arena)
    room = batch.room((8, 3 * 64), out)
    middle = Tensor(room.space, room.offset + 64 // out.block * out.itemsize, (8, 64), out, (192, 1))
    batch.tape.scatter(middle, batch.put(normal(1, 9, 64)), batch.put(INDICES, I32))
    batch.judge()


@pytest.mark.parametrize("out", KV, ids=lambda d: d.name)
def test_scatter_to_the_same_row_twice_writes_one_of_the_rows(arena: Arena, out):
    batch = Batch(arena)
    indices = batch.put(np.arange(40) % 3, I32)
    batch.tape.scatter(batch.room((4, 256), out), batch.put(normal(1, 40, 256)), indices)
    batch.judge()


@pytest.mark.parametrize("out", [F16, BF16, F32], ids=lambda d: d.name)
def test_scatter_converts_as_copy_does(arena: Arena, out):
    batch = Batch(arena)
    for x in REAL:
        batch.tape.scatter(
            batch.room((2, len(SPECIAL)), out), batch.put(SPECIAL[None], x), batch.put([1], I32)
        )
    batch.judge()


def test_scatter_encodes_q8_0_bit_for_bit(arena: Arena):
    """Random blocks of every magnitude, halves that round away from zero, zeros, huge and tiny scales."""
    batch, rng = Batch(arena), np.random.default_rng(3)
    rows = normal(4, 400, 64) * np.exp(rng.normal(0, 12, (400, 1)))
    rows[0], rows[1, :32], rows[2] = 0, np.arange(-16, 16) / 2, -0.0
    rows[3, 0], rows[4, 5], rows[5] = 3e38, -3e38, 65504 * 127
    rows[6, :32], rows[6, 31] = np.arange(32) + 0.5, 127  # scale 1: every quotient is a half
    rows[7], rows[7, 3] = 1e-38, 1e-37
    for x in REAL:
        with np.errstate(over="ignore"):
            fits = rows if x is F32 else np.clip(rows, -60000, 60000)
        indices = batch.put(rng.permutation(400), I32)
        batch.tape.scatter(batch.room((400, 64), Q8_0), batch.put(fits, x), indices)
    batch.judge()


# -- attention ------------------------------------------------------------------------------------------


def attend(batch: Batch, size, out=F32, q=F32, k=F32, v=F32, last=None, spread=1.0, **params) -> None:
    """Record attention over random tensors that lie as a session's do: token by token."""
    r, h, n, t, g = size
    queries = batch.put(normal(1, r, h, n, scale=spread), q)
    keys, values = cached(batch, 2, (t, g, n), k), cached(batch, 3, (t, g, n), v)
    seen = batch.put(np.arange(r) + t - r if last is None else last, I32)
    params = {"scale": n**-0.5} | params
    batch.tape.attention(batch.room((r, h, n), out), queries, keys, values, seen, **params)


@pytest.mark.parametrize(("k", "v"), list(product(KV, KV)), ids=lambda d: d.name)
def test_attention_of_every_dtype(arena: Arena, k, v):
    batch = Batch(arena)
    for out, q in product(REAL, REAL):
        attend(batch, (3, 4, 32, 9, 2), out, q, k, v)
    batch.judge()


@pytest.mark.parametrize("cache", [F32, F16, Q8_0], ids=lambda d: d.name)
@pytest.mark.parametrize(
    "size",
    [(1, 1, 32, 1, 1), (1, 8, 64, 130, 2), (2, 6, 96, 33, 6), (40, 2, 32, 40, 1), (1, 4, 128, 700, 4),
     (5, 3, 256, 17, 1), (1, 14, 64, 300, 2), (3, 2, 32, 257, 2)],
    ids=lambda s: "x".join(map(str, s)),
)  # fmt: skip
def test_attention_of_every_size(arena: Arena, cache, size):
    batch = Batch(arena)
    attend(batch, size, k=cache, v=cache)
    attend(batch, size, F16, BF16, k=cache, v=cache, window=7, softcap=5.0)
    batch.judge()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 31, 33, 48, 65, 129, 320])
def test_attention_of_odd_heads(arena: Arena, n):
    batch = Batch(arena)
    for dtype in REAL:
        attend(batch, (2, 2, n, 19, 1), dtype, dtype, dtype, dtype)
    batch.judge()


@pytest.mark.parametrize("cache", [F32, Q8_0], ids=lambda d: d.name)
@pytest.mark.parametrize("window", [0, 1, 2, 31, 32, 33, 2**31 - 1])
@pytest.mark.parametrize("softcap", [0.0, 0.5, 50.0])
def test_attention_windows_and_softcaps(arena: Arena, cache, window, softcap):
    """Queries that see nothing give 0; those past the end see all."""
    batch = Batch(arena)
    last = [0, 5, 69, -1, -7, -(2**31), 70, 2**31 - 1, 33, 32, 31]
    attend(
        batch, (len(last), 4, 32, 70, 2), F32, F32, cache, cache, last, 4.0, window=window, softcap=softcap
    )
    batch.judge()


def test_attention_does_not_read_what_no_query_sees(arena: Arena):
    """Tokens past the last, and before the window, are NaN."""
    batch = Batch(arena)
    keys, values = normal(1, 40, 2, 16), normal(2, 40, 2, 16)
    for kv in (keys, values):
        kv[:10] = kv[25:] = np.nan
    for dtype in REAL:
        k, v = batch.put(keys, dtype), batch.put(values, dtype)
        for last, window in (([24], 15), ([20], 11), ([24, 23], 14), ([19, -1], 9)):
            q = batch.put(normal(3, len(last), 4, 16))
            seen = batch.put(last, I32)
            out = batch.room((len(last), 4, 16))
            batch.tape.attention(out, q, k, v, seen, scale=0.25, window=window)
    batch.judge()
    assert np.isfinite(batch.array(out)).all()


@pytest.mark.parametrize("scale", [1.0, -30.0, 0.0])
def test_attention_of_large_scores_does_not_overflow(arena: Arena, scale):
    batch = Batch(arena)
    attend(batch, (2, 2, 16, 100, 1), spread=30.0, scale=scale)
    attend(batch, (1, 2, 16, 300, 1), spread=1.0, scale=scale, softcap=30.0)
    batch.judge()


def test_attention_over_no_tokens_is_zero(arena: Arena):
    batch = Batch(arena)
    for k, v in ((F32, F16), (Q8_0, Q8_0)):
        q, seen = batch.put(normal(1, 3, 2, 32)), batch.put([0, -1, 5], I32)
        keys, values = batch.room((0, 1, 32), k), batch.room((0, 1, 32), v)
        batch.tape.attention(batch.room((3, 2, 32)), q, keys, values, seen, scale=1.0)
    batch.judge()


@pytest.mark.parametrize("cache", KV, ids=lambda d: d.name)
def test_attention_over_a_token_major_cache(arena: Arena, cache):
    """K and V of one layer between those of others, as a session lays them out; queries permuted."""
    batch, (t, g, n) = Batch(arena), (37, 2, 64)
    row = 6 * g * n
    room = cached(batch, 1, (t, row), cache)
    k, v = (
        Tensor(
            room.space,
            room.offset + at * g * n // cache.block * cache.itemsize,
            (t, g, n),
            cache,
            (row, n, 1),
        )
        for at in (2, 3)
    )
    q = batch.put(normal(2, 5, 4, n), order=(1, 0, 2))
    out = batch.room((5, 4, n), order=(1, 0, 2))
    batch.tape.attention(out, q, k, v, batch.put(np.arange(5) + 30, I32, gap=2), scale=0.1)
    batch.judge()


def test_attention_of_permuted_and_repeated_axes(arena: Arena):
    batch = Batch(arena)
    for dtype in REAL:
        q = batch.put(normal(1, 3, 4, 20), dtype, order=(2, 0, 1))
        k = batch.put(normal(2, 11, 2, 20), dtype, order=(1, 2, 0), gap=2)
        v = batch.put(normal(3, 11, 2, 20), dtype, order=(2, 1, 0))
        seen = batch.put([10], I32)
        every = Tensor(seen.space, seen.offset, (3,), I32, (0,))
        batch.tape.attention(batch.room((3, 4, 20), order=(2, 1, 0)), q, k, v, every, scale=0.3)
    batch.judge()


# -- glu ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", GLU)
def test_glu(arena: Arena, function):
    batch = Batch(arena)
    gate = np.concatenate([SPECIAL, normal(1, 60, scale=4)])
    value = np.concatenate([SPECIAL[::-1], normal(2, 60, scale=3)])
    for out, a, b in product(REAL, REAL, REAL):
        batch.tape.glu(function, batch.room(gate.shape, out), batch.put(gate, a), batch.put(value, b))
        x = batch.put(normal(3, 5, 9), a, order=(1, 0))
        batch.tape.glu(function, x, x, batch.put(normal(4, 9), b))
    batch.judge()


def test_glu_of_the_halves_of_a_row(arena: Arena):
    """Gate and value of a fused projection."""
    batch = Batch(arena)
    both = batch.put(normal(1, 3, 74))
    halves = [Tensor(both.space, both.offset + 4 * start, (3, 37), F32, (74, 1)) for start in (0, 37)]
    for function in GLU:
        batch.tape.glu(function, batch.room((3, 37), BF16), *halves)
    batch.judge()


# -- together -------------------------------------------------------------------------------------------


def test_a_step_sees_the_keys_that_it_wrote(arena: Arena):
    """Scatter, then attention over the same cache, in one tape; twice, as a program plays again."""
    for cache in KV:
        batch = Batch(arena)
        keys, values = (batch.room((16, 64), cache, space=Space.KV) for _ in range(2))
        new, at = batch.put(whole(1, 2, 64)), batch.put([0, 1], I32)
        q, out = batch.put(normal(2, 2, 4, 32)), batch.room((2, 4, 32))
        k, v = (Tensor(t.space, t.offset, (16, 2, 32), cache, (64, 32, 1)) for t in (keys, values))
        writing, tape = TapeBuilder(), TapeBuilder()
        for target in (keys, values):
            writing.scatter(target, new, at)
            tape.scatter(target, new, at)
        tape.attention(out, q, k, v, at, scale=0.2)
        program = arena.device.compile(validate(bytes(tape), arena.sizes), arena.pages)
        for first in (0, 2):
            batch.array(at)[:] = (first, first + 1)
            arena.judge(bytes(writing))
            arena.device.play(program)
        program.close()
        batch.array(out)[...] = 7.0
        batch.tape.attention(out, q, k, v, at, scale=0.2)
        batch.judge()


EMPTY = {
    "rope": lambda b: b.tape.rope(b.room((0, 2, 4)), b.room((0, 2, 4)), b.room((2,)), b.room((0,), I32)),
    "scatter": lambda b: b.tape.scatter(b.room((0, 32), Q8_0), b.room((3, 32)), b.room((3,), I32)),
    "scatter r": lambda b: b.tape.scatter(b.room((3, 32), Q8_0), b.room((0, 32)), b.room((0,), I32)),
    "attention": lambda b: b.tape.attention(
        b.room((0, 2, 32)), b.room((0, 2, 32)), b.room((3, 1, 32), Q8_0), b.room((3, 1, 32)),
        b.room((0,), I32), scale=1.0,
    ),
    "glu": lambda b: b.tape.glu("silu", b.room((5, 0)), b.room((5, 1)), b.room((0,))),
}  # fmt: skip


@pytest.mark.parametrize("case", EMPTY)
def test_empty_outputs_write_nothing(arena: Arena, case):
    batch = Batch(arena)
    EMPTY[case](batch)
    batch.judge()
