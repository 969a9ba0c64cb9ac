"""Quantised blocks to f32, in NumPy: the meaning of every block layout in `ggml.BLOCKS`.

Let y be the elements of one block in order, and nibble(b) the low then the high half of bytes b.

    Q8_0   y[i]        = d * qs[i]                                             i in 0..31
    Q4_0   y[i]        = d * ((qs[i] & 15) - 8),  y[16 + i] = d * ((qs[i] >> 4) - 8)   i in 0..15
    Q4_K   y[32 j + i] = d * sc[j] * q - dmin * m[j];  q = nibble j%2 of qs[32 (j/2) + i]   j in 0..7
    Q5_K   as Q4_K with q + 16 * bit j of qh[i]
    Q6_K   y[16 j + i] = d * scales[j] * (q - 32);  q = 4 bits of ql, 2 bits of qh (see the function)

Q4_K and Q5_K pack the eight 6-bit scales sc and minima m into 12 bytes: bytes 0..3 hold sc[0..3] and bytes
4..7 m[0..3] in their low 6 bits; byte 8 + j holds the low nibbles of sc[4 + j] and m[4 + j]; the two top
bits of those lie in the two top bits of bytes j and 4 + j.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError
from nocopy.models.ggml import BLOCKS, DENSE, GGMLType, require_supported

F32: TypeAlias = npt.NDArray[np.float32]
Blocks: TypeAlias = npt.NDArray[Any]  # a structured dtype, or fields of it


def dequantize(raw: npt.NDArray[np.uint8], kind: GGMLType, shape: Sequence[int]) -> F32:
    """Decode the bytes of a weight.

    Args:
        raw: u8, contiguous; the tensor's bytes, as `Weights.raw` gives them.
        kind: what they hold.
        shape: outermost axis first; the last axis is a multiple of the type's block.

    Returns:
        f32 [shape], newly allocated.

    Raises:
        UnsupportedModelError: the type is known but cannot be decoded here.
        UsageError: the bytes are not as many as the shape needs.
    """
    require_supported(kind, "a tensor to dequantise")
    elements = prod(shape)
    if raw.size != kind.nbytes(elements) or elements % kind.block_elements:
        raise UsageError(
            f"dequantising {kind.name} {tuple(shape)} was asked for; that is {elements} elements in"
            f" {kind.nbytes(elements)} bytes and {raw.size} bytes were given"
        )
    if kind in DENSE:
        return raw.view(DENSE[kind]).astype(np.float32).reshape(shape)
    return DECODERS[kind](raw.view(BLOCKS[kind])).reshape(shape)


def _scale(blocks: Blocks, field: str = "d") -> F32:
    return blocks[field].astype(np.float32)


def _q8_0(blocks: Blocks) -> F32:
    return _scale(blocks)[:, None] * blocks["qs"].astype(np.float32)


def _q4_0(blocks: Blocks) -> F32:
    qs = blocks["qs"]
    quants = np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int8) - np.int8(8)
    return _scale(blocks)[:, None] * quants.astype(np.float32)


def _scales_and_minima(packed: npt.NDArray[np.uint8]) -> tuple[F32, F32]:
    """Unpack u8 [n, 12] into two f32 [n, 8] of values 0 to 63."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _affine(blocks: Blocks, quants: Blocks) -> F32:
    """Quants u8 [n, 8, 32] to d * scale * q - dmin * minimum."""
    scales, minima = _scales_and_minima(blocks["scales"])
    scale: Blocks = _scale(blocks)[:, None] * scales
    offset: Blocks = _scale(blocks, "dmin")[:, None] * minima
    return scale[:, :, None] * quants.astype(np.float32) - offset[:, :, None]


def _nibbles(qs: Blocks) -> Blocks:
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


DECODERS: Final[dict[GGMLType, Callable[[Blocks], F32]]] = {
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
}
