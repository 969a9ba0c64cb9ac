"""Reads the WebAssembly binary format from bytes, within bounds."""

from __future__ import annotations

from typing import Final, NamedTuple

LONGEST: Final = {32: 5, 33: 5, 64: 10}
"""Bytes of the longest LEB128 number of so many bits."""
_REFERENCES: Final = range(0x65, 0x76)
"""Bytes that are a reference type, or begin one: `funcref` is 0x70."""
NUMBERS: Final = {0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128"}
FUNCREF: Final = 0x70
_TYPED: Final = (0x63, 0x64)
_PLAIN_OPS: Final = {0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E}
"""Arithmetic of the extended constant expressions."""
_END: Final = 0x0B
_GC_INDICES: Final = {0: 1, 1: 1, 6: 1, 7: 1, 8: 2, 26: 0, 27: 0, 28: 0}
"""Instructions of constant expressions after 0xFB, and how many indices follow each."""


class Malformed(ValueError):
    """The bytes are not what the format allows here, or are of a proposal that is not known here."""


class Limits(NamedTuple):
    """Of a memory or a table."""

    minimum: int
    maximum: int | None
    wide: bool


class Constant(NamedTuple):
    """A constant expression: the integer that it is, if it is one, and the functions that it refers to."""

    integer: int | None
    functions: tuple[int, ...]


class Cursor:
    """A position in bytes. Every method reads from there and moves on; `Malformed` if that is impossible."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    @property
    def left(self) -> int:
        """Bytes that follow."""
        return len(self.data) - self.at

    def byte(self) -> int:
        """One byte."""
        if self.at >= len(self.data):
            raise Malformed(f"the bytes end at {self.at}; one more is needed")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        """So many bytes."""
        if count > self.left:
            raise Malformed(f"{count} bytes are needed at {self.at}; {self.left} are there")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, bits: int = 32) -> int:
        """An unsigned LEB128 number."""
        value = 0
        for i in range(LONGEST[bits]):
            byte = self.byte()
            value |= (byte & 127) << 7 * i
            if byte < 128:
                if value >> bits:
                    break
                return value
        raise Malformed(f"a number before byte {self.at} has more than {bits} bits")

    def signed(self, bits: int) -> int:
        """A signed LEB128 number."""
        value = 0
        for i in range(LONGEST[bits]):
            byte = self.byte()
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value - (1 << 7 * (i + 1)) if byte & 64 else value
        raise Malformed(f"a number before byte {self.at} has more than {bits} bits")

    def count(self) -> int:
        """How many items follow, each of at least one byte."""
        count = self.number()
        if count > self.left:
            raise Malformed(f"{count} items are announced before byte {self.at}; {self.left} bytes follow")
        return count

    def name(self) -> str:
        """A UTF-8 name."""
        try:
            return self.take(self.number()).decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"a name before byte {self.at} is not UTF-8: {error.reason}") from error

    def type(self) -> str:
        """A value type: a name of `NUMBERS`, "funcref", or "reference" for any other reference."""
        byte = self.byte()
        if byte in NUMBERS:
            return NUMBERS[byte]
        if byte == FUNCREF:
            return "funcref"
        if byte in _TYPED:
            self.heap_type()
        elif byte not in _REFERENCES:
            raise Malformed(f"no value type begins with {byte:#x}, at byte {self.at - 1}")
        return "reference"

    def heap_type(self) -> None:
        """What a reference is to."""
        if self.left and self.data[self.at] == 0x65:  # shared
            self.byte()
        self.signed(33)

    def limits(self) -> Limits:
        """Limits, with a page size or without."""
        flags = self.byte()
        if flags > 15:
            raise Malformed(f"limits before byte {self.at} have the flags {flags:#x}")
        bits = 64 if flags & 4 else 32
        minimum = self.number(bits)
        maximum = self.number(bits) if flags & 1 else None
        if flags & 8:
            self.number()
        return Limits(minimum, maximum, bits == 64)

    def constant(self) -> Constant:
        """A constant expression, to its end."""
        integers: list[int] = []
        functions: list[int] = []
        steps = 0
        while (op := self.byte()) != _END:
            steps += 1
            match op:
                case 0x41:
                    integers.append(self.signed(32) & 0xFFFFFFFF)
                case 0x42:
                    integers.append(self.signed(64) & (1 << 64) - 1)
                case 0x43 | 0x44:
                    self.take(4 if op == 0x43 else 8)
                case 0x23:
                    self.number()
                case 0xD0:
                    self.heap_type()
                case 0xD2:
                    functions.append(self.number())
                case 0xFD:
                    if self.number() != 12:
                        raise Malformed(f"a vector instruction before byte {self.at} is not constant")
                    self.take(16)
                case 0xFB:
                    self.indices()
                case _ if op in _PLAIN_OPS:
                    pass
                case _:
                    raise Malformed(f"no constant expression has the instruction {op:#x}, before {self.at}")
        return Constant(integers[0] if steps == len(integers) == 1 else None, tuple(functions))

    def indices(self) -> None:
        """The rest of an instruction of the GC proposal."""
        op = self.number()
        if op not in _GC_INDICES:
            raise Malformed(f"no constant expression has the instruction 0xfb {op}, before byte {self.at}")
        for _ in range(_GC_INDICES[op]):
            self.number()
