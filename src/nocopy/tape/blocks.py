"""Block types: their layouts, their meaning in f32, and how Q8_0 and Q4_0 are made from f32.

A quantised row is a run of blocks. `LAYOUTS` gives each block as a NumPy structured dtype, little endian,
fields in file order; they are GGUF's. Let y be the elements of one block in order, and nibble(b) the low then
the high half of bytes b.

    Q8_0   y[i]        = d * qs[i]                                             i in 0..31
    Q4_0   y[i]        = d * ((qs[i] & 15) - 8),  y[16 + i] = d * ((qs[i] >> 4) - 8)   i in 0..15
    Q4_K   y[32 j + i] = d * sc[j] * q - dmin * m[j];  q = nibble j%2 of qs[32 (j/2) + i]   j in 0..7
    Q5_K   as Q4_K with q + 16 * bit j of qh[i]
    Q6_K   y[16 j + i] = d * scales[j] * (q - 32);  q = 4 bits of ql, 2 bits of qh (see the function)

Q4_K and Q5_K pack the eight 6-bit scales sc and minima m into 12 bytes: bytes 0..3 hold sc[0..3] and bytes
4..7 m[0..3] in their low 6 bits; byte 8 + j holds the low nibbles of sc[4 + j] and m[4 + j]; the two top
bits of those lie in the two top bits of bytes j and 4 + j.

Encoding rounds as the format's own tools do, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nocopy.memory.dtype import DType

F32: TypeAlias = npt.NDArray[np.float32]
Blocks: TypeAlias = npt.NDArray[Any]
Quants: TypeAlias = npt.NDArray[Any]

LAYOUTS: Final[dict[DType, np.dtype[Any]]] = {
    DType.Q8_0: np.dtype([("d", "<f2"), ("qs", "i1", 32)]),
    DType.Q4_0: np.dtype([("d", "<f2"), ("qs", "u1", 16)]),
    DType.Q4_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    DType.Q5_K: np.dtype(
        [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]
    ),
    DType.Q6_K: np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
}
assert all(layout.itemsize == dtype.itemsize for dtype, layout in LAYOUTS.items())


def decode(blocks: Blocks, dtype: DType) -> F32:
    """Decode blocks.

    Args:
        blocks: an array of `LAYOUTS[dtype]`, of any shape and strides.
        dtype: a block type.

    Returns:
        f32 [..., elements]: the last axis of `blocks` times the elements of a block.
    """
    flat = DECODERS[dtype](np.ascontiguousarray(blocks).reshape(-1))
    return flat.reshape(*blocks.shape[:-1], blocks.shape[-1] * dtype.block)


def encode(values: F32, dtype: DType) -> Blocks:
    """Encode f32 [..., elements] to an array of `LAYOUTS[dtype]`; the inverse of `decode`, for Q8_0 and Q4_0.

    The last axis is a multiple of the block; values are finite.
    """
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, dtype.block)
    return ENCODERS[dtype](rows).reshape(*values.shape[:-1], values.shape[-1] // dtype.block)


def _scale(blocks: Blocks, field: str = "d") -> F32:
    return blocks[field].astype(np.float32)


def _q8_0(blocks: Blocks) -> F32:
    return _scale(blocks)[:, None] * blocks["qs"].astype(np.float32)


def _q4_0(blocks: Blocks) -> F32:
    qs = blocks["qs"]
    quants = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int8) - np.int8(8)
    return _scale(blocks)[:, None] * quants.astype(np.float32)


def _scales_and_minima(packed: Quants) -> tuple[F32, F32]:
    """Unpack u8 [n, 12] into two f32 [n, 8] of values 0 to 63."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _affine(blocks: Blocks, quants: Quants) -> F32:
    """Quants u8 [n, 8, 32] to d * scale * q - dmin * minimum."""
    scales, minima = _scales_and_minima(blocks["scales"])
    scale = _scale(blocks)[:, None] * scales
    offset = _scale(blocks, "dmin")[:, None] * minima
    return np.asarray(scale[:, :, None] * quants.astype(np.float32) - offset[:, :, None], np.float32)


def _nibbles(qs: Quants) -> Quants:
    """u8 [n, 128] to u8 [n, 8, 32]: 32 low nibbles, then the 32 high ones, four times."""
    pairs = qs.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return (pairs & 15).reshape(-1, 8, 32)


def _q4_k(blocks: Blocks) -> F32:
    return _affine(blocks, _nibbles(blocks["qs"]))


def _q5_k(blocks: Blocks) -> F32:
    bit = (blocks["qh"][:, None, :] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    return _affine(blocks, _nibbles(blocks["qs"]) | (bit << 4))


def _q6_k(blocks: Blocks) -> F32:
    """Decode two halves of 128 elements; each has 64 bytes of ql and 32 of qh.

    Elements 32 k .. 32 k + 31 of a half (k = 0..3) take nibble k / 2 of ql[32 (k % 2) + i] as their low four
    bits and bits 2 k, 2 k + 1 of qh[i] as their high two.
    """
    ql = blocks["ql"].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    qh = blocks["qh"].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    low = (ql & 15).reshape(-1, 2, 4, 32)
    quants = (low | ((qh & 3) << 4)).reshape(-1, 16, 16).astype(np.int8) - np.int8(32)
    scale = _scale(blocks)[:, None] * blocks["scales"].astype(np.float32)
    return scale[:, :, None] * quants.astype(np.float32)


DECODERS: Final[dict[DType, Callable[[Blocks], F32]]] = {
    DType.Q8_0: _q8_0,
    DType.Q4_0: _q4_0,
    DType.Q4_K: _q4_k,
    DType.Q5_K: _q5_k,
    DType.Q6_K: _q6_k,
}


def _inverse(scale: F32) -> F32:
    """1 / scale, and 0 where the scale is 0: a block of zeros."""
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), 1 / scale)


def _to_q8_0(rows: F32) -> Blocks:
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scaled = rows * _inverse(scale)
    blocks = np.empty(len(rows), LAYOUTS[DType.Q8_0])
    blocks["d"] = scale[:, 0]
    blocks["qs"] = _round_away(scaled).astype(np.int8)
    return blocks


def _round_away(x: F32) -> F32:
    """Round half away from zero, as C's roundf. NumPy's round goes to even; x + 0.5 takes 0.49999997 to 1."""
    whole = np.trunc(x)
    return whole + np.trunc(2 * (x - whole))


def _to_q4_0(rows: F32) -> Blocks:
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)  # the value of largest magnitude, with its sign, becomes -8
    quants = np.trunc(rows * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    blocks = np.empty(len(rows), LAYOUTS[DType.Q4_0])
    blocks["d"] = scale[:, 0]
    blocks["qs"] = quants[:, :16] | (quants[:, 16:] << 4)
    return blocks


ENCODERS: Final[dict[DType, Callable[[F32], Blocks]]] = {DType.Q8_0: _to_q8_0, DType.Q4_0: _to_q4_0}
