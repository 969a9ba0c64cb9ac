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

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 0 if self is DType.NONE else NUMPY[self].itemsize

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
FLOATS = frozenset({DType.F32, DType.F16, DType.BF16})
ALL = frozenset(NUMPY)
