"""Element types: one table that the tape, the C header, the shaders and the docs agree on."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError


class DType(IntEnum):
    """Element type of a tensor, as it is numbered in tape records."""

    NONE = 0  # an optional operand that is absent
    F32 = 1
    F16 = 2
    BF16 = 3
    I32 = 4
    U8 = 5
    # Blocks of weights that share scales, as GGUF stores them; only some operands of some ops may be these.
    Q8_0 = 16
    Q4_0 = 17
    Q4_K = 18
    Q5_K = 19
    Q6_K = 20

    @property
    def itemsize(self) -> int:
        """Bytes per element; for a block type, bytes per block."""
        if self in BLOCKS:
            return BLOCKS[self][1]
        return 0 if self is DType.NONE else NUMPY[self].itemsize

    @property
    def block(self) -> int:
        """Elements per block; 1 for every type that is not a block type."""
        return BLOCKS[self][0] if self in BLOCKS else 1

    @property
    def alignment(self) -> int:
        """Bytes that an operand's offset must be a multiple of. Blocks begin or end with an f16 scale."""
        return 2 if self in BLOCKS else self.itemsize

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype with the same bytes (`ml_dtypes.bfloat16` for BF16)."""
        return NUMPY[self]

    @property
    def is_float(self) -> bool:
        """True for F32, F16 and BF16."""
        return self in FLOATS

    @classmethod
    def of(cls, value: DType | npt.DTypeLike) -> DType:
        """Return the DType for a name such as "bf16" or a NumPy dtype.

        Raises:
            UsageError: the type has no counterpart on a tape.
        """
        if isinstance(value, DType):
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        try:
            wanted = np.dtype(value)
        except TypeError:
            wanted = None
        for dtype, numpy in NUMPY.items():
            if wanted == numpy:
                return dtype
        names = ", ".join(d.name.lower() for d in NUMPY)
        raise UsageError(f"dtype {value!r} was asked for; a tensor holds one of {names}")


NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.I32: np.dtype(np.int32),
    DType.U8: np.dtype(np.uint8),
}
BLOCKS: dict[DType, tuple[int, int]] = {
    DType.Q8_0: (32, 34),
    DType.Q4_0: (32, 18),
    DType.Q4_K: (256, 144),
    DType.Q5_K: (256, 176),
    DType.Q6_K: (256, 210),
}
"""Elements and bytes of a block. The layouts are in `tape/quant.py`."""
FLOATS = frozenset({DType.F32, DType.F16, DType.BF16})
ALL = frozenset(NUMPY)
QUANTISED = frozenset(BLOCKS)
