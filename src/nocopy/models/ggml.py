"""Types of weights, numbered as GGUF numbers them; what a block means is in `tape/blocks.py`."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import ml_dtypes
import numpy as np

from nocopy.errors import UnsupportedModelError
from nocopy.memory.dtype import DType


class GGMLType(IntEnum):
    """Type of a weight. The numbers are GGUF's; those missing were withdrawn from the format."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39

    @property
    def block_elements(self) -> int:
        """Elements in a block; 1 for types that are not quantised."""
        return SIZES[self][0]

    @property
    def block_nbytes(self) -> int:
        """Bytes in a block."""
        return SIZES[self][1]

    @property
    def is_quantized(self) -> bool:
        """Whether elements come in blocks."""
        return SIZES[self][0] > 1

    @property
    def supported(self) -> bool:
        """Whether weights of this type can be dequantised here."""
        return self in DTYPES or self in DENSE

    def nbytes(self, elements: int) -> int:
        """Bytes of so many elements, a multiple of `block_elements`."""
        return elements // self.block_elements * self.block_nbytes


SIZES: Final[dict[GGMLType, tuple[int, int]]] = {
    GGMLType.F32: (1, 4), GGMLType.F16: (1, 2), GGMLType.BF16: (1, 2), GGMLType.F64: (1, 8),
    GGMLType.I8: (1, 1), GGMLType.I16: (1, 2), GGMLType.I32: (1, 4), GGMLType.I64: (1, 8),
    GGMLType.Q4_0: (32, 18), GGMLType.Q4_1: (32, 20), GGMLType.Q5_0: (32, 22), GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34), GGMLType.Q8_1: (32, 40),
    GGMLType.Q2_K: (256, 84), GGMLType.Q3_K: (256, 110), GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176), GGMLType.Q6_K: (256, 210), GGMLType.Q8_K: (256, 292),
    GGMLType.IQ1_S: (256, 50), GGMLType.IQ1_M: (256, 56), GGMLType.IQ2_XXS: (256, 66),
    GGMLType.IQ2_XS: (256, 74), GGMLType.IQ2_S: (256, 82), GGMLType.IQ3_XXS: (256, 98),
    GGMLType.IQ3_S: (256, 110), GGMLType.IQ4_NL: (32, 18), GGMLType.IQ4_XS: (256, 136),
    GGMLType.TQ1_0: (256, 54), GGMLType.TQ2_0: (256, 66), GGMLType.MXFP4: (32, 17),
}  # fmt: skip
"""(elements, bytes) of a block of every type that a file may hold, so that every tensor can be bounded."""

DENSE: Final[dict[GGMLType, np.dtype[Any]]] = {
    GGMLType.F32: np.dtype("<f4"),
    GGMLType.F16: np.dtype("<f2"),
    GGMLType.BF16: np.dtype(ml_dtypes.bfloat16),
    GGMLType.F64: np.dtype("<f8"),
    GGMLType.I8: np.dtype("i1"),
    GGMLType.I16: np.dtype("<i2"),
    GGMLType.I32: np.dtype("<i4"),
    GGMLType.I64: np.dtype("<i8"),
}
"""Types whose elements NumPy reads where they lie."""

DTYPES: Final[dict[GGMLType, DType]] = {
    GGMLType.F32: DType.F32,
    GGMLType.F16: DType.F16,
    GGMLType.BF16: DType.BF16,
    GGMLType.Q8_0: DType.Q8_0,
    GGMLType.Q4_0: DType.Q4_0,
    GGMLType.Q4_K: DType.Q4_K,
    GGMLType.Q5_K: DType.Q5_K,
    GGMLType.Q6_K: DType.Q6_K,
}
"""Types that kernels read, and what a tape calls them."""


def require_supported(kind: GGMLType, what: str) -> None:
    """Refuse a type that is known but has no meaning here.

    Raises:
        UnsupportedModelError: naming the type and those that would do.
    """
    if not kind.supported:
        names = ", ".join(t.name for t in dict.fromkeys((*DENSE, *DTYPES)))
        raise UnsupportedModelError(
            f"{what} has type {kind.name}, which nothing here can compute with;"
            f" use a file whose weights are of {names}"
        )
