"""f32 to Q8_0 and Q4_0 blocks, with the rounding that the format's own tools use, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nocopy.errors import UnsupportedModelError, UsageError
from nocopy.models.ggml import BLOCKS, DENSE, GGMLType

Array = npt.NDArray[Any]


def quantize(values: Array, kind: GGMLType) -> npt.NDArray[np.uint8]:
    """Encode values as a weight's bytes.

    Args:
        values: any float array; its last axis is a multiple of the type's block.
        kind: F32, F16, BF16, Q8_0 or Q4_0.

    Returns:
        u8 [bytes], newly allocated, rows in order.

    Raises:
        UnsupportedModelError: another type.
        UsageError: the last axis does not divide into blocks, or a value is not finite.
    """
    if kind in DENSE:
        return np.frombuffer(np.ascontiguousarray(values, DENSE[kind]).tobytes(), np.uint8)
    if kind not in ENCODERS:
        names = ", ".join(t.name for t in (*DENSE, *ENCODERS))
        raise UnsupportedModelError(f"quantising to {kind.name} was asked for; use one of {names}")
    if values.ndim == 0 or values.shape[-1] % kind.block_elements:
        raise UsageError(
            f"quantising shape {values.shape} to {kind.name} was asked for;"
            f" its last axis must be a multiple of {kind.block_elements}"
        )
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, kind.block_elements)
    if not np.isfinite(rows).all():
        raise UsageError(f"quantising to {kind.name} was asked for; the values hold NaN or infinity")
    return ENCODERS[kind](rows).view(np.uint8).reshape(-1)


def _inverse(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0: a block of zeros."""
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), 1 / scale)


def _q8_0(rows: npt.NDArray[np.float32]) -> Array:
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scaled = rows * _inverse(scale)
    blocks = np.empty(len(rows), BLOCKS[GGMLType.Q8_0])
    blocks["d"] = scale[:, 0]
    # Half away from zero, as C's roundf; NumPy's round goes to even.
    blocks["qs"] = (np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))).astype(np.int8)
    return blocks


def _q4_0(rows: npt.NDArray[np.float32]) -> Array:
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)  # the value of largest magnitude, with its sign, becomes -8
    quants = np.trunc(rows * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    blocks = np.empty(len(rows), BLOCKS[GGMLType.Q4_0])
    blocks["d"] = scale[:, 0]
    blocks["qs"] = quants[:, :16] | (quants[:, 16:] << 4)
    return blocks


ENCODERS: Final[dict[GGMLType, Callable[[npt.NDArray[np.float32]], Array]]] = {
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_0: _q4_0,
}
