"""What lies where in a guest's memory: the records of the interface, and those of WAMR's module `wasi_nn`.

All numbers are little-endian u32 unless said otherwise; a list is a pointer and a length.

    builder array   a list of lists of u8: what `load` gets
    tensor          0 dimensions, a list of u32   8 type, u8   12 data, a list of u8   20 bytes
    old tensor      0 pointer to such a list      4 type, u8    8 pointer to the data  12 bytes
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

from nocopy.errors import NnError
from nocopy.interfaces.wasi_nn.encoding import OLD_TYPES, Errno, TensorType
from nocopy.interfaces.wasi_nn.protocol import Buffer, Tensor
from nocopy.interfaces.wasi_nn.seen import Piece
from nocopy.memory.linear import LinearMemory

U32: Final = struct.Struct("<I")
LIST: Final = struct.Struct("<II")
TENSOR: Final = struct.Struct("<IIB3xII")
OLD_TENSOR: Final = struct.Struct("<IB3xI")

MOST_DIMENSIONS: Final = 64
"""NumPy's limit; ONNX Runtime's is its memory."""
MOST_PARTS: Final = 16
"""Of a model; OpenVINO's have two."""
F32_BYTES: Final = 4
_TYPES: Final = {int(t): t for t in TensorType}
_ITEMSIZES: Final = {t: t.dtype.itemsize for t in TensorType}


@dataclass(frozen=True)
class Records:
    """How one guest lays them out."""

    old: bool = False

    def parts(self, memory: LinearMemory, pointer: int, count: int) -> tuple[Buffer, ...]:
        """The parts of a model.

        Raises:
            NnError: there are none or too many.
            UsageError: they do not lie in the memory.
        """
        if not 0 < count <= MOST_PARTS:
            raise NnError(
                Errno.INVALID_ARGUMENT, f"a model in {count} parts was given; there are 1 to {MOST_PARTS}"
            )
        raw = memory.read(pointer, count * LIST.size)
        return tuple(buffer(memory, at, size) for at, size in LIST.iter_unpack(raw))

    def tensor(self, memory: LinearMemory, pointer: int) -> tuple[Tensor, Piece, Piece]:
        """A tensor, and what says so: its record and its dimensions.

        Raises:
            NnError: an unknown type, or too many dimensions.
            UsageError: it does not lie in the memory.
        """
        size = OLD_TENSOR.size if self.old else TENSOR.size
        record = piece(memory, pointer, size)
        if self.old:
            dimensions, number, at = OLD_TENSOR.unpack(record.data)
            dimensions, rank = LIST.unpack(memory.read(dimensions, LIST.size))
        else:
            dimensions, rank, number, at, size = TENSOR.unpack(record.data)
        shape, dimensions = _shape(memory, dimensions, rank)
        if self.old:
            kind = OLD_TYPES.get(number)
            if kind is None:
                raise _unknown_type(number, len(OLD_TYPES))
            size = math.prod(shape) * _ITEMSIZES[kind]
        else:
            kind = _type(number, math.prod(shape), size)
        return Tensor(kind, shape, buffer(memory, at, size)), record, dimensions

    def room(self, memory: LinearMemory, pointer: int, size: int) -> Buffer:
        """Where an output goes."""
        return buffer(memory, pointer, size * F32_BYTES if self.old else size)

    def filled(self, nbytes: int) -> int:
        """What is told of an output's size: in the old records, how many f32 it is, of whatever type."""
        return -(-nbytes // F32_BYTES) if self.old else nbytes


def buffer(memory: LinearMemory, pointer: int, size: int) -> Buffer:
    """Bytes of the memory.

    Raises:
        UsageError: they do not lie in it.
    """
    memory.check(pointer, size)
    return Buffer(memory, pointer, size)


def piece(memory: LinearMemory, pointer: int, size: int) -> Piece:
    """Bytes of the memory, as they are now.

    Raises:
        UsageError: they do not lie in it.
    """
    data = memory.read(pointer, size)
    return Piece(memory.view(size, "u8", pointer).buffer(), data)


def _shape(memory: LinearMemory, pointer: int, rank: int) -> tuple[tuple[int, ...], Piece]:
    if rank > MOST_DIMENSIONS:
        raise NnError(
            Errno.INVALID_ARGUMENT,
            f"a tensor of {rank} dimensions was given; there are at most {MOST_DIMENSIONS}",
        )
    found = piece(memory, pointer, 4 * rank)
    return struct.unpack(f"<{rank}I", found.data), found


def _type(number: int, count: int, nbytes: int) -> TensorType:
    """The type that fits the bytes.

    A guest that was built before 64-bit types came says 2 for u8 and 3 for i32. Its bytes tell: they are too
    few for f64, or too many for u8. Bytes that fit neither are for the backend to judge: guests of WasmEdge
    give text with the shape [1].
    """
    kind = _TYPES.get(number)
    if kind is None:
        raise _unknown_type(number, len(_TYPES))
    if count * _ITEMSIZES[kind] == nbytes:
        return kind
    old = OLD_TYPES.get(number, kind)
    if count * _ITEMSIZES[old] == nbytes:
        return old
    return kind


def _unknown_type(number: int, count: int) -> NnError:
    return NnError(Errno.INVALID_ARGUMENT, f"a tensor of type {number} was given; there are 0 to {count - 1}")
