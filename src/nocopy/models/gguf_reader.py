"""One GGUF file, checked from its first byte to its last before anything of it is used.

The reader walks the header with a cursor that never leaves the file. It keeps offsets, not values: 8 bytes
for each string of an array, a small object for each key and tensor. So its memory is bounded by the file's
size and its time by `gguf_format.LIMITS`, whatever the counts in the file claim.
"""

from __future__ import annotations

import codecs
from array import array
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final, NoReturn

from nocopy.errors import ModelFileError
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_format import DEFAULT_ALIGNMENT, LIMITS, MAGIC, SCALARS, VERSIONS, ValueType
from nocopy.models.gguf_values import Entry
from nocopy.models.mapped_file import MappedFile
from nocopy.models.weights import Weight

U32: Final = SCALARS[ValueType.U32]
U64: Final = SCALARS[ValueType.U64]
UTF8_CHUNK: Final = 65_536
"""Bytes decoded at a time when a long string is checked, so that the check allocates little."""


@dataclass(frozen=True, slots=True)
class GGUFPart:
    """What one file holds, validated. Tensors are in file order."""

    file: MappedFile
    version: int
    alignment: int
    entries: dict[str, Entry]
    tensors: dict[str, Weight]


def read_part(file: MappedFile, index: int = 0) -> GGUFPart:
    """Validate one file.

    Args:
        file: the mapped file.
        index: its place in a split model, from 0; tensors carry it.

    Raises:
        ModelFileError: with a kind from `gguf_format.DEFECTS`.
    """
    reader = _Reader(file)
    version, tensor_count, key_count = reader.header()
    entries = reader.metadata(key_count)
    alignment = reader.alignment(entries.get("general.alignment"))
    infos = reader.tensor_infos(tensor_count)
    return GGUFPart(file, version, alignment, entries, reader.place(infos, alignment, index))


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int


