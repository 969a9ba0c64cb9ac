"""Conformance of the element-wise ops: conversions, functions, broadcasting, layouts, in place."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nocopy.memory.dtype import ALL, DType
from nocopy.tape import Tensor
from nocopy.tape.ops import BINARY, UNARY
from tests.device.arena import Arena, Batch
from tests.device.values import REAL, SPECIAL, normal, whole

F32, F16, BF16, I32, U8 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.U8


def test_copy_converts_between_all_dtypes(arena: Arena):
    batch = Batch(arena)
    integers = np.array(
        [-(2**31), -(2**24) - 1, -256, -1, 0, 1, 254, 255, 256, 65519, 65520, 2**24 + 1, 2**31 - 1]
    )
    halves = np.arange(-300.5, 300.5, 0.25)
    for out, x in product(sorted(ALL), sorted(ALL)):
        values = integers % 256 if x is U8 else integers if x is I32 else np.concatenate([SPECIAL, halves])
        source = batch.put(values.astype(np.float64), x)
        batch.tape.copy(batch.room(source.shape, out), source)
    batch.judge()


@pytest.mark.parametrize("dtype", sorted(ALL), ids=lambda d: d.name)
def test_copy_keeps_every_bit_of_the_same_dtype(arena: Arena, dtype):
    batch = Batch(arena)
    noise = batch.room((7, 33, 5), dtype)  # NaN payloads, subnormals
    batch.tape.copy(batch.room((7, 33, 5), dtype), noise)
    batch.tape.copy(batch.room((33, 5, 7), dtype, order=(2, 0, 1)), Tensor(
        noise.space, noise.offset, (33, 5, 7), dtype, (noise.strides[1], noise.strides[2], noise.strides[0])
    ))  # fmt: skip
    batch.judge()


@pytest.mark.parametrize("wide", [F16, BF16], ids=lambda d: d.name)
def test_copy_widens_every_16_bit_float(arena: Arena, wide):
    batch = Batch(arena)
    x = batch.put(np.arange(65536, dtype=np.uint16).view(wide.numpy), wide)
    for out in (F32, I32, U8, F16 if wide is BF16 else BF16):
        batch.tape.copy(batch.room((65536,), out), x)
    batch.judge()


@pytest.mark.parametrize("narrow", [F16, BF16], ids=lambda d: d.name)
def test_copy_rounds_every_midpoint_to_even(arena: Arena, narrow):
    finite = np.arange(65536, dtype=np.uint16).view(narrow.numpy).astype(np.float32)
    finite = np.unique(finite[np.isfinite(finite)])
    middle = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    batch = Batch(arena)
    for values in (
        middle,
        np.nextafter(middle, np.float32(np.inf)),
        np.nextafter(middle, -np.float32(np.inf)),
    ):
        batch.tape.copy(batch.room(values.shape, narrow), batch.put(values))
    batch.judge()


@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, -3.5, 300.0, 1e5, 1e-40, np.inf, -np.inf, np.nan])
def test_fill_converts_to_every_dtype(arena: Arena, value):
    batch = Batch(arena)
    for dtype in sorted(ALL):
        batch.tape.fill(batch.room((3, 7), dtype, order=(1, 0), gap=2), value)
        batch.tape.fill(batch.room((67,), dtype), value)
        batch.tape.fill(batch.room((), dtype), value)
    batch.judge()


@pytest.mark.parametrize("function", UNARY)
def test_unary(arena: Arena, function):
    batch = Batch(arena)
    values = np.concatenate([SPECIAL, normal(1, 200, scale=4), np.linspace(-12, 12, 193, dtype=np.float32)])
    for out, x in product(REAL, REAL):
        batch.tape.unary(function, batch.room(values.shape, out), batch.put(values, x))
    batch.judge()


@pytest.mark.parametrize("function", BINARY)
def test_binary(arena: Arena, function):
    batch = Batch(arena)
    a = np.concatenate([SPECIAL, normal(2, 13, scale=3)])
    b = np.concatenate([SPECIAL, normal(3, 9, scale=3)])
    for out, x, y in product(REAL, REAL, REAL):
        operands = batch.put(a[:, None], x), batch.put(b, y)
        batch.tape.binary(function, batch.room((len(a), len(b)), out), *operands)
    batch.judge()


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (1.0, -1.0), (-np.inf, np.inf), (-65536.0, 1e30), (2.5, 2.5)]
)
def test_clamp(arena: Arena, low, high):
    batch = Batch(arena)
    for out, x in product(REAL, REAL):
        batch.tape.clamp(batch.room(SPECIAL.shape, out), batch.put(SPECIAL, x), low, high)
    batch.judge()


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 4, 5), (2, 3, 4, 5), (5,)),
        ((2, 3, 4, 5), (2, 1, 4, 1), (3, 1, 5)),
        ((3, 2, 1, 7), (3, 1, 1, 1), (1, 2, 1, 7)),
        ((1, 1, 257, 1), (1,), (257, 1)),
        ((4, 5), (1, 1), (4, 1)),
        ((129,), (1,), (129,)),
        ((), (), ()),
    ],
)
def test_broadcasting(arena: Arena, shapes):
    batch, (out, a, b) = Batch(arena), shapes
    for dtype in REAL:
        batch.tape.binary(
            "sub", batch.room(out, dtype), batch.put(whole(1, *a), dtype), batch.put(whole(2, *b), dtype)
        )
        batch.tape.copy(batch.room(out, dtype), batch.put(whole(3, *a), dtype))
    batch.judge()


def test_any_order_of_axes_with_and_without_gaps(arena: Arena):
    batch, shape = Batch(arena), (3, 4, 5, 6)
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2), (2, 3, 0, 1), (0, 2, 3, 1)]
    for n, (x, out) in enumerate(product(orders, orders)):
        source = batch.put(normal(n, *shape), REAL[n % 3], order=x, gap=1 + n % 2)
        batch.tape.unary("neg", batch.room(shape, REAL[n // 3 % 3], order=out, gap=1 + n // 2 % 2), source)
    batch.judge()


def test_inputs_may_overlap_and_be_the_same(arena: Arena):
    batch = Batch(arena)
    x = batch.put(normal(1, 64))
    window = Tensor(x.space, x.offset, (8, 32), F32, (3, 1))
    batch.tape.binary("mul", batch.room((64,)), x, x)
    batch.tape.unary("square", batch.room((8, 32)), window)
    batch.tape.matmul(batch.room((8, 8)), window, Tensor(x.space, x.offset, (32, 8), F32, (1, 3)))
    batch.judge()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 255, 257, 1000, 4097])
def test_tails_at_every_alignment(arena: Arena, size):
    batch = Batch(arena)
    for dtype in REAL:
        for _ in range(4):  # `room` moves on by an odd number of elements each time
            batch.tape.binary(
                "add", batch.room((size,), dtype), *(batch.put(normal(i, size), dtype) for i in (1, 2))
            )
            batch.tape.copy(batch.room((size,), dtype), batch.put(normal(3, size), dtype))
    for dtype in (U8, I32):
        batch.tape.copy(batch.room((size,), dtype), batch.put(np.arange(size) % 200, dtype))
    batch.judge()


def test_elementwise_ops_in_place(arena: Arena):
    batch = Batch(arena)
    for dtype in REAL:

        def x(dtype=dtype):
            return batch.put(normal(len(batch.tape), 5, 37), dtype, order=(1, 0), gap=2)

        for function in UNARY:
            t = x()
            batch.tape.unary(function, t, t)
        for function in BINARY:
            t, u, v = x(), x(), x()
            batch.tape.binary(function, t, t, x())
            batch.tape.binary(function, u, x(), u)
            batch.tape.binary(function, v, v, v)
        t, u, v, w, y = x(), x(), x(), x(), x()
        weight = batch.put(normal(1, 37), dtype)
        batch.tape.copy(t, t)
        batch.tape.clamp(u, u, -0.5, 0.5)
        batch.tape.softmax(v, v, 0.5)
        batch.tape.rmsnorm(w, w, weight)
        batch.tape.layernorm(y, y, weight, weight)
    batch.judge()
