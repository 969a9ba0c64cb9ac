"""Conformance of the ops over rows, of gather and of resize."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nocopy.memory.dtype import DType
from nocopy.tape.ops import REDUCE
from tests.device.arena import Arena, Batch
from tests.device.values import REAL, normal

F32, F16, BF16, I32, U8 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.U8

ROWS = [1, 2, 5, 31, 32, 33, 64, 127, 255, 256, 257, 1000, 1025, 4096]


@pytest.mark.parametrize("n", ROWS)
def test_row_ops_of_every_length(arena: Arena, n):
    batch = Batch(arena)
    for out, dtype in product(REAL, REAL):
        x = batch.put(normal(n, *((2, 3, n) if n < 1000 else (2, 1, n)), scale=2), dtype)
        across = batch.put(normal(n + 1, 3, n), dtype, order=(1, 0))  # rows that lie across memory
        for t in (x, across):
            for function in REDUCE:
                batch.tape.reduce(function, batch.room(t.shape[:-1], out), t)
            batch.tape.softmax(batch.room(t.shape, out), t, 0.7)
            weight, bias = batch.put(normal(1, n), out), batch.put(normal(2, n), dtype)
            batch.tape.rmsnorm(batch.room(t.shape, out), t, weight, 1e-6)
            batch.tape.rmsnorm(batch.room(t.shape, out), t, None)
            for w, b in product((weight, None), (bias, None)):
                batch.tape.layernorm(batch.room(t.shape, out), t, w, b)
    batch.judge()


def test_rows_with_special_values(arena: Arena):
    batch = Batch(arena)
    rows = normal(1, 8, 50)
    rows[0, 3], rows[1, 4], rows[2, 5], rows[3, ::2], rows[4], rows[5, 0] = (
        np.nan,
        np.inf,
        -np.inf,
        -np.inf,
        -np.inf,
        -0.0,
    )
    rows[6], rows[7, 7], rows[7, 8] = 5.0, np.inf, -np.inf
    for out, dtype in product(REAL, REAL):
        x = batch.put(rows, dtype)
        for function in REDUCE:
            batch.tape.reduce(function, batch.room((8,), out), x)
        batch.tape.softmax(batch.room((8, 50), out), x)
        batch.tape.rmsnorm(batch.room((8, 50), out), x, None)
        batch.tape.layernorm(batch.room((8, 50), out), x)
        batch.tape.argmax(batch.room((8,), I32), x)
        batch.tape.topk(batch.room((8, 9), out), batch.room((8, 9), I32), x)
    batch.judge()


def test_softmax_of_large_scores_does_not_overflow(arena: Arena):
    batch = Batch(arena)
    x = batch.put(1000 + normal(1, 4, 100, scale=50))
    batch.tape.softmax(batch.room((4, 100)), x)
    batch.tape.softmax(batch.room((4, 100)), x, -10.0)
    batch.judge()


def test_layernorm_far_from_zero_does_not_cancel(arena: Arena):
    """The variance of 4096 + u, u in [0, 1): its square loses all of u in f32."""
    batch = Batch(arena)
    for n in (64, 300, 1024):
        x = batch.put(4096 + np.random.default_rng(n).random((3, n)))
        batch.tape.layernorm(batch.room((3, n)), x)
    batch.judge()


def test_sums_of_nothing_are_zero(arena: Arena):
    batch = Batch(arena)
    for dtype in REAL:
        batch.tape.reduce("sum", batch.room((3, 5), dtype), batch.put(np.zeros((3, 5, 0)), dtype))
        batch.tape.matmul(batch.room((3, 5), dtype), batch.put(np.zeros((3, 0))), batch.put(np.zeros((0, 5))))
    batch.judge()


@pytest.mark.parametrize("n", [1, 2, 33, 64, 257, 2000])
def test_argmax_and_topk(arena: Arena, n):
    batch = Batch(arena)
    for dtype, k in product(REAL, {min(k, n) for k in (1, 2, 7, 40, 257)}):
        values = np.random.default_rng(n).integers(0, max(2, n // 3), (3, n))  # many ties
        for order in ((0, 1), (1, 0)):
            x = batch.put(values, dtype, order=order)
            batch.tape.argmax(batch.room((3,), I32), x)
            batch.tape.topk(batch.room((3, k), F32, order=order), batch.room((3, k), I32, gap=2), x)
    nothing = batch.put(np.full((2, n), np.nan))
    batch.tape.argmax(batch.room((2,), I32), nothing)
    batch.tape.topk(batch.room((2, 1), F16), batch.room((2, 1), I32), nothing)
    batch.judge()


def test_gather_clamps_indices_and_keeps_bits(arena: Arena):
    batch = Batch(arena)
    indices = batch.put([0, -1, 5, 6, 7, 2**31 - 1, -(2**31), 3], I32, gap=3)
    for out, dtype in product(REAL, REAL):
        table = (
            batch.room((7, 33), dtype, order=(1, 0)) if out == dtype else batch.put(normal(1, 7, 33), dtype)
        )
        batch.tape.gather(batch.room((8, 33), out), table, indices)
        batch.tape.gather(batch.room((8, 33), out, order=(1, 0)), table, indices)
    batch.judge()


@pytest.mark.parametrize(
    "sizes",
    [
        ((7, 5), (7, 5)),
        ((7, 5), (13, 21)),
        ((16, 16), (4, 7)),
        ((1, 1), (5, 3)),
        ((3, 9), (1, 1)),
        ((2, 300), (300, 2)),
    ],
)
def test_resize(arena: Arena, sizes):
    batch, (have, want) = Batch(arena), sizes
    for (out, dtype), order in product(product(REAL, REAL), ((0, 1, 2, 3), (0, 2, 3, 1))):
        x = batch.put(normal(1, 2, 3, *have), dtype, order=order)
        batch.tape.resize(batch.room((2, 3, *want), out, order=order), x)
    batch.judge()
