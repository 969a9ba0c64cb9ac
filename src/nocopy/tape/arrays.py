"""Strided arrays of a tape's dtypes, for the reference: f32 of them, conversion, decoded blocks.

Strides can name far more elements than there are bytes. What is made here stays within a small multiple of
the bytes that an operand spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from nocopy.memory.dtype import DType
from nocopy.tape import blocks

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

BLOCK = 2**24
"""Elements of a temporary that repeats its input: 64 MiB of f32."""


def f32(x: Array) -> F32:
    """X as f32. What overlaps in memory is converted once and overlaps again in the result."""
    if x.dtype == np.float32:
        return x
    span = reach(x)
    if x.size <= span:
        return x.astype(np.float32)
    flat = as_strided(x, (span,), (x.itemsize,)).astype(np.float32)
    return as_strided(flat, x.shape, [step // x.itemsize * 4 for step in x.strides])


def reach(x: Array) -> int:
    """Elements from the first to the last in memory, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(x.shape, x.strides, strict=True)) // x.itemsize


def slices(size: int, rows: int) -> Iterator[slice]:
    """Slices of an axis that is `size` long, each naming about BLOCK elements over `rows` rows."""
    step = max(1, BLOCK // max(1, rows))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def convert(x: Array, dtype: np.dtype[Any]) -> Array:
    """Convert as a tape does: to an integer half to even, saturating, NaN to 0; else through f32."""
    if x.dtype == dtype:
        return x
    if dtype.kind in "iu":
        if x.dtype.kind in "iu":
            wide = x.astype(np.int64)
        else:
            wide = np.nan_to_num(np.rint(f32(x)), nan=0.0, posinf=3e9, neginf=-3e9).astype(np.float64)
        limits = np.iinfo(dtype)
        return np.clip(wide, limits.min, limits.max).astype(dtype)
    return f32(x).astype(dtype)


def store(out: Array, value: Array) -> None:
    """Write values over an output, converted to its dtype."""
    out[...] = convert(value, out.dtype)


def decoded(view: Array, dtype: DType, along: int) -> F32:
    """Blocks that lie along an axis, as f32. What overlaps is decoded once and overlaps again."""
    span = reach(view) if view.size else 0
    if view.size <= span:
        return np.moveaxis(blocks.decode(np.moveaxis(view, along, -1), dtype), -1, along)
    flat = blocks.decode(as_strided(view, (span,), (dtype.itemsize,)), dtype)
    shape = [size * (dtype.block if axis == along else 1) for axis, size in enumerate(view.shape)]
    steps = [step // dtype.itemsize * (4 if axis == along else 4 * dtype.block)
             for axis, step in enumerate(view.strides)]  # fmt: skip
    return as_strided(flat, shape, steps)
