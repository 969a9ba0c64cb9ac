"""The op record: 256 bytes, little-endian, the same in Python, C, CUDA and Slang.

    offset  bytes  field
         0      2  version     1
         2      2  opcode      which op (`ops.OPS`)
         4      2  function    which member of the op's family (add, mul, ...); 0 where there is none
         6      2  reserved    0
         8    160  operands    5 x 32: outputs first, then inputs, in the op's order; unused ones all zero
       168     40  dims        10 x u32, in the op's order; unused ones 0
       208     48  params      12 x u32 or f32, in the op's order; unused ones 0

    an operand:
         0      8  offset      bytes from the start of its space
         8      2  dtype       `DType`; 0 marks an optional operand that is absent
        10      2  space       `Space`
        12      4  reserved    0
        16     16  strides     4 x u32, in elements, one for each of the operand's axes; 0 repeats an input

Strides express transposes, slices and broadcasting, so no op needs a flag for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import prod

import numpy as np

from nocopy.errors import UsageError
from nocopy.memory.dtype import DType

VERSION = 1
MAX_OPERANDS = 5
MAX_AXES = 4
MAX_DIMS = 10
MAX_PARAMS = 12

OPERAND = np.dtype(
    [
        ("offset", "<u8"),
        ("dtype", "<u2"),
        ("space", "<u2"),
        ("reserved", "<u4"),
        ("strides", "<u4", (MAX_AXES,)),
    ]
)
RECORD = np.dtype(
    [
        ("version", "<u2"),
        ("opcode", "<u2"),
        ("function", "<u2"),
        ("reserved", "<u2"),
        ("operands", OPERAND, (MAX_OPERANDS,)),
        ("dims", "<u4", (MAX_DIMS,)),
        ("params", "<u4", (MAX_PARAMS,)),
    ]
)
RECORD_BYTES = RECORD.itemsize
assert RECORD_BYTES == 256


class Space(IntEnum):
    """Where an operand's bytes lie."""

    GUEST = 0  # the linear memory
    WEIGHTS = 1  # the model file
    SCRATCH = 2  # device-only memory
    KV = 3  # the key/value cache of a session


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of `shape`, in elements."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True)
class Tensor:
    """Names bytes in a space: what a builder takes besides `TensorView`.

    Args:
        space: where the bytes lie.
        offset: bytes from the start of the space.
        shape: at most four dimensions.
        dtype: element type.
        strides: in elements; row-major when left out.
    """

    space: Space
    offset: int
    shape: tuple[int, ...]
    dtype: DType
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_AXES:
            raise UsageError(
                f"a tensor of shape {self.shape} was asked for; at most {MAX_AXES} axes fit a record"
            )
        if not self.strides:
            object.__setattr__(self, "strides", contiguous_strides(self.shape))
        if len(self.strides) != len(self.shape):
            raise UsageError(
                f"strides {self.strides} were given for shape {self.shape}; one for each axis is needed"
            )

    @property
    def T(self) -> Tensor:
        """The tensor with its axes reversed; the same bytes."""
        return Tensor(self.space, self.offset, self.shape[::-1], self.dtype, self.strides[::-1])
