"""GGUF's numbers: value types, the limits of this reader, and the names of its defects.

docs/gguf.md shows these tables; a test compares the two.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
"""Bytes; the key general.alignment overrides it."""


class ValueType(IntEnum):
    """Type of a metadata value."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


SCALARS: Final[dict[ValueType, Struct]] = {
    ValueType.U8: Struct("<B"),
    ValueType.I8: Struct("<b"),
    ValueType.U16: Struct("<H"),
    ValueType.I16: Struct("<h"),
    ValueType.U32: Struct("<I"),
    ValueType.I32: Struct("<i"),
    ValueType.U64: Struct("<Q"),
    ValueType.I64: Struct("<q"),
    ValueType.F32: Struct("<f"),
    ValueType.F64: Struct("<d"),
    ValueType.BOOL: Struct("<?"),
}
"""How each scalar is packed. A bool is one byte, 0 or 1."""

LIMITS: Final[dict[str, tuple[int, str]]] = {
    "keys": (4096, "metadata keys"),
    "key_nbytes": (65_535, "bytes of a key; printable ASCII"),
    "string_nbytes": (2**26, "bytes of one string value"),
    "strings": (2**21, "strings in all arrays of a file together"),
    "nested": (16_384, "arrays inside arrays"),
    "depth": (4, "arrays inside one another"),
    "tensors": (16_384, "tensors of a file"),
    "name_nbytes": (255, "bytes of a tensor's name; printable ASCII"),
    "dimensions": (4, "dimensions of a tensor, at least 1"),
    "alignment": (65_536, "bytes of alignment; a power of two, at least 8"),
    "parts": (4096, "files of a split model"),
}
"""What this reader accepts at most. Real models stay far below; a hostile file cannot make it work long."""

DEFECTS: Final[dict[str, str]] = {
    "magic": "the first four bytes are not GGUF",
    "version": "neither version 2 nor 3",
    "byte-order": "written for a big-endian machine",
    "truncated": "the file ends inside something that it announces",
    "too-large": "a count or a length above a limit of this reader",
    "key": "a key that is empty or not printable ASCII",
    "duplicate-key": "two values for one key",
    "type": "a value type or tensor type that the format does not have",
    "bool": "a bool that is neither 0 nor 1",
    "utf-8": "a string that is not UTF-8",
    "alignment": "an alignment that is not a power of two in range, or an offset that breaks it",
    "name": "a tensor name that is empty or not printable ASCII",
    "duplicate-tensor": "two tensors of one name",
    "dimensions": "no dimension, too many, one that is 0, or rows that do not divide into blocks",
    "offset": "a tensor that lies outside the file",
    "overlap": "two tensors that share bytes",
    "split": "the parts of a split model do not fit together",
}
"""`ModelFileError.kind` for GGUF files."""
