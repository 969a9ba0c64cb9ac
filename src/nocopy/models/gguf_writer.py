"""Writing GGUF version 3: what exports and tests need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_format import DEFAULT_ALIGNMENT, LIMITS, MAGIC, SCALARS, ValueType
from nocopy.models.quantize import quantize

U32: Final = SCALARS[ValueType.U32]
U64: Final = SCALARS[ValueType.U64]

VALUE_TYPES: Final[dict[np.dtype[Any], ValueType]] = {
    np.dtype(SCALARS[kind].format): kind for kind in SCALARS
}
"""NumPy scalars and arrays keep their type; see `encode_value` for Python's."""


@dataclass(frozen=True)
class TensorData:
    """A tensor to write: its bytes as u8, its type, and its shape with the outermost axis first."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, name: str, values: npt.NDArray[Any], kind: GGMLType) -> TensorData:
        """Encode values as `kind`.

        Raises:
            UnsupportedModelError, UsageError: as `quantize`.
        """
        return cls(name, kind, tuple(values.shape), quantize(values, kind))


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Iterable[TensorData] = (),
    *,
    alignment: int = DEFAULT_ALIGNMENT,
) -> None:
    """Write a file. It appears under its name only when it is whole and on disk.

    Args:
        path: the file; an existing one is replaced.
        metadata: keys in order. A bool is written as BOOL, an int as U32 or, where it does not fit, I32, U64
            or I64, a float as F32, a str as STRING, a list of str as an array, a NumPy scalar or array as
            its own type.
        tensors: in file order.
        alignment: of each tensor, in bytes; written as general.alignment unless it is the default.

    Raises:
        UsageError: a value, name or alignment that the format cannot hold.
    """
    tensors = list(tensors)
    if not 8 <= alignment <= LIMITS["alignment"][0] or alignment & (alignment - 1):
        raise UsageError(f"an alignment of {alignment} was asked for; it must be a power of two, at least 8")
    values = dict(metadata)
    if alignment != DEFAULT_ALIGNMENT:
        values["general.alignment"] = np.uint32(alignment)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        _write(file, values, tensors, alignment)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def encode_value(value: object) -> bytes:
    """Encode a metadata value: its type number, then the value.

    Raises:
        UsageError: the format has no such value.
    """
    if isinstance(value, str):
        return U32.pack(ValueType.STRING) + _string(value)
    if isinstance(value, np.ndarray | np.generic):
        return _encode_numpy(np.asarray(cast(Any, value)))
    if isinstance(value, bool):
        return _encode_numpy(np.asarray(value, np.bool_))
    if isinstance(value, int):
        for dtype in (np.uint32, np.int32, np.uint64, np.int64):
            if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return _encode_numpy(np.asarray(value, dtype))
    if isinstance(value, float):
        return _encode_numpy(np.asarray(value, np.float32))
    items = cast(Sequence[object], value) if isinstance(value, Sequence) else [value]
    if all(isinstance(item, str) for item in items):
        head = U32.pack(ValueType.ARRAY) + U32.pack(ValueType.STRING) + U64.pack(len(items))
        return head + b"".join(_string(str(item)) for item in items)
    raise UsageError(
        f"writing {value!r} into GGUF metadata was asked for; use a number, str, bool or an array"
    )


def _encode_numpy(value: npt.NDArray[Any]) -> bytes:
    kind = VALUE_TYPES.get(value.dtype.newbyteorder("<"))
    if kind is None or value.ndim > 1:
        raise UsageError(
            f"writing {value.dtype} {value.shape} into GGUF metadata was asked for; it has no such type"
        )
    raw = value.astype(value.dtype.newbyteorder("<")).tobytes()
    if value.ndim == 0:
        return U32.pack(kind) + raw
    return U32.pack(ValueType.ARRAY) + U32.pack(kind) + U64.pack(value.size) + raw


def _string(text: str) -> bytes:
    raw = text.encode()
    return U64.pack(len(raw)) + raw


def _write(
    file: BinaryIO, metadata: Mapping[str, object], tensors: Sequence[TensorData], alignment: int
) -> None:
    file.write(MAGIC + U32.pack(3) + U64.pack(len(tensors)) + U64.pack(len(metadata)))
    for key, value in metadata.items():
        file.write(_string(_name(key)) + encode_value(value))
    offset = 0
    for tensor in tensors:
        if not 1 <= len(tensor.shape) <= LIMITS["dimensions"][0] or tensor.raw.size != _nbytes(tensor):
            raise UsageError(
                f"writing '{tensor.name}' was asked for; {tensor.raw.size} bytes are not a {tensor.type.name}"
                f" tensor of shape {tensor.shape}"
            )
        file.write(_string(_name(tensor.name)) + U32.pack(len(tensor.shape)))
        file.write(b"".join(U64.pack(n) for n in reversed(tensor.shape)))
        file.write(U32.pack(tensor.type) + U64.pack(offset))
        offset += _padded(tensor.raw.size, alignment)
    if tensors:
        file.write(bytes(-file.tell() % alignment))
    for tensor in tensors:
        file.write(tensor.raw.data)
        file.write(bytes(-tensor.raw.size % alignment))


def _nbytes(tensor: TensorData) -> int:
    blocks, rest = divmod(prod(tensor.shape), tensor.type.block_elements)
    return -1 if rest or not blocks else blocks * tensor.type.block_nbytes


def _name(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable():
        raise UsageError(f"the name {text!r} was asked for; names are printable ASCII and not empty")
    return text


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment
