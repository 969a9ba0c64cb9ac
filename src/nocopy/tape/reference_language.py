"""The reference's meaning of the ops that language models add: rope, scatter, attention.

Part of `tape/reference.py`, which says how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from nocopy.memory.dtype import DType
from nocopy.tape import blocks
from nocopy.tape.arrays import F32, Array, convert, f32, slices, store


def rope(operands: list[Any], p: Mapping[str, Any]) -> None:
    """Turn pairs of each head."""
    out, x, frequencies, positions = operands
    if not out.size:
        return
    x, f = f32(x), len(frequencies)
    angle = (positions.astype(np.float32)[:, None] * frequencies)[:, None, :]
    cos, sin = np.float32(p["scale"]) * np.cos(angle), np.float32(p["scale"]) * np.sin(angle)
    interleaved = p["function"] == "interleaved"
    first, second = (slice(0, 2 * f, 2), slice(1, 2 * f, 2)) if interleaved else (slice(f), slice(f, 2 * f))
    a, b = x[..., first], x[..., second]
    y = x.copy()
    y[..., first] = a * cos - b * sin
    y[..., second] = a * sin + b * cos
    store(out, y)


def scatter(operands: list[Any], _p: Mapping[str, Any]) -> None:
    """Put rows; of an index that comes twice, the last one stays."""
    out, x, indices = operands
    if not x.size:
        return
    for some in slices(len(x), x.shape[1]):
        inside = (indices[some] >= 0) & (indices[some] < len(out))
        rows, places = x[some][inside], indices[some][inside]
        if out.dtype == blocks.LAYOUTS[DType.Q8_0]:
            out[places] = blocks.encode(f32(rows), DType.Q8_0)
        else:
            out[places] = convert(rows, out.dtype)


def attention(operands: list[Any], p: Mapping[str, Any]) -> None:
    """Attend, one head of one query at a time."""
    out, q, k, v, last = operands
    group = q.shape[1] // k.shape[1]
    for r, h in product(range(out.shape[0]), range(out.shape[1])):
        stop = min(int(last[r]) + 1, len(k))
        start = max(0, stop - p["window"]) if p["window"] else 0
        if stop <= start:
            out[r, h] = 0
            continue
        seen = k[start:stop, h // group], v[start:stop, h // group]
        store(out[r, h], _weighted_mean(f32(q[r, h]), *seen, p))


def _weighted_mean(q: F32, k: Array, v: Array, p: Mapping[str, Any]) -> F32:
    """The mean of v [t,n] weighted by softmax of the scores of k [t,n]; some tokens at a time."""
    top, total, y = np.float32(-np.inf), np.float32(0), np.zeros(q.shape, np.float32)
    for some in slices(len(k), q.size):
        scores = np.float32(p["scale"]) * (f32(k[some]) @ q)
        if p["softcap"]:
            scores = np.float32(p["softcap"]) * np.tanh(scores / np.float32(p["softcap"]))
        before, top = top, np.maximum(top, scores.max())
        e, fade = np.exp(scores - top), np.exp(before - top)
        total = total * fade + e.sum()
        y = y * fade + e @ f32(v[some])
    return y / total