class _Reader:
    """A cursor over the bytes of a file.

    `item` is the key or tensor being read, shortened, for messages. Messages are put together only when
    something is wrong: building them for each value would cost more than reading it.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.data = file.bytes.data
        self.end = file.nbytes
        self.position = 0
        self.item = "the header"
        self.strings_left = LIMITS["strings"][0]
        self.nested_left = LIMITS["nested"][0]

    def fail(self, kind: str, message: str) -> NoReturn:
        raise ModelFileError(str(self.file.path), kind, f"at byte {self.position}, in {self.item}: {message}")

    def skip(self, nbytes: int, what: str) -> int:
        """Step over so many bytes and return where they start."""
        start = self.position
        if nbytes > self.end - start:
            self.fail(
                "truncated", f"{what} needs {nbytes} bytes; {self.end - start} are left; fetch the file again"
            )
        self.position = start + nbytes
        return start

    def u32(self, what: str) -> int:
        return U32.unpack_from(self.data, self.skip(4, what))[0]

    def u64(self, what: str) -> int:
        return U64.unpack_from(self.data, self.skip(8, what))[0]

    def bounded(self, value: int, limit: str, what: str) -> int:
        """Refuse a count above a limit of the table."""
        most, meaning = LIMITS[limit]
        if value > most:
            self.fail("too-large", f"{what} is {value}; this reader accepts {most} {meaning}")
        return value

    def header(self) -> tuple[int, int, int]:
        if bytes(self.data[: len(MAGIC)]) != MAGIC:
            self.fail("magic", f"a GGUF file starts with {MAGIC!r}; this one with {bytes(self.data[:4])!r}")
        self.skip(len(MAGIC), "the magic")
        version = self.u32("the version")
        if version not in VERSIONS:
            if version & 0xFFFF == 0 and version != 0:
                self.fail(
                    "byte-order", "the file was written for a big-endian machine; convert it for a little one"
                )
            self.fail("version", f"the version is {version}; versions 2 and 3 can be read; convert it again")
        tensors = self.bounded(self.u64("the number of tensors"), "tensors", "the number of tensors")
        keys = self.bounded(self.u64("the number of keys"), "keys", "the number of keys")
        return version, tensors, keys

    def ascii(self, limit: str, kind: str) -> str:
        """Read a key or a name, and make it the item of messages."""
        length = self.bounded(self.u64("its length"), limit, "its length")
        start = self.skip(length, "its text")
        raw = bytes(self.data[start : start + length])
        if not raw or not raw.isascii() or not (text := raw.decode("ascii")).isprintable():
            self.fail(kind, f"it is {raw[:64]!r}; it must be printable ASCII and not empty")
        self.item = f"'{text}'" if len(text) <= 64 else f"'{text[:63]}…'"
        return text

    def metadata(self, count: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for index in range(count):
            self.item = f"key {index}"
            key = self.ascii("key_nbytes", "key")
            if key in entries:
                self.fail("duplicate-key", "the key comes a second time")
            entries[key] = self.value(self.value_type())
        return entries

    def value_type(self) -> ValueType:
        number = self.u32("its type")
        if number > max(ValueType):
            self.fail("type", f"it has value type {number}; there are types 0 to {max(ValueType)}")
        return ValueType(number)

    def value(self, kind: ValueType) -> Entry:
        if kind == ValueType.ARRAY:
            return self.array(1)
        if kind == ValueType.STRING:
            length = self.bounded(self.u64("the string's length"), "string_nbytes", "the string's length")
            start = self.skip(length, "the string")
            self.check_utf8(start, length)
            return Entry(kind, start, length)
        start = self.skip(SCALARS[kind].size, "the value")
        if kind == ValueType.BOOL:
            self.check_bools(start, 1)
        return Entry(kind, start)

    def array(self, depth: int) -> Entry:
        """Walk an array; nested ones are only checked, and decoded on access."""
        self.bounded(depth, "depth", "the depth of arrays")
        element = self.value_type()
        count = self.u64("the number of elements")
        start = self.position
        if element == ValueType.STRING:
            return Entry(ValueType.ARRAY, start, count, element, self.string_starts(count))
        if element == ValueType.ARRAY:
            self.nested_left -= self.bounded(count, "nested", "the number of arrays")
            if self.nested_left < 0:
                self.fail("too-large", f"it takes the file past {LIMITS['nested'][0]} nested arrays")
            for _ in range(count):
                self.array(depth + 1)
        else:
            self.skip(count * SCALARS[element].size, "the array")
            if element == ValueType.BOOL:
                self.check_bools(start, count)
        return Entry(ValueType.ARRAY, start, count, element)

    def string_starts(self, count: int) -> array[int]:
        """Walk so many strings. This is the one long loop of the reader: about 0.1 us a string."""
        self.strings_left -= self.bounded(count, "strings", "the number of strings")
        if self.strings_left < 0:
            self.fail("too-large", f"it takes the file past {LIMITS['strings'][0]} strings in arrays")
        if count * 8 > self.end - self.position:
            self.fail("truncated", f"{count} strings cannot fit in {self.end - self.position} bytes")
        starts = array("q", [0]) * (count + 1)
        data, position, end, unpack = self.data, self.position, self.end, U64.unpack_from
        for index in range(count):
            if end - position < 8 or (length := unpack(data, position)[0]) > end - position - 8:
                self.position = position
                self.fail("truncated", f"string {index} passes the end of the file; fetch it again")
            position += 8
            starts[index] = position
            position += length
        starts[count] = position + 8
        self.position = position
        return starts

    def check_utf8(self, start: int, length: int) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for at in range(start, start + length, UTF8_CHUNK):
                decoder.decode(self.data[at : min(at + UTF8_CHUNK, start + length)])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            self.fail("utf-8", f"the string is not UTF-8: {error.reason}")

    def check_bools(self, start: int, count: int) -> None:
        if count and int(self.file.bytes[start : start + count].max()) > 1:
            self.fail("bool", "a bool is neither 0 nor 1")

    def alignment(self, entry: Entry | None) -> int:
        if entry is None:
            return DEFAULT_ALIGNMENT
        self.item = "'general.alignment'"
        value = U32.unpack_from(self.data, entry.offset)[0] if entry.type == ValueType.U32 else 0
        most = LIMITS["alignment"][0]
        if not 8 <= value <= most or value & (value - 1):
            found = value if entry.type == ValueType.U32 else f"of type {entry.type.name}"
            self.fail("alignment", f"it is {found}; it must be a u32, a power of two, 8 to {most}")
        return value

    def tensor_infos(self, count: int) -> list[_Info]:
        infos: dict[str, _Info] = {}
        for index in range(count):
            self.item = f"tensor {index}"
            name = self.ascii("name_nbytes", "name")
            if name in infos:
                self.fail("duplicate-tensor", "the tensor comes a second time")
            infos[name] = self.tensor_info(name)
        return list(infos.values())

    def tensor_info(self, name: str) -> _Info:
        rank = self.u32("the number of dimensions")
        if not 1 <= rank <= LIMITS["dimensions"][0]:
            self.fail("dimensions", f"it has {rank} dimensions; 1 to {LIMITS['dimensions'][0]} are allowed")
        shape = tuple(self.u64("a dimension") for _ in range(rank))[::-1]
        number = self.u32("the tensor's type")
        try:
            kind = GGMLType(number)
        except ValueError:
            self.fail("type", f"the tensor has type {number}, which the format does not have")
        if min(shape) == 0 or shape[-1] % kind.block_elements:
            self.fail(
                "dimensions",
                f"the shape is {shape}; no axis may be 0, and rows of {kind.name} hold a multiple of"
                f" {kind.block_elements} elements",
            )
        return _Info(name, kind, shape, self.u64("the tensor's offset"))

    def place(self, infos: list[_Info], alignment: int, index: int) -> dict[str, Weight]:
        """Find where the tensors lie; refuse what is outside, unaligned or shared."""
        start = -(-self.position // alignment) * alignment
        weights: dict[str, Weight] = {}
        for info in infos:
            nbytes = info.type.nbytes(prod(info.shape))
            self.item = f"'{info.name}'"
            if info.offset % alignment:
                self.fail("alignment", f"the tensor's offset {info.offset} is not a multiple of {alignment}")
            if info.offset > self.end - start or nbytes > self.end - start - info.offset:
                self.fail(
                    "offset",
                    f"the tensor lies at {start + info.offset} and has {nbytes} bytes; the file has"
                    f" {self.end}; fetch it again",
                )
            offset = start + info.offset
            weights[info.name] = Weight(info.name, info.shape, info.type, index, offset, nbytes)
        for one, other in pairwise(sorted(weights.values(), key=lambda weight: weight.offset)):
            if one.offset + one.nbytes > other.offset:
                self.fail("overlap", f"the tensors '{one.name}' and '{other.name}' share bytes")
        return weights
