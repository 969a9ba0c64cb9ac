"""Conformance of matmul and conv2d."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nocopy.memory.dtype import DType
from tests.device.arena import Arena, Batch
from tests.device.values import REAL, normal, whole

F32, F16, BF16, I32, U8 = DType.F32, DType.F16, DType.BF16, DType.I32, DType.U8

SIZES = [
    (1, 1, 1), (1, 64, 7), (7, 64, 1), (2, 3, 5), (17, 33, 65), (64, 64, 64), (65, 16, 63), (128, 1, 129),
    (5, 300, 6), (1, 257, 130), (33, 0, 4),
]  # fmt: skip
"""m, k, n"""


@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_matmul_of_every_dtype(arena: Arena, size):
    batch, (m, k, n) = Batch(arena), size
    for out, a, b in product(REAL, REAL, REAL):
        x, y = batch.put(normal(1, m, k), a), batch.put(normal(2, k, n), b)
        batch.tape.matmul(batch.room((m, n), out), x, y, 0.5)
    batch.judge()


@pytest.mark.parametrize("transposed", list(product((False, True), repeat=3)))
def test_matmul_of_transposed_views(arena: Arena, transposed):
    """Each operand row-major or column-major, with and without gaps."""
    batch = Batch(arena)
    orders = [(1, 0) if t else (0, 1) for t in transposed]
    for (m, k, n), gap in product([(3, 4, 5), (33, 20, 18), (64, 32, 64), (1, 40, 70), (70, 40, 1)], (1, 2)):
        a = batch.put(whole(1, m, k), F32, order=orders[0], gap=gap)
        b = batch.put(whole(2, k, n), F16, order=orders[1])
        batch.tape.matmul(batch.room((m, n), F32, order=orders[2], gap=gap), a, b)
    batch.judge()


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3, 4, 5), (2, 3, 4, 6), (2, 3, 6, 5)),
        ((2, 3, 4, 5), (3, 4, 6), (6, 5)),
        ((4, 2, 2), (1, 2, 9), (4, 9, 2)),
        ((5, 1, 7, 1), (5, 1, 7, 3), (1, 3, 1)),
    ],
)
def test_batched_matmul(arena: Arena, shapes):
    batch, (out, a, b) = Batch(arena), shapes
    for dtype in REAL:
        x, y = batch.put(normal(1, *a), dtype), batch.put(normal(2, *b), dtype)
        batch.tape.matmul(batch.room(out, dtype), x, y)
        heads_last = (0, 2, 1, 3) if len(out) == 4 else tuple(range(len(out)))
        batch.tape.matmul(batch.room(out, dtype, order=heads_last), x, y, -2.0)
    batch.judge()


def test_matmul_passes_nan_and_infinity_on(arena: Arena):
    batch = Batch(arena)
    a, b = whole(1, 6, 40), whole(2, 40, 5)
    a[1, 3], a[2, 4], b[7, 2] = np.nan, np.inf, -np.inf
    batch.tape.matmul(batch.room((6, 5)), batch.put(a), batch.put(b))
    batch.tape.matmul(batch.room((6, 5), F16), batch.put(a * 1000), batch.put(b * 1000))  # beyond f16
    batch.judge()


CONVS = [
    # n, groups, cg, o, (h, w), (kh, kw), (oh, ow), stride, pad, dilation
    (1, 1, 3, 8, (9, 11), (3, 3), (9, 11), (1, 1), (1, 1), (1, 1)),
    (2, 1, 4, 5, (8, 8), (1, 1), (8, 8), (1, 1), (0, 0), (1, 1)),
    (2, 4, 1, 4, (10, 7), (3, 3), (5, 4), (2, 2), (1, 1), (1, 1)),
    (1, 2, 3, 4, (12, 12), (2, 3), (4, 3), (3, 4), (0, 2), (2, 1)),
    (3, 1, 2, 3, (5, 6), (5, 6), (1, 1), (1, 1), (0, 0), (1, 1)),
    (1, 1, 1, 1, (3, 3), (3, 3), (9, 9), (1, 1), (5, 5), (2, 2)),  # windows that lie wholly outside
    (1, 1, 2, 2, (0, 4), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),  # no image at all: the bias
    (1, 1, 2, 2, (4, 4), (0, 3), (2, 2), (1, 1), (0, 0), (1, 1)),  # no kernel: the bias
    (1, 1, 2, 1, (4, 4), (2, 2), (3, 3), (65535, 65535), (65535, 65535), (65535, 65535)),
]


@pytest.mark.parametrize("case", CONVS)
def test_conv2d(arena: Arena, case):
    n, groups, cg, o, image, kernel, out, stride, pad, dilation = case
    batch = Batch(arena)
    for nhwc, (d_out, dtype, d_weight), biased in product(
        (False, True), zip(REAL, REAL[1:] + REAL, REAL[2:] + REAL, strict=False), (False, True)
    ):
        order = (0, 2, 3, 1) if nhwc else (0, 1, 2, 3)
        x = batch.put(normal(1, n, groups * cg, *image), dtype, order=order)
        w = batch.put(normal(2, o, cg, *kernel), d_weight, order=order)
        bias = batch.put(normal(3, o), dtype) if biased else None
        y = batch.room((n, o, *out), d_out, order=order)
        batch.tape.conv2d(y, x, w, bias, stride=stride, pad=pad, dilation=dilation)
    batch.judge()
