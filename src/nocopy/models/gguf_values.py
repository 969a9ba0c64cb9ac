"""Metadata values of a mapped GGUF file, decoded when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from nocopy.errors import ModelFileError
from nocopy.models.gguf_format import SCALARS, ValueType
from nocopy.models.mapped_file import MappedFile


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a validated value lies. Arrays state their element type, count and, for strings, their starts."""

    type: ValueType
    offset: int
    count: int = 0
    element: ValueType | None = None
    starts: array[int] | None = None


class StringArray(Sequence[str]):
    """The strings of an array, decoded one by one or, by iterating, all at once.

    `starts` holds the byte offset of each string and, last, that of the string that would come next; eight
    bytes of length lie before each.

    Raises:
        ModelFileError: on access to a string that is not UTF-8.
    """

    def __init__(self, file: MappedFile, starts: array[int]) -> None:
        self._file, self._starts = file, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        raw = self._file.bytes[self._starts[i] : self._starts[i + 1] - 8].tobytes()
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(i) from error

    def __iter__(self) -> Iterator[str]:
        data, starts = self._file.bytes.data, self._starts
        start = starts[0]
        for i in range(1, len(starts)):
            following = starts[i]
            try:
                yield str(data[start : following - 8], "utf-8")
            except UnicodeDecodeError as error:
                raise self._not_utf8(i - 1) from error
            start = following

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"

    def _not_utf8(self, index: int) -> ModelFileError:
        return ModelFileError(
            str(self._file.path), "utf-8", f"string {index} of an array of {len(self)} is not UTF-8"
        )


class GGUFValues(Mapping[str, object]):
    """Keys in file order; numbers, bool and str are read on access, arrays of numbers are read-only views."""

    def __init__(self, file: MappedFile, entries: Mapping[str, Entry]) -> None:
        self._file, self._entries = file, entries

    def __getitem__(self, key: str) -> object:
        return self._value(self._entries[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, key: str) -> Entry:
        """Where the value of `key` lies and of which type it is."""
        return self._entries[key]

    def _value(self, entry: Entry) -> object:
        data = self._file.bytes.data
        if entry.type == ValueType.STRING:
            return str(data[entry.offset : entry.offset + entry.count], "utf-8")
        if entry.type != ValueType.ARRAY:
            return SCALARS[entry.type].unpack_from(data, entry.offset)[0]
        if entry.starts is not None:
            return StringArray(self._file, entry.starts)
        if entry.element == ValueType.ARRAY:
            return self._nested(entry.offset, entry.count)[0]
        assert entry.element is not None
        dtype = np.dtype(SCALARS[entry.element].format)
        return np.frombuffer(data, dtype, entry.count, entry.offset)

    def _nested(self, offset: int, count: int) -> tuple[list[object], int]:
        """Decode `count` arrays that the reader has walked already; returns them and where they end."""
        data, items = self._file.bytes.data, list[object]()
        for _ in range(count):
            element = ValueType(SCALARS[ValueType.U32].unpack_from(data, offset)[0])
            n = SCALARS[ValueType.U64].unpack_from(data, offset + 4)[0]
            offset += 12
            if element == ValueType.ARRAY:
                item, offset = self._nested(offset, n)
            elif element == ValueType.STRING:
                item, offset = self._strings(offset, n)
            else:
                dtype = np.dtype(SCALARS[element].format)
                item = np.frombuffer(data, dtype, n, offset)
                offset += n * dtype.itemsize
            items.append(item)
        return items, offset

    def _strings(self, offset: int, count: int) -> tuple[Sequence[Any], int]:
        starts = array("q")
        for _ in range(count):
            starts.append(offset + 8)
            offset += 8 + SCALARS[ValueType.U64].unpack_from(self._file.bytes.data, offset)[0]
        starts.append(offset + 8)
        return StringArray(self._file, starts), offset
