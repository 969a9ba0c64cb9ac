"""f32 to the bytes of a weight; Q8_0 and Q4_0 are made by `tape/blocks.py`."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nocopy.errors import UnsupportedModelError, UsageError
from nocopy.models.ggml import DENSE, DTYPES, GGMLType
from nocopy.tape import blocks

ENCODABLE: Final = (GGMLType.Q8_0, GGMLType.Q4_0)
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
    if kind not in ENCODABLE:
        names = ", ".join(t.name for t in (*DENSE, *ENCODABLE))
        raise UnsupportedModelError(f"quantising to {kind.name} was asked for; use one of {names}")
    if values.ndim == 0 or values.shape[-1] % kind.block_elements:
        raise UsageError(
            f"quantising shape {values.shape} to {kind.name} was asked for;"
            f" its last axis must be a multiple of {kind.block_elements}"
        )
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, kind.block_elements)
    if not np.isfinite(rows).all():
        raise UsageError(f"quantising to {kind.name} was asked for; the values hold NaN or infinity")
    return blocks.encode(rows, DTYPES[kind]).view(np.uint8).reshape(-1)
